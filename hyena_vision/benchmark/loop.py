"""Overhead of the training loop: images/s with a model that does nothing, against timm's loader iterated alone.

The loop does more than the loader: seeds for each sample and step, loss, backward pass, the check that all is finite,
optimizer, schedule, log. With a model that does nothing this is all that is left, at the worst ratio it can have.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from timm.data import create_loader
from timm.task import ClassificationTask
from torch import nn
from torch.utils.benchmark import Timer

from hyena_vision.benchmark.machine import describe_machine
from hyena_vision.data import create_dataset
from hyena_vision.training.config import parse_args
from hyena_vision.training.loop import Run, train_one_epoch
from hyena_vision.training.run_state import Parts, Progress
from hyena_vision.training.seeded_loader import TrainLoader


class Nothing(nn.Module):
    """A classifier of a thousand classes with a single parameter, which does not look at its images."""

    def __init__(self):
        """Make the parameter."""
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits of shape (B, 1000)."""
        return self.bias.expand(len(images), 1000)


def add_command(commands: Any) -> None:
    """Add the sub-command `loop`."""
    parser = commands.add_parser("loop", help="overhead of the training loop", description=__doc__)
    parser.add_argument("--images", type=int, default=512, metavar="N", help="JPEG files to write and read")
    parser.add_argument("--side", type=int, default=320, metavar="N", help="their side in pixels")
    parser.add_argument("--img-size", type=int, default=224, metavar="N", help="side of the training images")
    parser.add_argument("-b", "--batch-size", type=int, default=64, metavar="N")
    parser.add_argument("-j", "--workers", type=int, default=2, metavar="N", help="loader processes")
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="epochs of each contender")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> dict[str, float]:
    """Measure and print.

    Args:
        args: Parsed arguments of the sub-command.

    Returns:
        Median images/s of `timm loader` and `training loop`, and the median `ratio` of neighbouring epochs.
    """
    # The cores that the workers leave: OpenMP threads that wait for work would take time from them
    torch.set_num_threads(max(1, (os.cpu_count() or 1) - args.workers))
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), args.images, args.side)
        contenders = {"timm loader": bare_epoch(folder, args), "training loop": training_epoch(folder, args)}
        for epoch in contenders.values():
            epoch()  # starts the workers
        speeds: dict[str, list[float]] = {name: [] for name in contenders}
        images = args.images // args.batch_size * args.batch_size
        for _ in range(args.rounds):
            for name, epoch in contenders.items():
                time = Timer("epoch()", globals={"epoch": epoch}, num_threads=torch.get_num_threads()).timeit(1)
                speeds[name].append(images / time.mean)
    bare, loop = speeds.values()
    ratios = [ours / theirs for ours, theirs in zip(loop, bare, strict=True)]
    print(f"{describe_machine()}; {args.images} JPEG files of {args.side} px, {args.workers} workers")
    for name, values in {**speeds, "ratio": ratios}.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"{name:14} median {middle:9.3f}   quartiles {low:9.3f} {high:9.3f}   rounds {len(values)}")
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    return {**medians, "ratio": statistics.median(ratios)}


def write_images(folder: Path, count: int, side: int) -> None:
    """Write smooth coloured JPEG files of one class."""
    generator = numpy.random.default_rng(0)
    (folder / "class").mkdir()
    for index in range(count):
        pixels = generator.integers(0, 256, (8, 8, 3)).astype("uint8")
        Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(folder / "class" / f"{index}.jpg")


def _loader(folder: str, args: argparse.Namespace):
    return create_loader(
        create_dataset("", root=folder, split="train"),
        (3, args.img_size, args.img_size),
        args.batch_size,
        is_training=True,
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
        device=torch.device("cpu"),
    )


def bare_epoch(folder: str, args: argparse.Namespace):
    """Return a function that iterates timm's loader once."""
    loader = _loader(folder, args)

    def epoch() -> None:
        for _ in loader:
            pass

    return epoch


def training_epoch(folder: str, args: argparse.Namespace):
    """Return a function that trains a model that does nothing for one epoch."""
    arguments = parse_args(["--device", "cpu", "--opt", "sgd"])
    arguments.rank, arguments.local_rank, arguments.world_size, arguments.distributed = 0, 0, 1, False
    loader = TrainLoader(_loader(folder, args), seed=0, rank=0)
    model = Nothing()
    task = ClassificationTask(model, nn.CrossEntropyLoss(), device=torch.device("cpu"), verbose=False)
    parts = Parts(task, torch.optim.SGD(model.parameters(), lr=0.1))
    run = Run(arguments, torch.device("cpu"), parts, batch_size=float(args.batch_size))
    return lambda: train_one_epoch(run, 0, loader, Progress())
