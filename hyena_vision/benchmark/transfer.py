"""Resolution transfer: models are trained at one image size, and validated at others.

Each is validated at the other sizes as it is, and once more after some training there (`--more`: flags of that run).
Models are those of `accuracy`. A call that was ended goes on where it was when it is repeated; other settings need
another folder.
"""

import argparse
import json
import statistics
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyena_vision.benchmark.accuracy import LABELS, flags, folder_name, keep_settings, named, validated
from hyena_vision.benchmark.figures import require_matplotlib, save_figure
from hyena_vision.benchmark.machine import describe_machine
from hyena_vision.benchmark.processes import last_line
from hyena_vision.benchmark.study import is_finished, train_run
from hyena_vision.benchmark.tables import markdown_table, read_csv, write_csv
from hyena_vision.training.arguments import positive_int
from hyena_vision.training.errors import UserError
from hyena_vision.training.report import read_results

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Trial:
    """A validation at one size.

    Attributes:
        model: What it is called.
        seed: Of its training.
        size: Side of the images, in pixels.
        updates: At that size; 0 for a model as it came from another.
        top1: In per cent; None where the targets are pictures.
        loss: On the images to validate on; of pictures the mean squared error.
    """

    model: str
    seed: int
    size: int
    updates: int
    top1: float | None
    loss: float


@dataclass(frozen=True)
class TransferRow:
    """A model at one size.

    Attributes:
        model: What it is called.
        trained_at: Side of the images that it was trained with, in pixels.
        size: Side of the images that it was validated with.
        updates: At that size.
        metric: "top1" in per cent, or "mse" of pictures.
        value: Mean over seeds.
        spread: Standard deviation over seeds.
        seeds: Number of seeds.
    """

    model: str
    trained_at: int
    size: int
    updates: int
    metric: str
    value: float
    spread: float
    seeds: int


def add_command(commands: Any) -> None:
    """Add the sub-command `transfer`."""
    parser = commands.add_parser("transfer", help="train at one image size, validate at others", description=__doc__)
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--task", metavar="NAME", help="a data set of the trainer, such as hyena/far_digits")
    source.add_argument("--data-dir", metavar="DIR", help="folder of images")
    add("--recipe", required=True, metavar="FILE", help="YAML file of flags for all runs")
    text = 'of timm, with arguments and what to call it: "WORD: NAME depth=4"'
    add("--models", nargs="+", required=True, metavar="NAME", help=text)
    add("--train-size", type=positive_int, required=True, metavar="N", help="side of the images to train with, pixels")
    add("--img-sizes", type=positive_int, nargs="+", required=True, metavar="N", help="other sides, in pixels")
    add("--seeds", type=positive_int, default=3, metavar="N", help="runs of each model")
    text = "flags of a run at another size, in one word; none without it: '--epochs 1 --warmup-epochs 0'"
    add("--more", default="", metavar="FLAGS", help=text)
    add("--jobs", type=positive_int, default=1, metavar="N", help="models that are trained at a time")
    add("--device", default="cpu", help="to train on")
    add("--output", required=True, metavar="DIR", help="folder for runs, table and figure")
    add("--args", nargs=argparse.REMAINDER, default=[], help="what follows goes to all runs")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> list[TransferRow]:
    """Train and validate what is missing, print the table, and write trials.csv, transfer.csv, .md and .png.

    Args:
        args: Parsed arguments of the sub-command.

    Returns:
        The rows.

    Raises:
        UserError: A run fails, the folder holds runs of other settings, or matplotlib is missing; what is trained is
            kept.
    """
    require_matplotlib()
    sizes = [size for size in args.img_sizes if size != args.train_size]
    args = argparse.Namespace(**{**vars(args), "models": named(args.models), "img_sizes": sizes})
    keep_settings(Path(args.output), args, train_size=args.train_size, more=args.more)
    record = Record(Path(args.output))
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = [(model, seed) for seed in range(args.seeds) for model in args.models]
        for _ in pool.map(lambda each: train_and_validate(args, record, *each), runs):
            pass
    rows = summarize(args, record.trials)
    write_csv(rows, args.output, "transfer.csv")
    text = markdown_table(rows, [name for name in vars(rows[0]) if name != "metric"])
    what = f"{args.task or args.data_dir}, value: {rows[0].metric}. {describe_machine()}"
    (Path(args.output) / "transfer.md").write_text(f"{what}\n\n{text}\n", encoding="utf-8")
    save_figure(plot(rows), args.output, "transfer.png")
    print(text)
    return rows


