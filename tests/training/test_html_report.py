"""The report: its figures are those of the predictions, and it is one file of well-formed HTML."""

import base64
import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from hyena_vision.training.html_report import write_html_report
from hyena_vision.training.predictions import Prediction

NAMES = ["ant", "<b>bee</b>", "cow & calf"]
ROWS = [Prediction(i, f"{i}.png", NAMES[i % 3], NAMES[i * i % 3], 0.5 + i / 100, 0.5) for i in range(12)]
EPOCHS = [{"epoch": 0.0, "train_loss": 2.0, "eval_loss": 1.5, "eval_top1": 40.0}]
EPOCHS += [{"epoch": 1.0, "train_loss": 1.0, "eval_loss": float("nan"), "eval_top1": 60.0}]


class Page(HTMLParser):
    """Text of table cells by the id of their table; every tag must be closed."""

    VOID = ("meta", "br", "img", "line", "polyline", "circle")

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tables, self.pictures, self.external = [], {}, [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.external += [attrs[name] for name in ("src", "href") if not attrs.get(name, "data:").startswith("data:")]
        if tag == "img":
            self.pictures.append(attrs["src"])
        if tag not in self.VOID:
            self.open.append((tag, attrs.get("id")))
        if tag == "tr":
            self.rows().append([])
        if tag in ("td", "th"):
            self.rows()[-1].append("")

    def handle_startendtag(self, tag, attrs):
        assert tag in self.VOID

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if any(tag in ("td", "th") for tag, _ in self.open):
            self.rows()[-1][-1] += data

    def rows(self) -> list:
        return self.tables.setdefault([name for tag, name in self.open if tag == "table"][-1], [])


def write(tmp_path, rows, **kwargs) -> tuple[str, Page]:
    path = tmp_path / "report.html"
    write_html_report(str(path), "a <title>", {"top-1": "50 %"}, rows, **kwargs)
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_figures_are_those_of_the_predictions(tmp_path):
    def picture(index: int) -> Image.Image:
        return Image.new("RGBA", (300 if index % 2 else 40, 20), (index, 0, 0, 255))

    text, page = write(tmp_path, ROWS, epochs=EPOCHS, settings="lr: 1 & 2", picture=picture)
    assert page.external == [] and "http" not in text
    of_class = {line[0]: line[1:4] for line in page.tables["classes"][1:]}
    for name in NAMES:
        own = [row for row in ROWS if row.label == name]
        right = sum(row.prediction == name for row in own)
        assert of_class[name] == [str(len(own)), str(right), f"{100 * right / len(own):.1f} %"]
    header, *lines = page.tables["confusions"]
    for name, *counts in lines:
        for other, count in zip(header[1:], counts, strict=True):
            assert int(count or 0) == sum(row.label == name and row.prediction == other for row in ROWS)
    wrong = sorted((row for row in ROWS if row.prediction != row.label), key=lambda row: -row.probability)
    captions = re.findall(r"said <b>.*?</b> \((.*?) %\).*?(\d+\.png)", text)
    assert captions == [(f"{100 * row.probability:.1f}", row.file) for row in wrong]
    for row, source in zip(wrong, page.pictures, strict=True):
        with Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) as image:
            assert image.width == (256 if row.index % 2 else 40)
            assert image.getpixel((5, 5))[0] == pytest.approx(row.index, abs=3)
    assert text.count("<svg") == 2 and text.count("<polyline") == 3 and "lr: 1 &amp; 2" in text
    assert "a &lt;title&gt;" in text and "<b>bee" not in text


def test_many_classes_are_a_list_of_confusions(tmp_path):
    rows = [Prediction(i, "", f"c{i % 50}", f"c{i * 3 % 50}", 0.9, 0.1) for i in range(100)]
    page = write(tmp_path, rows)[1]
    wrong = [line[0] for line in page.tables["classes"][1:] if line[2] == "0"]
    assert wrong[:3] == ["c1", "c2", "c3"]  # and c10 later
    assert page.tables["confusions"][0] == ["class", "taken for", "images"]
    for name, other, count in page.tables["confusions"][1:]:
        assert int(count) == sum(row.label == name and row.prediction == other for row in rows) > 0


def test_no_mistakes(tmp_path):
    text, page = write(tmp_path, [row for row in ROWS if row.label == row.prediction])
    assert "None." in text and page.pictures == [] and "<svg" not in text
