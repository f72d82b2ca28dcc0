"""Accuracy against cost: what is trained, what is taken, and what stands beside it."""

import csv
import shutil
import statistics
from contextlib import redirect_stderr
from types import SimpleNamespace

import pytest
import timm
import torch
import yaml
from trainer import summary

from hyena_vision import train
from hyena_vision.benchmark import accuracy, study
from hyena_vision.benchmark.__main__ import main
from hyena_vision.training.config import parse_args
from hyena_vision.training.errors import UserError
from hyena_vision.training.resolve import resolve

MODELS = ["hyena2d_iso_tiny patch_size=4 embed_dim=16 depth=1 filter_dim=8"]
MODELS += ["vit_tiny_patch16_224 patch_size=4 embed_dim=16 depth=1 num_heads=2"]


@pytest.fixture
def started(monkeypatch):
    """Runs in this process; the names of those that were started."""
    names = []

    def run(command, **options):
        argv = command[3:]  # python -m hyena_vision.train
        names.append(argv[argv.index("--experiment") + 1])
        try:
            with redirect_stderr(options["stderr"]):
                train.main(argv)
        except SystemExit as stopped:
            return SimpleNamespace(returncode=stopped.code)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(study, "call", run)
    return names


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def command(tmp_path, *argv, **recipe):
    """The command on grey digits or what `argv` names, with quick runs."""
    path = tmp_path / "recipe.yaml"
    quick = dict(opt="adamw", warmup_epochs=0, epochs=2, mean=[0.5], std=[0.5], workers=0, batch_size=8)
    path.write_text(yaml.safe_dump(quick | recipe))
    words = ["accuracy", "--recipe", str(path), "--models", *MODELS, "--rounds", "1", "--no-memory", "--device", "cpu"]
    return [*words, "--output", str(tmp_path / "output"), *argv]


def test_each_model_is_tuned_alike_and_timed_at_its_sizes(started, images, tmp_path, capsys):
    output = tmp_path / "output"
    argv = ["--data-dir", str(images), "--img-sizes", "16", "32", "--seeds", "2", "--lrs", "1e-5", "1e-2"]
    argv = command(tmp_path, *argv, "--args", "--epochs", "1")
    main(argv)
    assert len(started) == 2 * 2 * 3 and "100% of all" in capsys.readouterr().out
    trials, rows = rows_of(output / "trials.csv"), rows_of(output / "accuracy.csv")
    assert len(trials) == 12 and [(row["model"], row["size"]) for row in rows] == [
        (model, size) for size in ("16", "32") for model in MODELS
    ]
    for row in rows:
        own = [trial for trial in trials if (trial["model"], trial["size"]) == (row["model"], row["size"])]
        first = [trial for trial in own if trial["seed"] == "0"]
        best = max(first, key=lambda trial: (float(trial["top1"]), -float(trial["loss"])))
        assert len(first) == 2 and row["lr"] == best["lr"] and row["metric"] == "top1"
        taken = [float(trial["top1"]) for trial in own if trial["lr"] == best["lr"]]
        assert len(taken) == int(row["seeds"]) == 2
        assert float(row["value"]) == pytest.approx(statistics.mean(taken))
        assert float(row["spread"]) == pytest.approx(statistics.stdev(taken))
        name, *kwargs = row["model"].split()
        kwargs = {key: int(value) for key, value in (word.split("=") for word in kwargs)}
        made = timm.create_model(name, img_size=int(row["size"]), num_classes=3, **kwargs)
        assert int(row["parameters"]) == sum(parameter.numel() for parameter in made.parameters())
        assert float(row["images_per_s"]) > 0 and float(row["gflops"]) > 0 and row["status"] == "ok"
        seconds = int(own[0]["updates"]) * 8 / float(row["train_images_per_s"])
        assert float(row["train_minutes"]) == pytest.approx(seconds / 60)
    small, large = (
        float(next(r["gflops"] for r in rows if r["size"] == size and r["model"] == MODELS[1])) for size in ("16", "32")
    )
    assert 4 < large / small < 8  # four times the tokens, and the square of that in attention
    for trial, name in zip(trials, started, strict=True):
        assert float(trial["top1"]) == float(summary(output / "runs" / name)[-1]["eval_top1"])
    assert (output / "accuracy.png").stat().st_size > 0 and MODELS[0] in (output / "accuracy.md").read_text()
    assert (output / "curves.png").stat().st_size > 0

    started.clear()
    shutil.rmtree(output / "runs")
    main(argv)  # the record is enough: nothing is trained twice, and times are new
    assert not started and rows_of(output / "trials.csv") == trials
    with pytest.raises(SystemExit):
        main([*argv[:-1], "2"])
    assert "holds runs of another recipe" in capsys.readouterr().err and not started


def test_errors_of_pictures_are_ranked_from_the_least(started, tmp_path):
    argv = ["--task", "hyena/spatial_recall", "--img-sizes", "32", "--seeds", "1", "--lrs", "1e-5", "1e-2"]
    small = ["--no-aug", "--crop-pct", "1", "--in-chans", "1", "--train-num-samples", "16", "--val-num-samples", "8"]
    main(command(tmp_path, *argv, "--args", *small))
    trials, rows = (rows_of(tmp_path / "output" / name) for name in ("trials.csv", "accuracy.csv"))
    assert len(started) == 4 and len(trials) == 8 and {row["metric"] for row in rows} == {"mse"}
    for row in rows:
        own = [trial for trial in trials if trial["model"] == row["model"] and trial["updates"] == "4"]
        least = min(own, key=lambda trial: float(trial["loss"]))
        assert len(own) == 2 and row["lr"] == least["lr"] and row["value"] == least["loss"] and not least["top1"]
        assert float(row["train_images_per_s"]) > 0 and float(row["gflops"]) > 0


