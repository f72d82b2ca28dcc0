"""The training program on generated tasks."""

import json
from pathlib import Path

import numpy
import pytest
import torch
from trainer import QUICK, arguments, expect_error, load_exported, summary

from hyena_vision import pretrained
from hyena_vision import train as train_imagenet
from hyena_vision.data import create_dataset
from hyena_vision.training.errors import UserError
from hyena_vision.training.pipeline import create_loaders
from hyena_vision.training.splits import create_datasets

MODEL = ["--model", "hyena2d_iso_tiny", "--model-kwargs", "patch_size=8", "embed_dim=16", "depth=1", "filter_dim=8"]
TASK = [*QUICK, *MODEL, "--dataset", "hyena/pathfinder", "--in-chans", "1", "--img-size", "32", "--no-aug"]
TASK += ["--crop-pct", "1", "--train-num-samples", "16", "--val-num-samples", "6"]
TASK.remove("--num-classes"), TASK.remove("3")

PICTURES = ["--dataset", "hyena/spatial_recall"]


def test_a_task_is_drawn_at_the_size_of_the_model_and_trained_on(tmp_path):
    train_imagenet.main([*TASK, "--epochs", "1", "--output", str(tmp_path), "--experiment", "run"])
    folder = tmp_path / "run"
    assert len(summary(folder)) == 1
    assert json.loads((folder / "config.json").read_text())["label_names"] == ["apart", "connected"]
    rows = (folder / "predictions.csv").read_text().splitlines()
    assert len(rows) == 7 and rows[1].split(",")[1] == "pathfinder/validation/000000"
    assert (folder / "report.html").exists()
    result = train_imagenet.main(["--eval", str(folder), "--img-size", "64", "--device", "cpu", "-j", "0"])
    assert result["img_size"] == [64, 64]


def test_the_model_gets_the_pictures_as_they_are_drawn():
    args = arguments(*TASK, "--seed", "3")
    datasets = create_datasets(args)
    config = dict(input_size=(1, 32, 32), mean=(0.5,), std=(0.5,), interpolation="bicubic", crop_pct=1.0)
    loaders = create_loaders(args, config | {"crop_mode": "center"}, datasets, 2, torch.device("cpu"), None)
    for split, loader in (("train", loaders.train), ("validation", loaders.eval)):
        if split == "train":
            loader.begin(0)
        drawn = create_dataset(
            "hyena/pathfinder",
            split=split,
            img_size=32,
            num_samples=len(loader.dataset) if split == "validation" else 16,
        )
        expected = {numpy.asarray(image).tobytes(): label for image, label in (drawn[i] for i in range(len(drawn)))}
        seen = 0
        for images, labels in loader:
            for image, label in zip(((images * 0.5 + 0.5) * 255).round().byte(), labels, strict=True):
                assert expected.pop(image.numpy().tobytes()) == label
                seen += 1
        assert seen == len(drawn)


def test_settings_that_need_the_size_of_the_model():
    argv = ["--dataset", "hyena/far_digits:unit=16", "--img-size", "512", "--batch-size", "2"]
    args = arguments(*TASK, *argv)
    config = dict(input_size=(1, 512, 512), mean=(0.5,), std=(0.5,), interpolation="bicubic", crop_pct=1.0)
    datasets = create_datasets(args)
    create_loaders(args, config | {"crop_mode": "center"}, datasets, 28, torch.device("cpu"), None)
    assert datasets.train[0][0].shape == (1, 512, 512) and datasets.eval.img_size == 512


def spatial_recall_error(folder, size=32):
    """Mean squared error of a run's model over the images that it was validated on, from its exported weights."""
    model = load_exported(folder)
    dataset = create_dataset("hyena/spatial_recall", split="validation", img_size=size, num_samples=6)
    pairs = [(torch.from_numpy(numpy.array(image)), target) for image, target in dataset]
    images = (torch.stack([image for image, _ in pairs])[:, None] / 255 - 0.5) / 0.5
    with torch.no_grad():
        pixels = model(images)[:, :, -16:, -16:]
    return (pixels - torch.stack([target for _, target in pairs])).square().mean().item()


