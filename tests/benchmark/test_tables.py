import sys
from dataclasses import replace

import pytest
from command_line import main
from PIL import Image

from hyena_vision.benchmark import figures, models, tables
from hyena_vision.benchmark.models import ModelRow
from hyena_vision.training.errors import UserError

SETTINGS = dict(batch_size=8, mode="infer", dtype="float32", compile="no", reparam=False, device="cpu", base="vit")
SPEED = dict(images_per_s=20.5, images_per_s_low=20.0, images_per_s_high=21.0, ms_per_image=48.78)
RATIO = dict(ratio=1.0, ratio_low=0.9, ratio_high=1.1)
ROW = ModelRow(
    model="vit", img_size=224, tokens=196, **SETTINGS, **SPEED, **RATIO, peak_mb=99.5, gflops=4.5, status="ok",
    machine="A CPU",
)  # fmt: skip
NOTHING = dict.fromkeys(("images_per_s", "images_per_s_low", "images_per_s_high", "ms_per_image", "peak_mb"))
LOST = replace(ROW, **NOTHING, ratio=None, ratio_low=None, ratio_high=None)
ROWS = [
    ROW,
    replace(ROW, model="hyena", images_per_s=41.0, ratio=2.0, tokens=None),
    replace(LOST, img_size=448, status="out of memory"),
    replace(ROW, model="hyena", img_size=448, images_per_s=10.25),
]


def test_csv_gives_back_the_rows(tmp_path):
    rows = [*ROWS, replace(ROW, reparam=True)]
    tables.write_csv(rows, str(tmp_path / "new"), "models.csv")
    assert tables.read_csv(tmp_path / "new" / "models.csv", ModelRow) == rows


def test_table_is_aligned_and_says_once_what_all_rows_share():
    machine, shared, header, *lines = tables.text_table(ROWS).splitlines()
    assert machine == "A CPU"
    assert (
        shared == "batch_size 8, mode infer, dtype float32, compile no, reparam False, device cpu, base vit, gflops 4.5"
    )
    assert header.split()[:4] == ["model", "img_size", "tokens", "images_per_s"]
    end = header.index("images_per_s") + len("images_per_s")
    assert [line[:end].split()[-1] for line in lines] == ["20.5", "41", "n/a", "10.25"]
    assert lines[2].endswith("out of memory")


def test_table_of_one_row_has_all_columns():
    machine, header, line = tables.text_table([ROW]).splitlines()
    assert machine == "A CPU"
    assert header.split()[0] == "model" and "dtype" in header and "float32" in line


def test_markdown_table():
    assert tables.markdown_table(ROWS[:2], ["model", "img_size", "images_per_s"]).splitlines() == [
        "| model | img size | images per s |",
        "| --- | ---: | ---: |",
        "| vit | 224 | 20.5 |",
        "| hyena | 224 | 41 |",
    ]


def test_figure_has_a_line_per_model_and_crosses_where_memory_ran_out(tmp_path):
    figure = figures.plot_models(ROWS)
    speed, ratio, memory = figure.axes
    for axes in (speed, ratio, memory):
        assert axes.get_xscale() == axes.get_yscale() == "log"
    lines = {line.get_label(): line.get_xydata().tolist() for line in speed.lines}
    assert lines["vit"] == [[224, 20.5]] and lines["hyena"] == [[224, 41], [448, 10.25]]
    assert [point[0] for point in lines["vit: out of memory"]] == [448]
    assert lines.keys() == {"vit", "hyena", "vit: out of memory"}
    assert ratio.get_ylabel() == "times as fast as\nvit"
    assert {line.get_label(): line.get_xydata().tolist() for line in ratio.lines}["hyena"] == [[224, 2], [448, 1]]
    bars = [segment.tolist() for bar in ratio.collections for segment in bar.get_segments()]
    assert [[224, 0.9], [224, 1.1]] in bars
    figures.save_figure(figure, str(tmp_path / "new"), "models.png")
    with Image.open(tmp_path / "new" / "models.png") as image:
        assert image.width > 800


def test_modes_are_told_apart():
    figure = figures.plot_models([*ROWS[:2], replace(ROW, mode="train")])
    assert {line.get_label() for line in figure.axes[0].lines} == {"vit, infer", "hyena, infer", "vit, train"}


def test_missing_matplotlib_is_told_before_anything_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"hyena-vision\[train\]"):
        figures.plot_models(ROWS)
    monkeypatch.setattr(models, "measure_models", None)
    with pytest.raises(SystemExit) as stopped:
        main(["models", "--output", str(tmp_path)])
    assert stopped.value.code == 1 and 'pip install "hyena-vision[train]"' in capsys.readouterr().err
