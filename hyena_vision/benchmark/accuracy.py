"""Accuracy against cost: models trained by one recipe at several image sizes and seeds, then timed at those sizes.

Works on any data that the trainer reads. With several learning rates each model is tuned alike: at each size all are
trained with the first seed, and the one with the best last validation is taken for the other seeds. A model is a name
of timm and, in the same quotes, its arguments: "hyena2d_vit_tiny depth=4". A word with a colon before them is what
tables call it: "shallow: hyena2d_vit_tiny depth=4". "{size/8}" is the side of the images over 8, as for base_grid of
patches of 8; where a model is validated at other sizes (`transfer`) it stays that of training, and "{at/8}" is of the
images at hand. Models are timed in the precision that the recipe trains in (`amp`), or in `--dtype`.

A call that was ended goes on where it was when it is repeated. trials.csv is the record: what stands there is not
trained again, even where the folders of its runs are gone.
"""

import argparse
import math
import re
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
import yaml
from torch import Tensor, nn

from hyena_vision.benchmark.figures import require_matplotlib, save_figure
from hyena_vision.benchmark.machine import describe_machine
from hyena_vision.benchmark.measure import SpeedRow, measure
from hyena_vision.benchmark.processes import pass_sigterm_on
from hyena_vision.benchmark.program import DTYPES, add_measurement_arguments
from hyena_vision.benchmark.step import count_flops
from hyena_vision.benchmark.study import is_finished, train_run
from hyena_vision.benchmark.tables import markdown_table, read_csv, write_csv
from hyena_vision.benchmark.timing import OK, attempt
from hyena_vision.data import target_channels
from hyena_vision.training.arguments import Arguments, positive_float, positive_int
from hyena_vision.training.classes import NOTHING_KNOWN, fit_head
from hyena_vision.training.config import parse_args
from hyena_vision.training.errors import UserError, one_line
from hyena_vision.training.freeze import count_parameters
from hyena_vision.training.meta import meta_device
from hyena_vision.training.model import create_model, data_config
from hyena_vision.training.optim import create_optimizer
from hyena_vision.training.report import read_results, read_summary
from hyena_vision.training.resolve import resolve
from hyena_vision.training.splits import create_datasets
from hyena_vision.training.task import create_task

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Validation:
    """One validation of one run.

    Attributes:
        model: What it is called.
        size: Side of the images, in pixels.
        lr: Learning rate; None for that of the recipe.
        seed: Of the run.
        updates: Of the weights so far.
        top1: In per cent; None where the targets are pictures.
        loss: On the images to validate on; of pictures the mean squared error.
    """

    model: str
    size: int
    lr: float | None
    seed: int
    updates: int
    top1: float | None
    loss: float

    @property
    def metric(self) -> str:
        """What `value` is."""
        return "mse" if self.top1 is None else "top1"

    @property
    def value(self) -> float:
        """Accuracy in per cent, or the error of pictures."""
        return self.loss if self.top1 is None else self.top1

    @property
    def rank(self) -> tuple[float, float]:
        """What is larger for a better one."""
        return (-self.loss if self.top1 is None else self.top1), -self.loss


@dataclass(frozen=True)
class AccuracyRow:
    """A model at one size.

    Attributes:
        model: What it is called.
        size: Side of the images, in pixels.
        lr: Learning rate that was taken; None for that of the recipe.
        metric: "top1" in per cent, or "mse" of pictures.
        value: Mean over seeds, after the last epoch.
        spread: Standard deviation over seeds.
        seeds: Number of seeds.
        parameters: Of the model.
        gflops: 10^9 FLOPs of one image, as of `step.count_flops`.
        images_per_s: Of inference, median of the rounds.
        ratio: That over the first model's in the same rounds.
        peak_mb: Peak memory of inference in 10^6 bytes, weights included.
        train_images_per_s: Of training steps with the recipe's batches, loading of images not counted.
        train_ratio: That over the first model's in the same rounds.
        train_peak_mb: Peak memory of training, as above.
        train_minutes: What the updates of a run take at that speed.
        status: Of the measurements: "ok", or why there is none.
        machine: What it ran on.
    """

    model: str
    size: int
    lr: float | None
    metric: str
    value: float
    spread: float
    seeds: int
    parameters: int
    gflops: float | None
    images_per_s: float | None
    ratio: float | None
    peak_mb: float | None
    train_images_per_s: float | None
    train_ratio: float | None
    train_peak_mb: float | None
    train_minutes: float | None
    status: str
    machine: str