@pytest.mark.parametrize("loader", ["--prefetcher", "--no-prefetcher"])
def test_pictures_as_targets(tmp_path, capsys, loader):
    """The loss is the error of the corner, the model has a dense head, and the best epoch has the least error."""
    flags = ["--no-prefetcher"] if loader == "--no-prefetcher" else ["--model-ema", "--model-ema-decay", "0.5"]
    argv = [*TASK, *PICTURES, *flags, "--output", str(tmp_path), "--experiment", "run", "--epochs", "3"]
    train_imagenet.main([*argv, "--stop-epoch", "2"])
    outcome = train_imagenet.main([*argv, "--resume", "auto"])
    folder = tmp_path / "run"
    rows = summary(folder)
    errors = [float(row["eval_loss"]) for row in rows]
    assert len(rows) == 3 and errors[-1] < errors[0] and "eval_top1" not in rows[0]
    assert outcome["best_metric"] == min(errors) == pytest.approx(spatial_recall_error(folder), rel=1e-5)
    assert not (folder / "report.html").exists() and (folder / "curves.png").exists()
    shared = ["--device", "cpu", "-j", "0"]
    for run, size in ((folder, 32), (folder / "model_best.pth.tar", 64)):
        result = train_imagenet.main(["--eval", str(run), "--img-size", str(size), *shared])
        assert result["loss"] == pytest.approx(spatial_recall_error(folder, size), rel=1e-5) and "top1" not in result
    expect_error(capsys, ["--eval", str(folder), "--output", "out", *shared], 2, "--output", "predictions of classes")
    with pytest.raises(UserError, match="predicts pictures, not classes"):
        pretrained.load(folder)


def test_any_model_gets_a_dense_head_for_the_colours(tmp_path):
    argv = [*TASK, "--dataset", "hyena/spatial_recall:color=true", "--img-size", "64", "--in-chans", "3"]
    argv += ["--model", "convnext_atto", "--model-kwargs", "depths=[1,1,1,1]", "dims=[8,8,8,8]"]
    train_imagenet.main([*argv, "--epochs", "1", "--output", str(tmp_path), "--experiment", "run"])
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["architecture"] == "hyena_dense" and config["num_classes"] == 3
    assert config["model_args"]["backbone"] == "convnext_atto"


def test_a_dense_model_may_be_named_itself(tmp_path):
    kwargs = ["backbone=hyena2d_iso_tiny", "patch_size=4", "embed_dim=16", "depth=1", "filter_dim=8"]
    argv = [*TASK, *PICTURES, "--epochs", "1", "--output", str(tmp_path), "--experiment", "run"]
    train_imagenet.main([*argv, "--model", "hyena_dense", "--model-kwargs", *kwargs])
    result = train_imagenet.main(["--eval", f"{tmp_path}/run/model.safetensors", "-j", "0", "--device", "cpu"])
    assert result["loss"] == pytest.approx(spatial_recall_error(tmp_path / "run"), rel=1e-5)


DENSE = ["--model", "hyena_dense", "--model-kwargs", "backbone=resnet10t"]
WRONG = {
    "setting for other sizes": (["--dataset", "hyena/pathfinder:cue=true", "--img-size", "64"], ["cue of", "at 64"]),
    "crops": (["--aug"], ["--no-aug", "hyena/pathfinder"]),
    "cut": (["--crop-pct", "0.9"], ["--crop-pct", "expected 1, got 0.9"]),
    "size": (["--img-size", "48"], ["--img-size", "32, 64, 128, 256", "got 48"]),
    "no square": (["--input-size", "1", "32", "64"], ["--input-size", "got 32 x 64"]),
    "sizes": (["--train-img-sizes", "32", "64"], ["--train-img-sizes", "got [32, 64]"]),
    "name": (["--dataset", "hyena/maze"], ["hyena/maze", "pathfinder"]),
    "setting": (["--dataset", "hyena/pathfinder:dashes=3"], ["expected 5 to 14, got 3"]),
    "classes of pictures": ([*PICTURES, "--num-classes", "2"], ["--num-classes", "1 channels, got 2"]),
    "mixed pictures": ([*PICTURES, "--mixup", "0.5"], ["--mixup", "for classes, got 0.5"]),
    "weights of classes": ([*PICTURES, "--class-weights", "balanced"], ["--class-weights", "for classes"]),
    "converted": ([*PICTURES, "--convert", "hyena2d"], ["--convert", "for classes", "hyena2d"]),
    "pictures for classes": (DENSE, ["--model", "hyena_dense predicts pictures", "hyena/spatial_recall"]),
    "no name": ([*PICTURES, "--model", "hf-hub:owner/name"], ["--model", "got hf-hub:owner/name"]),
    "metric of classes": ([*PICTURES, "--eval-metric", "top5"], ["--eval-metric", "the loss", "got top5"]),
    "mirrored": ([*PICTURES, "--tta", "2"], ["--tta", "got 2"]),
    "grey": (["--dataset", "hyena/spatial_recall:color=true"], ["expected images of 3 channels (RGB), got L"]),
    "repeats": (["--epoch-repeats", "2"], ["--epoch-repeats", "got 2"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_a_task_is_one_line(tmp_path, capsys, monkeypatch, name):
    if name == "sizes":
        pytest.importorskip("timm.data.scheduled_sampler", reason="older timm has no schedule of sizes")
    argv, fragments = WRONG[name]
    monkeypatch.chdir(tmp_path)
    task = [flag for flag in TASK if flag != "--no-aug"] if argv == ["--aug"] else [*TASK, *argv]
    expect_error(capsys, [*task, "--output", "out"], 2, *fragments)
    assert not Path("out").exists()
