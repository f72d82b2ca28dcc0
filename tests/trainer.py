"""What the tests of the training program share: the program, a tiny model, and images that they draw themselves."""

import csv
import os
import shutil
import signal
from pathlib import Path

import numpy
import pytest
import timm
import torch
from PIL import Image

from hyena_vision import train as train_imagenet
from hyena_vision.data import DataError, ImageDataset
from hyena_vision.training import loop
from hyena_vision.training.arguments import Arguments
from hyena_vision.training.checkpoint_files import read_checkpoint
from hyena_vision.training.config import parse_args
from hyena_vision.training.resolve import resolve

ROOT = Path(__file__).parents[1]

MODEL = ["--model", "hyena2d_iso_tiny", "--model-kwargs", "img_size=16", "patch_size=4", "embed_dim=16", "depth=1"]
MODEL += ["filter_dim=8", "drop_path_rate=0.1"]
QUICK = ["--device", "cpu", *MODEL, "--num-classes", "3", "-b", "8", "-j", "0", "--opt", "adamw", "--lr", "1e-2"]
QUICK += "--epochs 2 --warmup-epochs 0 --mean 0.5 --std 0.5 --hflip 0 --color-jitter 0".split()
# One update of plain SGD over all 24 images: the change of the weights is the gradient of the whole set
ONE_UPDATE = ["--no-aug", "--opt", "momentum", "--momentum", "0", "--lr", "0.1", "--epochs", "1", "--sched-on-updates"]
ONE_UPDATE += ["--model-kwargs", *MODEL[3:-1]]
# Everything that draws random numbers
RANDOM = ["--drop", "0.2", "--mixup", "0.5", "--cutmix", "0.5", "--reprob", "0.5", "--model-ema", "--hflip", "0.5"]
RANDOM += ["--model-ema-decay", "0.9", "--aa", "rand-m9-mstd0.5-inc1"]


def arguments(*argv: str, **changes) -> Arguments:
    """Return resolved arguments of one process on the CPU, with some of them changed."""
    return Arguments(**vars(resolve(parse_args(["--device", "cpu", *argv]))) | changes)


def draw_images(folder: Path, counts: dict[str, int]) -> Path:
    """Write a folder of 16-pixel PNGs: three classes that differ in their strongest channel."""
    generator = numpy.random.default_rng(0)
    for split, count in counts.items():
        for channel, name in enumerate(("blue", "green", "red")):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 120, (16, 16, 3))
                pixels[..., channel] += 80
                Image.fromarray(pixels.astype("uint8")).save(folder / split / name / f"{index}.png")
    return folder


def load(folder: str | Path, name: str = "last.pth.tar") -> dict:
    return torch.load(Path(folder) / name, weights_only=True)


def summary(folder: str | Path) -> list[dict[str, str]]:
    with open(Path(folder) / "summary.csv", newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def assert_equal(first, second) -> None:
    """Compare nested dicts and lists of tensors and plain values, to the last bit."""
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_equal(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_equal(one, other)
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    else:
        assert first == second


def assert_same_run(first: str | Path, second: str | Path) -> None:
    """Compare two runs of the same settings to the last bit: weights, averages, optimizer, losses, history."""
    one, other = load(first), load(second)
    for key in one.keys() - {"args", "saver"}:
        assert_equal(one[key], other[key])
    for checkpoint in (one, other):
        checkpoint["saver"]["checkpoint_files"].sort()
    assert_equal(one["saver"], other["saver"])
    assert Path(first, "summary.csv").read_bytes() == Path(second, "summary.csv").read_bytes()
    assert_equal(*(read_checkpoint(f"{folder}/model.safetensors") for folder in (first, second)))


def load_exported(folder: str | Path) -> torch.nn.Module:
    """Return the exported model of a run, from a folder without checkpoints, which older timm stumbles over."""
    alone = Path(folder) / "alone"
    alone.mkdir(exist_ok=True)
    for name in ("model.safetensors", "config.json"):
        shutil.copy(Path(folder) / name, alone)
    return timm.create_model(f"local-dir:{alone}", pretrained=True).eval()


def expect_error(capsys, argv: list[str], code: int, *fragments: str) -> None:
    """Run the program and expect one line on stderr and an exit code."""
    with pytest.raises(SystemExit) as stopped:
        train_imagenet.main(argv)
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if "error:" in line]
    assert stopped.value.code == code, lines
    assert len(errors) == 1 and "Traceback" not in "\n".join(lines), lines
    for fragment in fragments:
        assert fragment in errors[0], errors[0]


def signal_at(patch: pytest.MonkeyPatch, call: int, number: int = signal.SIGTERM, function: str = "seed_generators"):
    """Send this process a signal at the n-th step of training (or call of another function of the loop), from 1."""
    real, calls = getattr(loop, function), []

    def signalled(*args, **kwargs):
        calls.append(None)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return real(*args, **kwargs)

    patch.setattr(loop, function, signalled)


def fail_in(patch: pytest.MonkeyPatch, split: str, call: int, fault) -> None:
    """Let a fault come with the n-th image of a split that a process reads, from 1."""
    read, calls = ImageDataset.__getitem__, []

    def read_or_fail(self, index):
        calls.append(f"{os.sep}{split}{os.sep}" in self.filename(index, absolute=True))
        if calls[-1] and sum(calls) == call:
            fault()
        return read(self, index)

    patch.setattr(ImageDataset, "__getitem__", read_or_fail)


def bad_image():
    raise DataError("cannot read image 7.png")