def add_command(commands: Any) -> None:
    """Add the sub-command `accuracy`."""
    parser = commands.add_parser(
        "accuracy", help="accuracy against speed and memory, trained here", description=__doc__
    )
    add = parser.add_argument
    add_training_arguments(parser)
    add("--img-sizes", type=positive_int, nargs="+", required=True, metavar="N", help="sides, in pixels")
    add("--seeds", type=positive_int, default=3, metavar="N", help="runs of each model at each size")
    text = "rates to try (default: the recipe's)"
    add("--lrs", type=positive_float, nargs="+", default=[None], metavar="LR", help=text)
    add("--jobs", type=positive_int, default=1, metavar="N", help="runs that are trained at a time")
    add("-b", "--batch-size", type=positive_int, default=1, metavar="N", help="images per call when models are timed")
    add_measurement_arguments(parser)
    parser.set_defaults(run=run, dtype=None)  # that of the recipe


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what to train, on what and how: the arguments of `accuracy`, `transfer` and `stability`."""
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--task", metavar="NAME", help="a data set of the trainer, such as hyena/far_digits")
    source.add_argument("--data-dir", metavar="DIR", help="folder of images")
    add("--recipe", required=True, metavar="FILE", help="YAML file of flags for all runs")
    text = 'of timm, with arguments and what to call it: "WORD: NAME depth=4"'
    add("--models", nargs="+", required=True, metavar="NAME", help=text)
    add("--args", nargs=argparse.REMAINDER, default=[], help="what follows goes to all runs")


@pass_sigterm_on()
def run(args: argparse.Namespace) -> list[AccuracyRow]:
    """Train what is missing, time all, print the table, and write trials.csv, accuracy.csv, accuracy.md and figures.

    Args:
        args: Parsed arguments of the sub-command.

    Returns:
        The rows.

    Raises:
        UserError: A run fails, the folder holds runs of another recipe, or matplotlib is missing; what is trained is
            kept.
    """
    require_matplotlib()
    args = argparse.Namespace(**{**vars(args), "models": named(args.models)})
    output = Path(args.output or "output/accuracy")
    record = Record(output, args)
    with ThreadPoolExecutor(args.jobs) as pool:
        groups = [(size, model) for size in args.img_sizes for model in args.models]
        for _ in pool.map(lambda group: train_all(args, record, *group), groups):
            pass
    rows = [row for size in args.img_sizes for row in compare(args, size, record)]
    write_csv(rows, str(output), "accuracy.csv")
    hidden = ("machine", "status", "metric")
    text = markdown_table(rows, [name for name in vars(rows[0]) if name not in hidden])
    what = f"{args.task or args.data_dir}, value: {rows[0].metric}. {describe_machine()}"
    (output / "accuracy.md").write_text(f"{what}\n\n{text}\n", encoding="utf-8")
    save_figure(plot(rows), str(output), "accuracy.png")
    save_figure(plot_curves(rows, record), str(output), "curves.png")
    print(text)
    return rows


def named(models: Sequence[str]) -> dict[str, str]:
    """Return name and arguments of each model by what it is called, which is the same where nothing is said.

    Raises:
        UserError: Two are called alike, or so that their runs would have the same folder.
    """
    found: dict[str, str] = {}
    for text in models:
        label, colon, words = text.partition(": ")
        if folder_name(label.strip()) in map(folder_name, found):
            raise UserError(f"argument --models: expected another name for each model, got {label.strip()!r} twice")
        found[label.strip()] = (words if colon else text).strip()
    return found


def folder_name(model: str) -> str:
    """Return what the folders of a model's runs begin with."""
    return re.sub(r"[^\w.=-]+", "-", model)


def keep_settings(output: Path, args: argparse.Namespace, **more: Any) -> None:
    """Write the settings of all runs of a folder to its recipe.yaml, or see that they are those of the calls before.

    Args:
        output: The folder.
        args: Of the sub-command; it may name more models than the calls before.
        **more: Further settings; what is empty may be another in one of the calls.

    Raises:
        UserError: They are others, or a file of settings cannot be read.
    """
    path = output / "recipe.yaml"
    own = {"task": args.task, "data_dir": args.data_dir, "recipe": _read_yaml(args.recipe), "args": args.args}
    before = (_read_yaml(path) if path.exists() and (output / "trials.csv").exists() else None) or {**own, "models": {}}
    own |= {name: value or before.get(name, value) for name, value in more.items()}
    settings = {**own, "models": {**before["models"], **args.models}}
    filled = {name: own[name] for name in more if not before.get(name)}
    if settings != {**before, **filled, "models": {**args.models, **before["models"]}}:
        raise UserError(f"{output} holds runs of another recipe: expected {before}, got {settings}")
    output.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def _read_yaml(path: str | Path) -> Any:
    """Read a file of settings."""
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {path}: {one_line(error)}") from error


