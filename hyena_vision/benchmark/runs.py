"""Training as it is done, by train_imagenet.py: precisions, memory formats, compilation, processes, a stop, a resume.

On scikit-learn's digits and on a folder of images that is drawn for it, each case with the same seed as the float32 run
that it is compared with. Each run is a process of its own, with a log; a run that fails is a row.
"""

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch
from PIL import Image

from hyena_vision.benchmark.figures import require_matplotlib, save_figure
from hyena_vision.benchmark.machine import describe_machine
from hyena_vision.benchmark.processes import end, last_line
from hyena_vision.benchmark.tables import markdown_table, read_csv, write_csv
from hyena_vision.training.arguments import positive_int
from hyena_vision.training.errors import UserError
from hyena_vision.training.interrupt import EXIT_RESUME
from hyena_vision.training.report import read_results, read_summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASE, RESUME, DDP = "float32", "resume", "ddp"
CASES: dict[str, list[str]] = {
    BASE: [],
    "bfloat16": ["--amp", "--amp-dtype", "bfloat16"],
    "float16": ["--amp", "--amp-dtype", "float16"],  # with loss scaling
    "channels-last": ["--channels-last"],
    "compile": ["--torchcompile"],
    "grad-checkpointing": ["--grad-checkpointing"],
    DDP: [],
    RESUME: [],
}
_COMMON = "--seed 0 -j 0 --warmup-epochs 0 --opt adamw --lr 1e-3 --clip-grad 1 --hflip 0 --log-interval 15".split()
_DATA = {
    "digits": "--dataset sklearn/digits --model hyena2d_iso_tiny --num-classes 10 --in-chans 1 --img-size 12 -b 32",
    "folder": "--model hyena2d_vit_tiny --num-classes 3 --img-size 64 -b 16",
}
_DRAWN = {"train": 32, "val": 12}  # of each class
_SECONDS_TO_END = 10  # from being asked to being killed


@dataclass(frozen=True)
class RunRow:
    """One run. Numbers are None where it did not come so far.

    Attributes:
        data: "digits" or "folder".
        case: Key of `CASES`.
        device: Where it ran.
        epochs: That it trained.
        seconds: Of the whole program, start included.
        images_per_s: Of training.
        train_loss: Of the last epoch.
        loss_ratio: That over float32's.
        val_loss: Of the last epoch.
        top1: In per cent, of the last epoch.
        same_bits: Of a resumed run: whether the metrics of all epochs are those of the run that was not stopped.
        status: "ok", or "failed" and why.
        machine: What it ran on.
    """

    data: str
    case: str
    device: str
    epochs: int
    seconds: float | None
    images_per_s: float | None
    train_loss: float | None
    loss_ratio: float | None
    val_loss: float | None
    top1: float | None
    same_bits: bool | None
    status: str
    machine: str


def add_command(commands: Any) -> None:
    """Add the sub-command `runs`."""
    parser = commands.add_parser("runs", help="training runs in all ways, against float32", description=__doc__)
    parser.add_argument("--data", nargs="+", choices=_DATA, default=list(_DATA), metavar="NAME", help=", ".join(_DATA))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--epochs", type=positive_int, default=4, metavar="N")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--time-limit", type=float, default=180, metavar="SECONDS", help="after which a run is ended")
    parser.add_argument("--program", default="train_imagenet.py", metavar="FILE", help="the training program")
    parser.add_argument("--args", nargs=argparse.REMAINDER, default=[], help="what follows goes to the program")
    parser.add_argument("--go-on", action="store_true", help="leave out runs that the folder has")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for runs, logs, tables and figure")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> list[RunRow]:
    """Train, print the table, and write CSV, Markdown and figure.

    Args:
        args: Parsed arguments of the sub-command.

    Returns:
        The rows.

    Raises:
        UserError: The training program is not there, or matplotlib is missing.
    """
    require_matplotlib()
    if not Path(args.program).is_file():
        raise UserError(f"there is no training program {args.program}: call this where it is, or give --program FILE")
    output = Path(args.output)
    path = output / "runs.csv"
    done = read_csv(str(path), RunRow) if args.go_on and path.exists() else []
    rows = [row for row in done if row.status == "ok"]
    for data in args.data:
        if data == "folder":
            draw_images(output / "images")
        # The base comes first: others are compared with it
        for case in sorted(args.cases, key=lambda case: case != BASE):
            if not any((row.data, row.case) == (data, case) for row in rows):
                rows.append(_compared(train(data, case, args), rows, output))
                write_csv(rows, str(output), "runs.csv")
    columns = [name for name in vars(rows[0]) if name not in ("machine", "device")]
    text = markdown_table(rows, columns)
    (output / "runs.md").write_text(f"{rows[0].machine}, on {rows[0].device}\n\n{text}\n", encoding="utf-8")
    save_figure(plot(rows, output), str(output), "runs.png")
    print(text)
    return rows


