"""predictions.csv and report.html of a run and of a validation: what the metrics of the same model say."""

import json
import re
from pathlib import Path

import pytest
from trainer import summary, train_imagenet

from hyena_vision.training.predictions import read_predictions, results_by_class


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    from trainer import QUICK

    argv = [*QUICK, "--data-dir", str(images), "--output", str(tmp_path_factory.mktemp("report"))]
    argv += ["--experiment", "<run>", "--epochs", "4", "--lr", "1e-3", "--model-ema", "--model-ema-decay", "0.5"]
    return Path(train_imagenet.main(argv)["folder"])


def test_predictions_are_those_of_the_best_epoch(trained, images):
    rows = read_predictions(str(trained / "predictions.csv"))
    assert [row.index for row in rows] == list(range(15))
    assert all((images / "val" / row.file).exists() and row.file.startswith(f"{row.label}/") for row in rows)
    right = 100 * sum(row.label == row.prediction for row in rows) / 15
    best = json.loads((trained / "results.json").read_text())
    assert right == pytest.approx(best["best_metric"])
    assert right == pytest.approx(float(summary(trained)[best["best_epoch"]]["eval_top1"]))


def test_report_has_the_figures_of_the_predictions(trained):
    text, rows = (trained / "report.html").read_text(), read_predictions(str(trained / "predictions.csv"))
    assert f"<b>{100 * sum(row.label == row.prediction for row in rows) / 15:.2f} %</b>top-1" in text
    for result in results_by_class(rows):
        cells = rf'<td>{result.name}</td><td class="n">{result.images}</td><td class="n">{result.right}</td>'
        assert cells in text
    assert text.count("<img") == sum(row.label != row.prediction for row in rows)
    assert text.count("<svg") == 2 and "embed_dim: 16" in text and "&lt;run&gt;" in text
    assert not re.search(r'(src|href)="(?!data:)', text)


def test_validation_of_the_checkpoint_says_the_same(trained, images, tmp_path):
    argv = ["--eval", str(trained / "model_best.pth.tar"), "--device", "cpu", "-j", "0", "--data-dir", str(images)]
    train_imagenet.main([*argv, "--output", str(tmp_path / "new")])
    assert (tmp_path / "new" / "predictions.csv").read_bytes() == (trained / "predictions.csv").read_bytes()
    classes = [re.search(r'id="classes".*?</table>', path.read_text())[0] for path in tmp_path.glob("new/report.html")]
    assert classes == [re.search(r'id="classes".*?</table>', (trained / "report.html").read_text())[0]]


def test_stopped_before_the_predictions_were_written(trained, images, run, caplog):
    """Killed between the checkpoint of the best epoch and its predictions: no report rather than a wrong one."""
    folder = Path(run("run", "--lr", "1e-3")["folder"])
    assert "<img" in (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    (folder / "model.safetensors").unlink()
    text = (folder / "predictions.csv").read_text()
    (folder / "predictions.csv").write_text(text.replace("/3.png", "/other.png"))
    run("run", "--lr", "1e-3", "--resume", "auto")
    assert "/other.png" in (page := (folder / "report.html").read_text()) and "<img" not in page
    assert any("have changed since the best epoch" in message for message in caplog.messages)

    (folder / "report.html").unlink()
    (folder / "model.safetensors").unlink()
    for wrong in ("\n".join([text.splitlines()[0], "0,,a,b,0.5,0.5\n"]), "file,name_1,probability_1,error\n"):
        (folder / "predictions.csv").write_text(wrong)
        (folder / "model.safetensors").unlink(missing_ok=True)
        caplog.clear()
        run("run", "--lr", "1e-3", "--resume", "auto")
        assert not (folder / "report.html").exists()
        assert any("not of the best epoch" in message for message in caplog.messages)


def test_what_is_exported_is_what_was_validated(images, run):
    """An average on the CPU is not validated, and a trained head is not scaled again."""
    flags = ["--model-ema", "--model-ema-decay", "0.5", "--model-ema-force-cpu", "--lr", "1e-2"]
    flags += ["--head-init-scale", "0.1", "--head-init-bias", "0.3"]
    outcome = run("cpu", *flags)
    best = outcome["results"][outcome["best_epoch"]]["validation"]
    for file in ("model_best.pth.tar", "model.safetensors"):
        again = train_imagenet.main(["--eval", f"{outcome['folder']}/{file}", "--device", "cpu", "-j", "0"])
        assert again["loss"] == pytest.approx(best["loss"], rel=1e-5)
