"""Accuracy against cost: what is trained, what is taken, and what stands beside it."""

import csv
import statistics
from types import SimpleNamespace

import pytest
import timm
import yaml
from trainer import summary

from hyena_vision import train
from hyena_vision.benchmark import study
from hyena_vision.benchmark.__main__ import main

MODELS = ["hyena2d_iso_tiny patch_size=4 embed_dim=16 depth=1 filter_dim=8"]
MODELS += ["vit_tiny_patch16_224 patch_size=4 embed_dim=16 depth=1 num_heads=2"]


@pytest.fixture
def started(monkeypatch):
    """Runs in this process; the names of those that were started."""
    names = []

    def run(command, **options):
        argv = command[3:]  # python -m hyena_vision.train
        names.append(argv[argv.index("--experiment") + 1])
        train.main(argv)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(study.subprocess, "run", run)
    return names


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_each_model_is_tuned_alike_and_timed_at_its_sizes(started, images, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(dict(opt="adamw", warmup_epochs=0, epochs=1, mean=[0.5], std=[0.5], workers=0)))
    output = tmp_path / "output"
    argv = [
        "accuracy",
        "--data-dir",
        str(images),
        "--recipe",
        str(recipe),
        "--models",
        *MODELS,
        "--img-sizes",
        "16",
        "32",
    ]
    argv += ["--seeds", "2", "--lrs", "1e-5", "1e-2", "--rounds", "1", "--no-memory", "--device", "cpu"]
    argv += ["--output", str(output), "--args", "-b", "8"]
    main(argv)
    assert len(started) == 2 * 2 * 3 and "12 of" not in (said := capsys.readouterr().out) and "100% of all" in said
    trials, rows = rows_of(output / "trials.csv"), rows_of(output / "accuracy.csv")
    assert len(trials) == 12 and [(row["model"], row["size"]) for row in rows] == [
        (model, size) for size in ("16", "32") for model in MODELS
    ]
    for row in rows:
        own = [trial for trial in trials if (trial["model"], trial["size"]) == (row["model"], row["size"])]
        first = [trial for trial in own if trial["seed"] == "0"]
        best = max(first, key=lambda trial: (float(trial["top1"]), -float(trial["loss"])))
        assert len(first) == 2 and row["lr"] == best["lr"]
        taken = [float(trial["top1"]) for trial in own if trial["lr"] == best["lr"]]
        assert len(taken) == int(row["seeds"]) == 2
        assert float(row["top1"]) == pytest.approx(statistics.mean(taken))
        assert float(row["spread"]) == pytest.approx(statistics.stdev(taken))
        name, *kwargs = row["model"].split()
        kwargs = {key: int(value) for key, value in (word.split("=") for word in kwargs)}
        made = timm.create_model(name, img_size=int(row["size"]), num_classes=3, **kwargs)
        assert int(row["parameters"]) == sum(parameter.numel() for parameter in made.parameters())
        assert float(row["images_per_s"]) > 0 and float(row["gflops"]) > 0 and row["status"] != "failed"
    small, large = (
        float(next(r["gflops"] for r in rows if r["size"] == size and r["model"] == MODELS[1])) for size in ("16", "32")
    )
    assert 4 < large / small < 8  # four times the tokens, and the square of that in attention
    for trial in trials[:2]:
        folder = output / "runs" / started[trials.index(trial)]
        assert float(trial["top1"]) == float(summary(folder)[-1]["eval_top1"])
    assert (output / "accuracy.png").stat().st_size > 0 and MODELS[0] in (output / "accuracy.md").read_text()

    started.clear()
    main(argv)  # nothing is trained twice, and times are new
    assert not started and rows_of(output / "trials.csv") == trials