def draw_images(folder: Path) -> None:
    """Draw 64-pixel PNGs of three classes, gratings of three directions with noise, the same each time."""
    generator = numpy.random.default_rng(0)
    y, x = numpy.mgrid[:64, :64]
    for split, count in _DRAWN.items():
        for name, (dy, dx) in {"across": (1, 0), "along": (0, 1), "slanted": (1, 1)}.items():
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                wave = numpy.sin((dy * y + dx * x) * generator.uniform(0.3, 0.9) + generator.uniform(0, 6.3))
                pixels = 128 + 60 * wave[..., None] + generator.normal(0, 40, (64, 64, 3))
                Image.fromarray(pixels.clip(0, 255).astype("uint8")).save(folder / split / name / f"{index}.png")


def train(data: str, case: str, args: argparse.Namespace) -> RunRow:
    """Run the training program once, or, for `resume`, until it is stopped and then to its end.

    Args:
        data: Key of the data sets.
        case: Key of `CASES`.
        args: Parsed arguments of the sub-command.

    Returns:
        What became of it, not yet compared with the base.
    """
    row = RunRow(data, case, args.device, args.epochs, *[None] * 7, "ok", describe_machine())
    if case == "float16" and torch.device(args.device).type == "cpu":
        return replace(row, status="float16 needs a GPU")
    output, name = Path(args.output).resolve(), f"{data}-{case}"
    command = [str(Path(args.program).resolve()), *_DATA[data].split(), *_COMMON, *CASES[case]]
    command += ["--data-dir", str(output / "images")] if data == "folder" else []
    command += ["--device", args.device, "--epochs", str(args.epochs), "--output", str(output), "--experiment", name]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"] if case == DDP else []
    command = [sys.executable, *launcher, *command, *args.args]
    log, folder, start = output / "logs" / f"{name}.txt", output / name, time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier run that failed
    status = "ok"
    if case == RESUME:
        status = _call(command, log, args.time_limit, stop_at=folder / "summary.csv")
        command += ["--resume", "auto"]
    if status == "ok":
        status = _call(command, log, args.time_limit)
    seconds = round(time.monotonic() - start, 1)
    if status != "ok":
        return replace(row, seconds=seconds, status=status)
    try:
        last, results = read_summary(str(folder))[-1], read_results(str(folder))
    except UserError as error:
        return replace(row, seconds=seconds, status=f"failed: {error}")
    return replace(
        row,
        seconds=seconds,
        images_per_s=results.get("images_per_second"),
        train_loss=last["train_loss"],
        val_loss=last["eval_loss"],
        top1=last["eval_top1"],
    )


def _call(command: Sequence[str], log: Path, time_limit: float, stop_at: Path | None = None) -> str:
    """Run a command; with `stop_at` until that file exists, when SIGTERM is to end it as one that can be resumed."""
    expected = 0 if stop_at is None else EXIT_RESUME
    with open(log, "a", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
        deadline = time.monotonic() + time_limit
        while process.poll() is None and time.monotonic() < deadline:
            if stop_at is not None and stop_at.exists():
                process.terminate()
                stop_at = None
            time.sleep(0.05)
        if process.poll() is None:
            end(process.pid, process.wait, _SECONDS_TO_END)
            return f"failed: took longer than {time_limit:.0f} s"
    if process.returncode == expected:
        return "ok"
    last = last_line(log.read_text(encoding="utf-8", errors="replace"))
    return f"failed: exit code {process.returncode}, expected {expected}: {last}"


def _compared(row: RunRow, others: Sequence[RunRow], output: Path) -> RunRow:
    """With its loss over that of the base, and whether a resumed run is the base."""
    base = next((other for other in others if (other.data, other.case) == (row.data, BASE)), None)
    if base is None or base.train_loss is None or row.train_loss is None:
        return row
    same = None
    if row.case == RESUME:
        with suppress(UserError):  # the base's folder may be gone since an earlier call
            one, other = (read_summary(str(output / f"{row.data}-{case}")) for case in (BASE, RESUME))
            same = one == other
    return replace(row, loss_ratio=row.train_loss / base.train_loss, same_bits=same)


def plot(rows: Sequence[RunRow], output: Path) -> "Figure":
    """Draw the training loss of each epoch, a panel for each data set and a line for each run.

    Args:
        rows: Of the runs.
        output: Their folder.

    Returns:
        A figure of matplotlib.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row.data for row in rows))
    figure = Figure(figsize=(5.5 * len(names), 4.2), layout="constrained")
    for axes, data in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for row in rows:
            if row.data != data or row.train_loss is None:
                continue
            try:
                losses = [epoch["train_loss"] for epoch in read_summary(str(output / f"{data}-{row.case}"))]
            except UserError:  # its folder is gone since an earlier call
                continue
            style = dict(linewidth=3, color="0.7") if row.case == BASE else dict(linestyle="--", linewidth=1)
            axes.plot(range(1, len(losses) + 1), losses, marker=".", label=row.case, **style)
        axes.set(title=data, xlabel="epoch", ylabel="training loss")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    if any(axes.lines for axes in figure.axes):
        figure.axes[0].legend(fontsize="small")
    return figure
