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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyena_vision.benchmark.accuracy import (
    LABELS,
    Trials,
    Validation,
    add_training_arguments,
    flags,
    folder_name,
    keep_settings,
    named,
    spelled,
    validated,
)
from hyena_vision.benchmark.figures import require_matplotlib, save_figure
from hyena_vision.benchmark.machine import describe_machine
from hyena_vision.benchmark.processes import call, last_line, pass_sigterm_on
from hyena_vision.benchmark.study import is_finished, train_run
from hyena_vision.benchmark.tables import markdown_table, write_csv
from hyena_vision.training.arguments import positive_int
from hyena_vision.training.errors import UserError
from hyena_vision.training.report import read_results

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    add_training_arguments(parser)
    add("--train-size", type=positive_int, required=True, metavar="N", help="side of the images to train with, pixels")
    add("--img-sizes", type=positive_int, nargs="+", required=True, metavar="N", help="other sides, in pixels")
    add("--seeds", type=positive_int, default=3, metavar="N", help="runs of each model")
    text = "flags of a run at another size, in one word; none without it: '--epochs 1 --warmup-epochs 0'"
    add("--more", default="", metavar="FLAGS", help=text)
    add("--jobs", type=positive_int, default=1, metavar="N", help="models that are trained at a time")
    add("--device", default="cpu", help="to train on")
    add("--output", required=True, metavar="DIR", help="folder for runs, table and figure")
    parser.set_defaults(run=run)


@pass_sigterm_on()
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
    record = Trials(Path(args.output))
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


def train_and_validate(args: argparse.Namespace, record: Trials, model: str, seed: int) -> None:
    """Train one model with one seed, and validate it at all sizes."""
    own = [*flags(args, model, args.train_size), "--seed", str(seed)]
    folder = record.output / "runs" / f"{folder_name(model)}-seed{seed}"

    def is_known(size: int, trained: bool) -> bool:
        own = [trial for trial in record.trials if (trial.model, trial.seed, trial.size) == (model, seed, size)]
        return any((trial.updates > 0) == trained for trial in own)

    def add(size: int, updates: int, top1: float | None, loss: float) -> None:
        record.add([Validation(model, size, None, seed, updates, top1, loss)])
        print(f"{model}, seed {seed}, {size} px after {updates} updates: done", flush=True)

    def train(folder: Path, size: int, more: Sequence[str] = ()) -> None:
        if is_known(size, trained=True):
            return
        if not is_finished(folder):
            train_run(folder, [*own, *more])
        last, each = validated(folder)[-1], read_results(str(folder))["updates_per_epoch"]
        add(size, round(each * (last["epoch"] + 1)), last.get("eval_top1"), last["eval_loss"])

    missing = [size for size in args.img_sizes if not is_known(size, trained=False)]
    missing += [size for size in args.img_sizes if args.more and not is_known(size, trained=True)]
    if not missing and is_known(args.train_size, trained=True):
        return
    if not is_finished(folder):  # others begin with its weights
        train_run(folder, own)
    train(folder, args.train_size)
    last = str(folder / "last.pth.tar")
    for size in args.img_sizes:
        kwargs = spelled(args.models[model], args.train_size, size)[1:]
        there = ["--img-size", str(size), *(["--model-kwargs", *kwargs] if kwargs else [])]
        if not is_known(size, trained=False):
            result = evaluate(["--eval", last, *there, "--device", args.device, *args.args])
            add(size, 0, result.get("top1"), result["loss"])
        if args.more:
            begin = [*there, "--initial-checkpoint", last, *args.more.split()]
            train(folder.with_name(f"{folder.name}-{size}"), size, begin)


def evaluate(words: Sequence[str]) -> dict[str, Any]:
    """Validate in a process of its own.

    Args:
        words: Of the training program.

    Raises:
        UserError: It fails.
    """
    command = [sys.executable, "-m", "hyena_vision.train", *words]
    done = call(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"{' '.join(words)} ended with code {done.returncode}: {last_line(done.stderr)}")
    return json.loads(done.stdout.rpartition("--result")[2])


def summarize(args: argparse.Namespace, trials: Sequence[Validation]) -> list[TransferRow]:
    """Return the means over seeds: by model, size and number of updates."""
    rows = []
    for model in args.models:
        for size in sorted({args.train_size, *args.img_sizes}):
            of_seeds = [trial for trial in trials if trial.seed < args.seeds]
            own = [trial for trial in of_seeds if (trial.model, trial.size) == (model, size)]
            for updates in sorted({trial.updates for trial in own}):
                last = [trial for trial in own if trial.updates == updates]
                values, metric = [trial.value for trial in last], last[0].metric
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
        came, trained = [row for row in own if row.updates == 0], [row for row in own if row.updates > 0]
        begin = [row for row in trained if row.size == row.trained_at]
        for style, line in ("-", sorted(begin + came, key=lambda row: row.size)), ("--", trained):
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