class Trials:
    """What was validated: trials.csv of a folder. Threads may add to it.

    Args:
        output: The folder.
    """

    def __init__(self, output: Path):
        """Read what is there."""
        self.output, self.lock, path = output, threading.Lock(), output / "trials.csv"
        self.trials: list[Validation] = read_csv(str(path), Validation) if path.exists() else []

    def add(self, validations: Sequence[Validation]) -> None:
        """Write validations down."""
        with self.lock:
            self.trials += validations
            write_csv(self.trials, str(self.output), "trials.csv")


class Record(Trials):
    """What was trained, and how much of it is done.

    Args:
        output: Folder of trials.csv, of the runs, and of recipe.yaml, which says by what they were trained.
        args: Of the sub-command.

    Raises:
        UserError: The folder is of another recipe, or one of the two cannot be read.
    """

    def __init__(self, output: Path, args: argparse.Namespace):
        """Read what is there."""
        keep_settings(output, args)
        super().__init__(output)
        self.lrs = args.lrs
        total = sum(args.img_sizes) * len(args.models) * (len(args.lrs) + args.seeds - 1)
        self.total, self.done, self.left_out, self.start = total, 0, 0, time.monotonic()

    def run(self, model: str, size: int, lr: float | None, seed: int) -> list[Validation]:
        """Return the validations of a run, in order; none if it has not been trained."""
        key = model, size, lr, seed
        return [each for each in self.trials if (each.model, each.size, each.lr, each.seed) == key]

    def count(self, name: str, size: int, trained: bool) -> None:
        """Count a run, and say how long the rest will take, if runs take time by the side of their images."""
        with self.lock:
            self.done += size
            self.left_out += 0 if trained else size
            if trained:
                left = (time.monotonic() - self.start) / (self.done - self.left_out) * (self.total - self.done)
                print(f"{name}: done, {self.done / self.total:.0%} of all, {left / 60:.0f} minutes left", flush=True)

    def best_lr(self, model: str, size: int) -> float | None:
        """Return the learning rate whose first seed ended best, of those that all models are tried with."""
        return max(self.lrs, key=lambda lr: self.run(model, size, lr, 0)[-1].rank)


def train_all(args: argparse.Namespace, record: Record, size: int, model: str) -> None:
    """Train a model at one size: all learning rates, then the other seeds with the best."""
    for lr in args.lrs:
        train(args, record, model, size, lr, 0)
    for seed in range(1, args.seeds):
        train(args, record, model, size, record.best_lr(model, size), seed)


def train(args: argparse.Namespace, record: Record, model: str, size: int, lr: float | None, seed: int) -> None:
    """Train once, unless that is done, and write it down; what was not finite counts as the worst there can be."""
    rate = "" if lr is None else f"-lr{lr:g}"
    folder = record.output / "runs" / f"{folder_name(model)}-{size}{rate}-seed{seed}"
    missing = not record.run(model, size, lr, seed)
    if missing:
        if not is_finished(folder):
            more = ["--seed", str(seed)] + ([] if lr is None else ["--lr", str(lr)])
            try:
                train_run(folder, [*flags(args, model, size), *more])
            except UserError as error:
                if "not finite" not in str(error):
                    raise
                top1 = None if args.task and target_channels(args.task) else 0.0
                record.add([Validation(model, size, lr, seed, 0, top1, math.inf)])
                record.count(f"{folder.name} (not finite)", size, missing)
                return
        each = read_results(str(folder))["updates_per_epoch"]
        record.add(
            [
                Validation(
                    model, size, lr, seed, round(each * (row["epoch"] + 1)), row.get("eval_top1"), row["eval_loss"]
                )
                for row in validated(folder)
            ]
        )
    record.count(folder.name, size, missing)


def validated(folder: Path) -> list[dict[str, float]]:
    """Return the rows of a run's summary that have a validation.

    Raises:
        UserError: There is none.
    """
    rows = [row for row in read_summary(str(folder)) if "eval_loss" in row]
    if not rows:
        raise UserError(f"the run {folder} was not validated: expected images to validate on")
    return rows


