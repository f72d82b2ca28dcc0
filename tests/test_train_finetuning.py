"""Flags for fine-tuning: frozen parts, classes of unequal size, early stopping."""

import shutil

import numpy
import pytest
import torch
from PIL import Image
from trainer import ONE_UPDATE, QUICK, expect_error, load, summary, train_imagenet

from hyena_vision.training.balance import BalancedSampler


@pytest.fixture(scope="module")
def unequal(tmp_path_factory):
    """A folder with 12 images of the first class and 6 of the others, and one where these are there twice."""
    folders, generator = [tmp_path_factory.mktemp(name) for name in ("unequal", "equal")], numpy.random.default_rng(0)
    for name, count in {"a": 12, "b": 6, "c": 6}.items():
        for split in ("train", "val"):
            (folders[0] / split / name).mkdir(parents=True)
            for index in range(count):
                image = Image.fromarray(generator.integers(0, 255, (16, 16, 3), dtype="uint8"))
                image.save(folders[0] / split / name / f"{index}.png")
            shutil.copytree(folders[0] / split / name, folders[1] / split / name)
            for path in list((folders[1] / split / name).iterdir()) if count == 6 else []:
                shutil.copy(path, path.with_name(f"again-{path.name}"))
    return folders


def test_frozen_parts_stay(run, images, capsys):
    first = load(run("frozen", "--freeze", "backbone", "--model-ema", "--epochs", "1")["folder"])
    other = load(run("other", "--freeze", "backbone", "--lr", "0.5")["folder"])
    changed = {name for name, value in other["state_dict"].items() if not torch.equal(value, first["state_dict"][name])}
    assert changed == {"head.weight", "head.bias"}
    assert first["args"]["freeze"] == ["backbone"]
    argv = [*QUICK, "--data-dir", str(images), "--freeze", "nothing"]
    expect_error(capsys, argv, 2, "argument --freeze: 'nothing' fits no parameter; the model has", "blocks")


def test_class_weights_act_like_repeated_images(unequal, tmp_path):
    weights = {}
    for name, folder, batch, more in (("w", 0, "24", ["--class-weights", "balanced"]), ("r", 1, "36", [])):
        argv = [*QUICK, *ONE_UPDATE, *more, "--data-dir", str(unequal[folder]), "--output", str(tmp_path)]
        weights[name] = load(train_imagenet.main([*argv, "-b", batch, "--experiment", name])["folder"])["state_dict"]
    for name, value in weights["w"].items():
        torch.testing.assert_close(value, weights["r"][name], rtol=1e-4, atol=1e-6)


def test_balanced_sampler_is_what_the_loader_draws_from(unequal, tmp_path, monkeypatch, caplog):
    seen = []

    def watched(run, epoch, loader, *args):
        outcome = train_one_epoch(run, epoch, loader, *args)
        seen.append([index for batch in range(len(loader)) for index in loader.images_of(batch)])
        return outcome

    train_one_epoch = train_imagenet.train_one_epoch
    monkeypatch.setattr(train_imagenet, "train_one_epoch", watched)
    argv = [*QUICK, "--data-dir", str(unequal[0]), "--output", str(tmp_path), "--balanced-sampler", "-b", "10"]
    train_imagenet.main(argv)
    sampler = BalancedSampler([0] * 12 + [1] * 6 + [2] * 6, seed=42)
    for epoch, indices in enumerate(seen):
        sampler.set_epoch(epoch)
        assert indices == list(sampler)[:20]
    assert "left out" not in caplog.text  # what is drawn any number of times cannot be


def test_patience_ends_a_run_that_gets_no_better(run, capsys):
    argv = ["--lr", "1e-30", "--epochs", "9", "--patience", "2"]
    outcome = run("patient", *argv)
    assert len(outcome["results"]) == len(summary(outcome["folder"])) == 3 and outcome["best_epoch"] == 0
    again = run("patient", *argv, "--resume", "auto")
    assert again["results"] == []
    longer = run("patient", *argv[:-1], "4", "--resume", "auto")
    assert [result["epoch"] for result in longer["results"]] == [3, 4]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--class-weights", "balanced", "--bce-loss"],
            "--class-weights: is for softmax cross entropy, got --bce-loss",
        ),
        (["--balanced-sampler", "--class-weights", "balanced"], "--class-weights: makes up for unequal classes"),
        (["--balanced-sampler", "--aug-repeats", "3"], "--balanced-sampler: draws the images itself"),
    ],
)
def test_combinations_that_cannot_run(flags, message, capsys):
    expect_error(capsys, [*QUICK, "--data-dir", "missing", *flags], 2, message)