@pytest.mark.parametrize("content", [None, "a: [b", b"\xff"])
def test_recipes_that_cannot_be_read_are_one_line(tmp_path, capsys, content):
    argv = command(tmp_path, "--task", "hyena/spatial_recall", "--img-sizes", "32")
    (tmp_path / "recipe.yaml").unlink()
    if content:
        (tmp_path / "recipe.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit):
        main(argv)
    said = capsys.readouterr().err
    assert said.startswith("hyena_vision.benchmark: error: cannot read") and said.count("\n") == 1


def test_images_of_several_batches_in_an_update_count(started, tmp_path, capsys):
    argv = [
        "--task",
        "hyena/spatial_recall",
        "--img-sizes",
        "32",
        "--seeds",
        "1",
        "--args",
        "--no-aug",
        "--crop-pct",
        "1",
    ]
    argv += ["--in-chans", "1", "--train-num-samples", "16", "--val-num-samples", "8", "--epochs", "1"]
    with pytest.raises(SystemExit):
        main(command(tmp_path, *argv, "--val-split", ""))
    assert "was not validated" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "output")
    main(command(tmp_path, *argv, "--grad-accum-steps", "2"))
    for row in rows_of(tmp_path / "output/accuracy.csv"):
        assert float(row["train_minutes"]) == pytest.approx(16 / float(row["train_images_per_s"]) / 60)


@pytest.mark.parametrize("models", [["a: resnet18", "a: resnet34"], ["a b: resnet18", "a/b: resnet18"]])
def test_models_that_are_called_alike_are_refused(models):
    with pytest.raises(UserError, match="expected another name for each model"):
        accuracy.named(models)


@pytest.mark.parametrize("given", [["--model-kwargs", "depth=1"], ["--img-size=64"], ["--epochs", "1", "--model", "x"]])
def test_flags_of_one_model_or_size_are_refused_for_all(given, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(command(tmp_path, "--task", "sklearn/digits", "--img-sizes", "12", "--args", *given))
    assert "argument --args: expected flags for all models and sizes, got --" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "expected"), [(None, "bfloat16"), ("float32", "float32")])
def test_models_are_timed_in_the_precision_of_the_recipe_or_as_asked(given, expected, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(accuracy, "measure", lambda *args, dtype, **columns: asked.append(dtype) or [])
    (recipe := tmp_path / "recipe.yaml").write_text("{amp: true, amp_dtype: bfloat16, num_classes: 10, in_chans: 1}")
    own = dict(models={"ours": MODELS[0]}, task="sklearn/digits", recipe=str(recipe), args=[], device="cpu")
    args = SimpleNamespace(**own, dtype=given, batch_size=1, rounds=1, memory=False)
    assert list(accuracy.compare(args, 12, None)) == [] and asked == [expected, expected]


def test_models_are_timed_without_the_weights_that_runs_begin_with(tmp_path):
    torch.save({"other": torch.ones(1)}, weights := str(tmp_path / "weights.pth"))
    argv = ["--model", "resnet10t", "--device", "cpu", "--data-dir", "images"]
    for flag in ("--initial-checkpoint", "--pretrained-path"):
        model, size = accuracy.create_untrained(resolve(parse_args([*argv, flag, weights])))
        assert type(model).__name__ == "ResNet" and size == (3, 176, 176)


def test_curves_of_runs_that_ended_at_different_updates():
    """As with --patience."""
    ended = {0: 3, 1: 2}
    record = SimpleNamespace(
        run=lambda model, size, lr, seed: [
            accuracy.Validation(model, size, lr, seed, 10 * number, 10.0 * number + 2 * seed, 1.0)
            for number in range(1, 1 + ended[seed])
        ]
    )
    row = SimpleNamespace(model="m", size=32, lr=None, seeds=2, metric="top1", train_minutes=6.0)
    learning, timed = accuracy.plot_curves([row], record).axes
    assert learning.lines[0].get_xydata().tolist() == [[10, 11], [20, 21]]
    assert timed.lines[0].get_xydata().tolist() == [[2, 11], [4, 21]]


def test_a_rate_that_diverges_is_the_worst(started, tmp_path):
    argv = ["--task", "hyena/spatial_recall", "--img-sizes", "32", "--seeds", "2", "--lrs", "1e30", "1e-3", "--args"]
    small = ["--no-aug", "--crop-pct", "1", "--in-chans", "1", "--train-num-samples", "16", "--val-num-samples", "8"]
    main(command(tmp_path, *argv, *small, opt="sgd"))
    trials, rows = (rows_of(tmp_path / "output" / name) for name in ("trials.csv", "accuracy.csv"))
    assert [row["lr"] for row in rows] == ["0.001", "0.001"]
    assert sum(trial["loss"] == "inf" and trial["lr"] == "1e+30" for trial in trials) == 2
    started.clear()
    main(command(tmp_path, *argv, *small, opt="sgd"))
    assert not started


def test_side_of_images_in_the_arguments_of_a_model():
    models = accuracy.named(["ours: hyena2d_iso_tiny base_grid={size/8} patch_size=8", "resnet18"])
    assert list(models) == ["ours", "resnet18"] and models["resnet18"] == "resnet18"
    args = SimpleNamespace(recipe="r.yaml", device="cpu", task="hyena/pathfinder", args=["--epochs", "2"])
    args.models = models
    words = accuracy.flags(args, "ours", 96)
    assert words[words.index("--model-kwargs") + 1 :] == ["base_grid=12", "patch_size=8", "--epochs", "2"]