def flags(args: argparse.Namespace, model: str, size: int) -> list[str]:
    """Return the flags of the training program for a model at one size.

    Raises:
        UserError: `--args` has flags that differ from model to model or from size to size.
    """
    for word in args.args:
        if word.partition("=")[0] in ("--model", "--model-kwargs", "--img-size"):
            raise UserError(f"argument --args: expected flags for all models and sizes, got {word}: see --models")
    name, *own = spelled(args.models[model], size, size)
    words = ["-c", args.recipe, "--model", name, "--img-size", str(size), "--device", args.device]
    words += ["--dataset", args.task] if args.task else ["--data-dir", args.data_dir]
    words += ["--model-kwargs", *own] if own else []
    return [*words, *args.args]


def spelled(text: str, size: int, at: int) -> list[str]:
    """Return name and arguments of a model that is trained at one size, for images of another."""
    sides = {"size": size, "at": at}
    return re.sub(r"\{(size|at)/(\d+)\}", lambda found: str(sides[found[1]] // int(found[2])), text).split()


def resolve_models(args: argparse.Namespace, size: int) -> dict[str, Arguments]:
    """Return the training program's arguments for each model at one size, with as many classes as the data have."""
    resolved = {model: resolve(parse_args(flags(args, model, size))) for model in args.models}
    classes = create_datasets(next(iter(resolved.values()))).class_to_idx
    return {model: fit_head(own, NOTHING_KNOWN, classes) for model, own in resolved.items()}


def create_untrained(args: Arguments, **kwargs: Any) -> tuple[nn.Module, tuple[int, int, int]]:
    """Make the model of a run without its weights, which cost neither time nor memory, and say the size of its images.

    Args:
        args: Of the training program.
        **kwargs: More arguments of the model.
    """
    own = {"model_kwargs": {**args.model_kwargs, **kwargs}, "initial_checkpoint": ""}
    if not args.convert:
        own |= {"pretrained": False, "pretrained_path": None}
    model = create_model(Arguments(**{**vars(args), **own}))
    return model, tuple(data_config(args, model)["input_size"])


def make_step(models: dict[str, Arguments], columns: dict[str, Any], name: str) -> Callable[[], Tensor]:
    """Make a function that runs a model on random images: inference, or a training step with the recipe's loss.

    Args:
        models: Arguments of the training program, by name.
        columns: Of `measure.SpeedRow`: `mode`, `batch_size`, `device`, `dtype`.
        name: Of the model.
    """
    args, device, dtype = models[name], torch.device(columns["device"]), columns["dtype"]
    with device:
        model, size = create_untrained(args)
        images = torch.randn(columns["batch_size"], *size)

    def autocast() -> Any:
        return nullcontext() if dtype == "float32" else torch.autocast(device.type, DTYPES[dtype])

    if columns["mode"] == "infer":
        model.eval()

        @torch.inference_mode()
        def infer() -> Tensor:
            with autocast():
                return model(images)

        return infer
    task, optimizer = create_task(args, model, device), create_optimizer(args, model, lr=1e-4)
    if channels := target_channels(args.dataset):
        targets = torch.zeros(len(images), channels, *size[1:], device=device)
    else:
        targets = torch.arange(len(images), device=device) % model.num_classes

    def train() -> Tensor:
        with autocast():
            loss = task(images, targets)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return train


def count_costs(args: Arguments) -> tuple[int, float | None]:
    """Count a model's parameters and the 10^9 FLOPs of one image, as `step.count_flops`; None where that cannot be."""
    seen: dict[str, Any] = {}  # arguments for mixers that torch sees through
    if "replace" in args.model_kwargs:
        seen["replace"] = [{**each, "backend": "fft"} for each in args.model_kwargs["replace"]]
    elif timm.model_entrypoint(args.model.split(".")[0]).__module__.startswith("hyena_vision."):
        seen["backend"] = "fft"
    with meta_device():
        model, size = create_untrained(args, **seen)
        flops, _ = attempt(lambda: count_flops(model.eval(), torch.empty(1, *size)))
    return count_parameters(model), flops and flops / 1e9


def compare(args: argparse.Namespace, size: int, record: Record) -> Iterator[AccuracyRow]:
    """Time the models of one size in turn, and put their accuracy beside it."""
    models = resolve_models(args, size)
    recipe = next(iter(models.values()))
    dtype = args.dtype or (recipe.amp_dtype if recipe.amp else "float32")
    speeds: dict[str, list[SpeedRow]] = {}
    for mode, batch_size, calls in ("infer", args.batch_size, 1), ("train", recipe.batch_size, 2):
        columns = dict(mode=mode, batch_size=batch_size, device=args.device, dtype=dtype)
        make, rounds = partial(make_step, models, columns), dict(rounds=args.rounds)
        names, base = dict.fromkeys(args.models), next(iter(args.models))
        speeds[mode] = measure(make, names, args.memory, rounds, calls, size=size, base=base, **columns)
    for infer, step in zip(speeds["infer"], speeds["train"], strict=True):
        lr = record.best_lr(infer.name, size)
        last = [record.run(infer.name, size, lr, seed)[-1] for seed in range(args.seeds)]
        values = [each.value for each in last]
        images = max(each.updates for each in last) * step.batch_size * recipe.grad_accum_steps
        yield AccuracyRow(
            infer.name,
            size,
            lr,
            last[0].metric,
            statistics.mean(values),
            statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else 0.0,
            len(values),
            *count_costs(models[infer.name]),
            infer.images_per_s,
            infer.ratio,
            infer.peak_mb,
            step.images_per_s,
            step.ratio,
            step.peak_mb,
            (step.images_per_s and images / step.images_per_s / 60) or None,
            infer.status if infer.status != OK else step.status,
            infer.machine,
        )


LABELS = {"top1": "validation top-1 (%)", "mse": "validation error (MSE)"}


def plot(rows: Sequence[AccuracyRow]) -> "Figure":
    """Draw accuracy against images/s and against memory, a line for each model, a point for each size.

    Args:
        rows: Of all models and sizes.

    Returns:
        A figure of matplotlib.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = ("images_per_s", "images/s, inference"), ("peak_mb", "peak memory, inference (MB)")
    for axes, (column, text) in zip(figure.subplots(1, 2), panels, strict=True):
        measured = [row for row in rows if getattr(row, column) is not None]
        for index, model in enumerate(dict.fromkeys(row.model for row in rows)):
            own = [row for row in measured if row.model == model]
            at = [getattr(row, column) for row in own]
            style = dict(marker="o", color=f"C{index}", capsize=3, label=model)
            axes.errorbar(at, [row.value for row in own], yerr=[row.spread for row in own], **style)
            for row, x in zip(own, at, strict=True):
                options = dict(textcoords="offset points", xytext=(4, 5), fontsize="x-small")
                axes.annotate(f"{row.size}", (x, row.value), **options)
        axes.set(xlabel=text, ylabel=LABELS[rows[0].metric])
        if measured:
            axes.set(xscale="log", yscale="log" if rows[0].metric == "mse" else "linear")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small")
    return figure


def plot_curves(rows: Sequence[AccuracyRow], record: Record) -> "Figure":
    """Draw how models learn: against updates, and against the time that these take alone on the machine.

    Args:
        rows: Of all models and sizes.
        record: Their validations; drawn is the mean over seeds of the learning rate that was taken, as far as all of
            them go.

    Returns:
        A figure of matplotlib, with a line of panels for each size.
    """
    from matplotlib.figure import Figure

    sizes = list(dict.fromkeys(row.size for row in rows))
    figure = Figure(figsize=(11, 3.6 * len(sizes)), layout="constrained")
    for size, panels in zip(sizes, figure.subplots(len(sizes), 2, squeeze=False), strict=True):
        for index, row in enumerate(row for row in rows if row.size == size):
            runs = [record.run(row.model, size, row.lr, seed) for seed in range(row.seeds)]
            means = [statistics.mean(each.value for each in at) for at in zip(*runs, strict=False)]
            updates = [each.updates for each in max(runs, key=len)]
            panels[0].plot(updates[: len(means)], means, color=f"C{index}", label=row.model)
            if row.train_minutes is not None:
                minutes = [row.train_minutes * count / updates[-1] for count in updates]
                panels[1].plot(minutes[: len(means)], means, color=f"C{index}")
        for axes, text in zip(panels, ("updates", "minutes of training steps"), strict=True):
            axes.set(xlabel=f"{text} at {size} px", ylabel=LABELS[rows[0].metric])
            axes.set_yscale("log" if rows[0].metric == "mse" else "linear")
            axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small")
    return figure
