import csv
import sys

import pytest
from PIL import Image

from hyena_vision.training import report
from hyena_vision.training.errors import UserError


def make_run(folder, model: str, accuracy: list[float]) -> str:
    folder.mkdir()
    with open(folder / "summary.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "train_loss", "eval_loss", "eval_top1", "eval_top5", "lr"])
        writer.writerows(
            [epoch, 2 / (epoch + 1), 1 / (epoch + 1), top1, 100, 0.1] for epoch, top1 in enumerate(accuracy)
        )
    report.write_results(str(folder), model=model, parameters=123456, images_per_second=78.9)
    return str(folder)


def test_comparison_prints_one_table_and_draws_one_figure(tmp_path, capsys):
    runs = [make_run(tmp_path / "a", "hyena", [50, 90.5, 90]), make_run(tmp_path / "b", "vit", [40, 80, 85])]
    report.main(runs)
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:4]]
    assert cells[0][0] == "model" and set(cells[1][0]) == {"-"}
    assert cells[2] == ["hyena", "123,456", "90.00", "90.50", "79"]
    assert cells[3] == ["vit", "123,456", "85.00", "85.00", "79"]
    assert len({len(line) for line in lines[:4]}) == 1
    with Image.open(tmp_path / "comparison.png") as image:
        assert image.width > 800 and len(image.convert("RGB").getcolors(1 << 20)) > 10


def test_missing_matplotlib_names_the_extra(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    rows = report.read_summary(make_run(tmp_path / "a", "hyena", [50]))
    assert report.plot_curves({"a": rows}, str(tmp_path / "a.png")) is False
    assert ["hyena-vision[train]" in record.getMessage() for record in caplog.records] == [True]
    assert not (tmp_path / "a.png").exists()


def test_folder_that_is_no_run_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        report.main([str(tmp_path)])
    assert stopped.value.code == 1 and str(tmp_path) in capsys.readouterr().err
    (tmp_path / "summary.csv").write_text("epoch\n")
    with pytest.raises(UserError, match="no finished epoch"):
        report.read_summary(str(tmp_path))


def test_rows_of_other_columns_are_left_out(tmp_path):
    folder = make_run(tmp_path / "a", "hyena", [50, 60])
    with open(tmp_path / "a" / "summary.csv", "a") as file:
        file.write("2,0.5,0.1\n3,0.5,0.1,70,100,0.1,7\n4,0.4,,,,0.1\n")
    rows = report.read_summary(folder)
    assert [row["epoch"] for row in rows] == [0, 1, 4] and rows[-1] == {"epoch": 4, "train_loss": 0.4, "lr": 0.1}
    report.main([folder])


def test_speed_is_the_median_without_the_first_epoch():
    assert report.images_per_second([1.0, 30.0, 10.0, 20.0]) == 20.0
    assert report.images_per_second([5.0]) == 5.0
