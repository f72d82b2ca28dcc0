"""What `ops` and `models` have in common: contenders of one size are measured, and rows are printed and written."""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from hyena_vision.benchmark.figures import plot, require_matplotlib, save_figure
from hyena_vision.benchmark.machine import describe_machine
from hyena_vision.benchmark.memory import peak_memory
from hyena_vision.benchmark.tables import markdown_table, write_csv
from hyena_vision.benchmark.timing import FAILED, Timing, attempt, quartiles, speed_ratios, time_interleaved
from hyena_vision.training.errors import UserError

# Columns that are the same for all rows of a command
SHARED = ("mode", "dtype", "device", "base", "compile", "reparam", "dim", "heads", "machine")


@dataclass(frozen=True, kw_only=True)
class SpeedRow:
    """One model or operator at one size. Numbers are None where memory ran out, nobody tells, or there is no such."""

    name: str  # of the contender
    size: int  # side in pixels of a model's image, in tokens of an operator's grid
    tokens: int | None = None  # of an image, None for a model without patches
    gflops: float | None = None  # 10^9 FLOPs of a model's forward pass of one image, as of `step.count_flops`
    dim: int | None = None  # channels of an operator
    heads: int | None = None  # of attention
    batch_size: int  # images per call, the same for all contenders of a size
    mode: str  # "infer" or "train"; of operators "forward" or "forward+backward"
    dtype: str  # of an operator's inputs, or of a model's autocast, "float32" for none
    compile: str | None = None  # mode of torch.compile, "no" for eager
    reparam: bool | None = None  # whether a model was reparameterized for inference
    device: str
    images_per_s: float | None  # median of the rounds, and quartiles
    images_per_s_low: float | None
    images_per_s_high: float | None
    ms: float | None  # of a call, by that median
    ratio: float | None  # speed over the base's in the same round, median and quartiles: 2 is twice as fast
    ratio_low: float | None
    ratio_high: float | None
    base: str  # contender that ratios are to
    gb_per_s: float | None = None  # 10^9 bytes that an operator must read and write at least, per second
    copy_share: float | None = None  # that over the same of `copy`: 1 is as fast as memory goes
    peak_mb: float | None  # peak memory in 10^6 bytes, weights and inputs included
    status: str  # "ok", "single reading", "out of memory", "failed" and why, or why it cannot run
    machine: str


def measure(
    make: Callable[[str], Callable[[], object]],
    names: Mapping[str, str | None],
    memory: bool,
    timing: dict[str, Any],
    calls: int = 1,
    **columns: Any,
) -> list[SpeedRow]:
    """Measure peak memory of contenders, then time them in turn; what dies of its memory is not timed.

    Args:
        make: Makes a contender of a name; for `peak_memory`.
        names: In the order of their turns, each with None or why it cannot run.
        memory: Whether peak memory is measured.
        timing: For `time_interleaved`.
        calls: For `peak_memory`.
        **columns: Of the rows.
    """
    peaks: dict[str, float | None] = {}
    contenders: dict[str, Callable[[], object]] = {}

    def prepare(name: str) -> None:
        if memory:
            peaks[name] = peak_memory(partial(make, name), columns["device"], calls)
        contenders[name] = make(name)

    timings = {name: Timing((), reason or attempt(partial(prepare, name))[1]) for name, reason in names.items()}
    timings |= time_interleaved(contenders, **timing)
    images, base, machine = columns["batch_size"], timings.get(columns["base"], Timing(())), describe_machine()
    rows = []
    for name, readings in timings.items():
        what = ("images_per_s", [images / s for s in readings.seconds]), ("ratio", speed_ratios(readings, base))
        for column, values in what:
            low, median, high = quartiles(values)
            columns |= {f"{column}_low": low, column: median, f"{column}_high": high}
        ms = columns["images_per_s"] and 1000 * images / columns["images_per_s"]
        told = dict(name=name, ms=ms, peak_mb=peaks.get(name), status=readings.status, machine=machine)
        rows.append(SpeedRow(**columns | told))
    return rows


def record(measure_all: Callable[..., Iterator[SpeedRow]], args: argparse.Namespace, name: str) -> None:
    """Measure by what was parsed, print the table, and write NAME.csv and NAME.png if there is a folder for them.

    Raises:
        UserError: A row failed; the others are written.
    """
    rows: list[SpeedRow] = []
    if args.output is not None:
        require_matplotlib()  # hours of measuring too late is no time to miss it
    for row in measure_all(**{key: value for key, value in vars(args).items() if key not in ("run", "output")}):
        rows.append(row)
        print(f"{row.name}, {row.mode} at {row.size}: {row.status}", file=sys.stderr)
        if args.output is not None:
            write_csv(rows, args.output, f"{name}.csv")
    given = {column for column in vars(rows[0]) if any(getattr(row, column) is not None for row in rows)}
    print(*(f"{column} {getattr(rows[0], column)}" for column in SHARED if column in given), sep=", ")
    print(markdown_table(rows, [column for column in vars(rows[0]) if column in given.difference(SHARED)]))
    if args.output is not None:
        save_figure(plot(rows), args.output, f"{name}.png")
    if failed := [row.name for row in rows if row.status.startswith(FAILED)]:
        raise UserError(f"failed, as their rows say: {', '.join(dict.fromkeys(failed))}")
