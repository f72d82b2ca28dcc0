import sys
from dataclasses import replace

import pytest
from PIL import Image

from hyena_vision.benchmark import models, report
from hyena_vision.benchmark.__main__ import main
from hyena_vision.benchmark.models import ModelRow
from hyena_vision.training.errors import UserError

ROW = ModelRow(
    "vit", 224, 196, 8, "infer", "float32", "no", False, "cpu", 20.5, 20.0, 21.0, 48.78, 1.0, "vit", 99.5, "ok", "A CPU"
)
LOST = replace(
    ROW, images_per_s=None, images_per_s_low=None, images_per_s_high=None, ms_per_image=None, ratio=None, peak_mb=None
)
ROWS = [
    ROW,
    replace(ROW, model="hyena", images_per_s=41.0, ratio=2.0, tokens=None),
    replace(LOST, img_size=448, status="out of memory"),
    replace(ROW, model="hyena", img_size=448, images_per_s=10.25),
]


def test_csv_gives_back_the_rows(tmp_path):
    rows = [*ROWS, replace(ROW, reparam=True)]
    report.write_csv(rows, str(tmp_path / "new"), "models.csv")
    assert report.read_csv(tmp_path / "new" / "models.csv", ModelRow) == rows


def test_table_is_aligned_and_says_once_what_all_rows_share():
    machine, shared, header, *lines = report.table(ROWS).splitlines()
    assert machine == "A CPU"
    assert shared == "batch_size 8, mode infer, dtype float32, compile no, reparam False, device cpu, base vit"
    assert header.split()[:4] == ["model", "img_size", "tokens", "images_per_s"]
    end = header.index("images_per_s") + len("images_per_s")
    assert [line[:end].split()[-1] for line in lines] == ["20.5", "41", "n/a", "10.25"]
    assert lines[2].endswith("out of memory")


def test_table_of_one_row_has_all_columns():
    machine, header, line = report.table([ROW]).splitlines()
    assert machine == "A CPU"
    assert header.split()[0] == "model" and "dtype" in header and "float32" in line


def test_markdown_table():
    assert report.markdown_table(ROWS[:2], ["model", "img_size", "images_per_s"]).splitlines() == [
        "| model | img size | images per s |",
        "| --- | ---: | ---: |",
        "| vit | 224 | 20.5 |",
        "| hyena | 224 | 41 |",
    ]


def test_figure_has_a_line_per_model_and_crosses_where_memory_ran_out(tmp_path):
    figure = report.plot_models(ROWS)
    speed, memory = figure.axes
    for axes in (speed, memory):
        assert axes.get_xscale() == axes.get_yscale() == "log"
    lines = {line.get_label(): line.get_xydata().tolist() for line in speed.lines}
    assert lines["vit"] == [[224, 20.5]] and lines["hyena"] == [[224, 41], [448, 10.25]]
    assert [point[0] for point in lines["vit: out of memory"]] == [448]
    assert lines.keys() == {"vit", "hyena", "vit: out of memory"}
    report.save_figure(figure, str(tmp_path / "new"), "models.png")
    with Image.open(tmp_path / "new" / "models.png") as image:
        assert image.width > 800


def test_modes_are_told_apart():
    figure = report.plot_models([*ROWS[:2], replace(ROW, mode="train")])
    assert {line.get_label() for line in figure.axes[0].lines} == {"vit, infer", "hyena, infer", "vit, train"}


def test_missing_matplotlib_is_told_before_anything_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"hyena-vision\[train\]"):
        report.plot_models(ROWS)
    monkeypatch.setattr(models, "measure_models", None)
    with pytest.raises(SystemExit) as stopped:
        main(["models", "--output", str(tmp_path)])
    assert stopped.value.code == 1 and 'pip install "hyena-vision[train]"' in capsys.readouterr().err
