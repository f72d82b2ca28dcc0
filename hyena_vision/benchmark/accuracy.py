"""Accuracy against cost: models trained by one recipe at several image sizes and seeds, then timed at those sizes.

Works on any data that the trainer reads. With several learning rates each model is tuned alike: at each size all are
trained with the first seed, and the one with the best last validation is taken for the other seeds. A model is a name
of timm and, in the same quotes, its arguments: "hyena2d_vit_tiny depth=4". A call that was ended goes on where it was
when it is repeated.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import Tensor, nn

from hyena_vision.benchmark.figures import require_matplotlib, save_figure
from hyena_vision.benchmark.machine import describe_machine
from hyena_vision.benchmark.measure import SpeedRow, measure
from hyena_vision.benchmark.program import DTYPES, add_measurement_arguments
from hyena_vision.benchmark.step import count_flops
from hyena_vision.benchmark.study import is_finished, train_run
from hyena_vision.benchmark.tables import markdown_table, write_csv
from hyena_vision.benchmark.timing import attempt
from hyena_vision.training.arguments import positive_float, positive_int
from hyena_vision.training.checkpoint_files import read_exported
from hyena_vision.training.report import read_results, read_summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Trial:
    """One run.

    Attributes:
        model: Name and arguments.
        size: Side of the images, in pixels.
        lr: Learning rate; None for that of the recipe.
        seed: Of the run.
        epochs: That it trained.
        top1: Of the last epoch, in per cent.
        loss: Of the last epoch, on the images to validate on.
        train_images_per_s: While it trained, among whatever else ran.
    """

    model: str
    size: int
    lr: float | None
    seed: int
    epochs: int
    top1: float
    loss: float
    train_images_per_s: float | None


@dataclass(frozen=True)
class AccuracyRow:
    """A model at one size.

    Attributes:
        model: Name and arguments.
        size: Side of the images, in pixels.
        lr: Learning rate that was taken; None for that of the recipe.
        top1: Mean over seeds, in per cent.
        spread: Standard deviation over seeds, in points.
        seeds: Number of seeds.
        parameters: Of the model.
        gflops: 10^9 FLOPs of one image, as of `step.count_flops`.
        images_per_s: Of inference, median of the rounds.
        ratio: That over the first model's in the same rounds.
        peak_mb: Peak memory of inference in 10^6 bytes, weights included.
        status: Of the measurement: "ok", or why there is none.
        machine: What it ran on.
    """

    model: str
    size: int
    lr: float | None
    top1: float
    spread: float
    seeds: int
    parameters: int
    gflops: float | None
    images_per_s: float | None
    ratio: float | None
    peak_mb: float | None
    status: str
    machine: str


def add_command(commands: Any) -> None:
    """Add the sub-command `accuracy`."""
    parser = commands.add_parser(
        "accuracy", help="accuracy against speed and memory, trained here", description=__doc__
    )
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--task", metavar="NAME", help="a data set of the trainer, such as sklearn/digits")
    source.add_argument("--data-dir", metavar="DIR", help="folder of images")
    add("--recipe", required=True, metavar="FILE", help="YAML file of flags for all runs")
    add("--models", nargs="+", required=True, metavar="NAME", help='of timm, with arguments: "NAME depth=4"')
    add("--img-sizes", type=positive_int, nargs="+", required=True, metavar="N", help="sides, in pixels")
    add("--seeds", type=positive_int, default=3, metavar="N", help="runs of each model at each size")
    add(
        "--lrs",
        type=positive_float,
        nargs="+",
        default=[None],
        metavar="LR",
        help="rates to try (default: the recipe's)",
    )
    add("-b", "--batch-size", type=positive_int, default=1, metavar="N", help="images per call when models are timed")
    add_measurement_arguments(parser)
    add("--args", nargs=argparse.REMAINDER, default=[], help="what follows goes to all runs")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> list[AccuracyRow]:
    """Train what is missing, time all, print the table, and write trials.csv, accuracy.csv, accuracy.md and .png.

    Args:
        args: Parsed arguments of the sub-command.

    Returns:
        The rows.

    Raises:
        UserError: A run fails, or matplotlib is missing; what is trained is kept.
    """
    require_matplotlib()
    output = Path(args.output or "output/accuracy")
    trials: list[Trial] = []
    progress = Progress(sum(args.img_sizes) * len(args.models) * (len(args.lrs) + args.seeds - 1))
    for size in args.img_sizes:
        for model in args.models:
            tuning = [train(args, output, model, size, lr, 0, progress) for lr in args.lrs]
            best = max(tuning, key=lambda trial: (trial.top1, -trial.loss))
            others = [train(args, output, model, size, best.lr, seed, progress) for seed in range(1, args.seeds)]
            trials += [*tuning, *others]
            write_csv(trials, str(output), "trials.csv")
    rows = [row for size in args.img_sizes for row in compare(args, output, size, trials)]
    write_csv(rows, str(output), "accuracy.csv")
    text = markdown_table(rows, [name for name in vars(rows[0]) if name not in ("machine", "status")])
    what = args.task or args.data_dir
    (output / "accuracy.md").write_text(f"{what}. {describe_machine()}\n\n{text}\n", encoding="utf-8")
    save_figure(plot(rows), str(output), "accuracy.png")
    print(text)
    return rows


class Progress:
    """Says what is done and how long the rest will take, if runs take time by the side of their images.

    Args:
        total: Sum of the sides of all runs.
    """

    def __init__(self, total: int):
        """Start the clock."""
        self.total, self.done, self.left_out, self.start = total, 0, 0, time.monotonic()

    def add(self, name: str, size: int, trained: bool) -> None:
        """Count a run, and say so if it was trained now."""
        self.done += size
        self.left_out += 0 if trained else size
        if trained:
            left = (time.monotonic() - self.start) / (self.done - self.left_out) * (self.total - self.done)
            print(f"{name}: done, {self.done / self.total:.0%} of all, {left / 60:.0f} minutes left", flush=True)


def folder_of(output: Path, model: str, size: int, lr: float | None, seed: int) -> Path:
    """The folder of a run."""
    rate = "" if lr is None else f"-lr{lr:g}"
    return output / "runs" / f"{model.replace(' ', '-').replace('/', '-')}-{size}{rate}-seed{seed}"


def train(
    args: argparse.Namespace, output: Path, model: str, size: int, lr: float | None, seed: int, progress: Progress
) -> Trial:
    """Train once, unless that is done, and return what came."""
    folder = folder_of(output, model, size, lr, seed)
    missing = not is_finished(folder)
    if missing:
        name, *kwargs = model.split()
        flags = ["-c", args.recipe, "--model", name, "--img-size", str(size), "--seed", str(seed)]
        flags += ["--dataset", args.task] if args.task else ["--data-dir", args.data_dir]
        flags += ["--model-kwargs", *kwargs] if kwargs else []
        flags += [] if lr is None else ["--lr", str(lr)]
        train_run(folder, [*flags, "--device", args.device, *args.args])
    progress.add(folder.name, size, missing)
    last, results = read_summary(str(folder))[-1], read_results(str(folder))
    told = last["eval_top1"], last["eval_loss"], results["images_per_second"]
    return Trial(model, size, lr, seed, round(last["epoch"]) + 1, *told)


def create_untrained(folder: str, **kwargs: Any) -> tuple[nn.Module, tuple[int, int, int]]:
    """Make the model of a run without its weights, which cost neither time nor memory, and say the size of its images.

    Args:
        folder: Of the run.
        **kwargs: More arguments of the model.
    """
    name, own, config, _ = read_exported(os.path.join(folder, "config.json"))
    channels, *size = config["input_size"]
    own = {"num_classes": config["num_classes"], "in_chans": channels, **own, **kwargs}
    model = timm.create_model(name, **own).eval()
    if hasattr(model, "set_input_size"):
        model.set_input_size(img_size=tuple(size))
    return model, (channels, *size)


def make_inference(folders: dict[str, str], settings: dict[str, Any], name: str) -> Callable[[], Tensor]:
    """Make a function that runs a model on random images, by columns of `measure.SpeedRow`."""
    device, dtype = settings["device"], settings["dtype"]
    with torch.device(device):
        model, size = create_untrained(folders[name])
        images = torch.randn(settings["batch_size"], *size)

    @torch.inference_mode()
    def infer() -> Tensor:
        with torch.autocast(torch.device(device).type, DTYPES[dtype], enabled=dtype != "float32"):
            return model(images)

    return infer


def count_gflops(folder: str) -> float | None:
    """Count the 10^9 FLOPs of the model of a run for one image, as `step.count_flops`; None where that cannot be."""

    def count() -> int:
        ours = timm.model_entrypoint(read_exported(os.path.join(folder, "config.json"))[0]).__module__
        kwargs = {"backend": "fft"} if ours.startswith("hyena_vision.") else {}
        with torch.device("meta"):
            model, size = create_untrained(folder, **kwargs)
            return count_flops(model, torch.empty(1, *size))

    flops, _ = attempt(count)
    return flops and flops / 1e9


def compare(args: argparse.Namespace, output: Path, size: int, trials: Sequence[Trial]) -> Iterator[AccuracyRow]:
    """Time the models of one size in turn, and put their accuracy beside it."""
    taken = {model: _taken(trials, model, size) for model in args.models}
    folders = {model: str(folder_of(output, model, size, own[0].lr, 0)) for model, own in taken.items()}
    settings = dict(batch_size=args.batch_size, device=args.device, dtype=args.dtype)
    columns = dict(size=size, mode="infer", base=args.models[0], **settings)
    make = partial(make_inference, folders, settings)
    speeds: list[SpeedRow] = measure(make, dict.fromkeys(args.models), args.memory, dict(rounds=args.rounds), **columns)
    for speed in speeds:
        own = taken[speed.name]
        top1 = [trial.top1 for trial in own]
        yield AccuracyRow(
            speed.name,
            size,
            own[0].lr,
            statistics.mean(top1),
            statistics.stdev(top1) if len(top1) > 1 else 0.0,
            len(top1),
            read_results(folders[speed.name])["parameters"],
            count_gflops(folders[speed.name]),
            speed.images_per_s,
            speed.ratio,
            speed.peak_mb,
            speed.status,
            speed.machine,
        )


def _taken(trials: Sequence[Trial], model: str, size: int) -> list[Trial]:
    """The runs of the learning rate that was taken, by seed."""
    own = [trial for trial in trials if (trial.model, trial.size) == (model, size)]
    first = max((trial for trial in own if trial.seed == 0), key=lambda trial: (trial.top1, -trial.loss))
    return [trial for trial in own if trial.lr == first.lr]


def plot(rows: Sequence[AccuracyRow]) -> "Figure":
    """Draw accuracy against images/s and against memory, a line for each model, a point for each size.

    Args:
        rows: Of all models and sizes.

    Returns:
        A figure of matplotlib.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    for axes, (column, text) in zip(
        figure.subplots(1, 2), (("images_per_s", "images/s"), ("peak_mb", "peak memory (MB)")), strict=True
    ):
        for index, model in enumerate(dict.fromkeys(row.model for row in rows)):
            own = [row for row in rows if row.model == model and getattr(row, column) is not None]
            at = [getattr(row, column) for row in own]
            style = dict(marker="o", color=f"C{index}", capsize=3, label=model)
            axes.errorbar(at, [row.top1 for row in own], yerr=[row.spread for row in own], **style)
            for row, x in zip(own, at, strict=True):
                axes.annotate(
                    f"{row.size}", (x, row.top1), textcoords="offset points", xytext=(4, 5), fontsize="x-small"
                )
        axes.set(xscale="log", xlabel=text, ylabel="validation top-1 (%)")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small")
    return figure
