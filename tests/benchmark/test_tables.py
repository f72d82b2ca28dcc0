"""Rows as CSV, text and figures."""

import sys
from argparse import Namespace
from dataclasses import replace

import pytest
from PIL import Image

from hyena_vision.benchmark import figures, measure, models, tables
from hyena_vision.benchmark.__main__ import main
from hyena_vision.benchmark.measure import SpeedRow
from hyena_vision.training.errors import UserError

SPEED = dict(images_per_s=20.5, images_per_s_low=20.0, images_per_s_high=21.0, ms=48.78)
RATIO = dict(ratio=1.0, ratio_low=0.9, ratio_high=1.25, base="vit")
WHAT = dict(name="vit", size=224, tokens=196, batch_size=8, mode="infer", dtype="float32", compile="no", reparam=False)
ROW = SpeedRow(**WHAT, **SPEED, **RATIO, device="cpu", peak_mb=99.5, status="ok", machine="A CPU")
LOST = replace(ROW, **dict.fromkeys([*SPEED, "ratio", "ratio_low", "ratio_high", "peak_mb"]))
ROWS = [
    ROW,
    replace(ROW, name="hyena", images_per_s=41.0, ratio=2.0, tokens=None),
    replace(LOST, size=448, status="out of memory"),
    replace(ROW, name="hyena", size=448, images_per_s=10.25),
]


def test_csv_gives_back_the_rows(tmp_path):
    rows = [*ROWS, replace(ROW, reparam=True)]
    tables.write_csv(rows, str(tmp_path / "new"), "models.csv")
    assert tables.read_csv(tmp_path / "new" / "models.csv", SpeedRow) == rows


def test_printed_table_is_aligned_and_what_all_rows_share_is_said_once(capsys):
    measure.record(lambda: iter(ROWS), Namespace(run=None, output=None), "models")
    shared, header, rule, *lines = capsys.readouterr().out.splitlines()
    assert shared == "mode infer, dtype float32, device cpu, base vit, compile no, reparam False, machine A CPU"
    assert "copy share" not in header and "dtype" not in header
    assert [name.strip() for name in header.split("|")[1:4]] == ["name", "size", "tokens"]
    assert {len(line) for line in (header, rule, *lines)} == {len(header)}
    end = header.index("images per s") + len("images per s")
    assert [line[:end].split()[-1] for line in lines] == ["20.5", "41", "n/a", "10.25"]
    assert "| out of memory |" in lines[2]


def test_markdown_table():
    assert tables.markdown_table(ROWS[:2], ["name", "size", "images_per_s"]).splitlines() == [
        "| name  | size | images per s |",
        "| ---   | ---: |         ---: |",
        "| vit   |  224 |         20.5 |",
        "| hyena |  224 |           41 |",
    ]


def test_figure_has_speed_and_ratio_with_quartiles_and_crosses_where_memory_ran_out(tmp_path):
    figure = figures.plot(ROWS)
    speed, ratio, memory = figure.axes
    assert {axes.get_xscale() for axes in figure.axes} == {axes.get_yscale() for axes in figure.axes} == {"log"}
    lines = {line.get_label(): line.get_xydata().tolist() for line in speed.lines}
    assert lines["vit"] == [[224, 20.5]] and lines["hyena"] == [[224, 41], [448, 10.25]]
    assert [point[0] for point in lines["vit: out of memory"]] == [448]
    assert lines.keys() == {"vit", "hyena", "vit: out of memory"}
    lines = {line.get_label(): line.get_xydata().tolist() for line in ratio.lines}
    assert lines["hyena"] == [[224, 2], [448, 1]] and "vit" in ratio.get_title()
    for axes, low, high in ((speed, 20, 21), (ratio, 0.9, 1.25)):
        (bar,) = axes.collections[0].get_segments()
        assert bar.tolist() == [[224, low], [224, high]]
    assert not memory.collections and memory.lines[0].get_xydata().tolist() == [[224, 99.5]]
    figures.save_figure(figure, str(tmp_path / "new"), "models.png")
    with Image.open(tmp_path / "new" / "models.png") as image:
        assert image.width > 800


def test_missing_matplotlib_is_told_before_anything_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"hyena-vision\[train\]"):
        figures.plot(ROWS)
    monkeypatch.setattr(models, "measure_models", None)
    with pytest.raises(SystemExit) as stopped:
        main(["models", "--output", str(tmp_path)])
    assert stopped.value.code == 1 and 'pip install "hyena-vision[train]"' in capsys.readouterr().err


def test_rows_that_cannot_be_written_leave_those_before(tmp_path):
    tables.write_csv(ROWS, str(tmp_path), "rows.csv")
    with pytest.raises(TypeError):
        tables.write_csv([ROW, "no row"], str(tmp_path), "rows.csv")
    assert tables.read_csv(str(tmp_path / "rows.csv"), SpeedRow) == ROWS