class Record:
    """What was validated: trials.csv of a folder.

    Args:
        output: The folder.
    """

    def __init__(self, output: Path):
        """Read what is there."""
        self.output, self.lock, path = output, threading.Lock(), output / "trials.csv"
        self.trials: list[Trial] = read_csv(str(path), Trial) if path.exists() else []

    def has(self, model: str, seed: int, size: int, trained: bool) -> bool:
        """Whether a model was validated at a size, after training there or before."""
        return any((t.model, t.seed, t.size, t.updates > 0) == (model, seed, size, trained) for t in self.trials)

    def add(self, trial: Trial) -> None:
        """Write down a validation."""
        with self.lock:
            self.trials.append(trial)
            write_csv(self.trials, str(self.output), "trials.csv")
            print(f"{trial.model}, seed {trial.seed}, {trial.size} px after {trial.updates} updates: done", flush=True)


def train_and_validate(args: argparse.Namespace, record: Record, model: str, seed: int) -> None:
    """Train one model with one seed, and validate it at all sizes."""
    own = [*flags(args, model, args.train_size), "--seed", str(seed)]
    folder = record.output / "runs" / f"{folder_name(model)}-seed{seed}"

    def train(folder: Path, size: int, more: Sequence[str] = ()) -> None:
        if record.has(model, seed, size, trained=True):
            return
        if not is_finished(folder):
            train_run(folder, [*own, *more])
        last, updates = validated(folder)[-1], read_results(str(folder))["updates_per_epoch"]
        count = round(updates * (last["epoch"] + 1))
        record.add(Trial(model, seed, size, count, last.get("eval_top1"), last["eval_loss"]))

    missing = [size for size in args.img_sizes if not record.has(model, seed, size, trained=False)]
    missing += [size for size in args.img_sizes if args.more and not record.has(model, seed, size, trained=True)]
    if not missing and record.has(model, seed, args.train_size, trained=True):
        return
    if not is_finished(folder):  # others begin with its weights
        train_run(folder, own)
    train(folder, args.train_size)
    best = folder / "last.pth.tar"
    for size in args.img_sizes:
        if not record.has(model, seed, size, trained=False):
            result = evaluate([*("--eval", str(best), "--img-size", str(size), "--device", args.device), *args.args])
            record.add(Trial(model, seed, size, 0, result.get("top1"), result["loss"]))
        if args.more:
            begin = ["--img-size", str(size), "--initial-checkpoint", str(best), *args.more.split()]
            train(folder.with_name(f"{folder.name}-{size}"), size, begin)


def evaluate(words: Sequence[str]) -> dict[str, Any]:
    """Validate in a process of its own.

    Args:
        words: Of the training program.

    Raises:
        UserError: It fails.
    """
    command = [sys.executable, "-m", "hyena_vision.train", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{' '.join(words)} ended with code {done.returncode}: {last_line(done.stderr)}")
    return json.loads(done.stdout.rpartition("--result")[2])


def summarize(args: argparse.Namespace, trials: Sequence[Trial]) -> list[TransferRow]:
    """Return the means over seeds: by model, size and number of updates."""
    rows = []
    for model in args.models:
        for size in sorted({args.train_size, *args.img_sizes}):
            of_seeds = [trial for trial in trials if trial.seed < args.seeds]
            own = [trial for trial in of_seeds if (trial.model, trial.size) == (model, size)]
            for updates in sorted({trial.updates for trial in own}):
                last = [trial for trial in own if trial.updates == updates]
                values = [trial.loss if trial.top1 is None else trial.top1 for trial in last]
                metric = "mse" if last[0].top1 is None else "top1"
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                mean = statistics.mean(values)
                rows.append(TransferRow(model, args.train_size, size, updates, metric, mean, spread, len(values)))
    return rows


def plot(rows: Sequence[TransferRow]) -> "Figure":
    """Draw the metric against the side of the images: as trained elsewhere, and after training there, dashed.

    Args:
        rows: Of all models and sizes.

    Returns:
        A figure of matplotlib.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for index, model in enumerate(dict.fromkeys(row.model for row in rows)):
        own = [row for row in rows if row.model == model]
        for style, line in (
            ("-", [row for row in own if row.updates == 0 or row.size == row.trained_at]),
            (
                "--",
                [row for row in own if row.updates > 0],
            ),
        ):
            at, values, spreads = zip(*((row.size, row.value, row.spread) for row in line), strict=True)
            label = model if style == "-" else None
            axes.errorbar(at, values, spreads, linestyle=style, marker="o", capsize=3, color=f"C{index}", label=label)
    sizes = sorted({row.size for row in rows})
    axes.set(xlabel=f"side of the images (px); trained at {rows[0].trained_at}", ylabel=LABELS[rows[0].metric])
    axes.set(xscale="log", yscale="log" if rows[0].metric == "mse" else "linear")
    axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", title="dashed: after some training at that size")
    return figure
