"""Operators alone, by grid of tokens: attention's product, Hyena mixers, long convolutions, other projects' ones.

Mixers and attention are measured between their projections, filters and whatever is kept between calls included; long
convolutions are given their kernel, of the global extent 2n - 1.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from hyena_vision.benchmark import figures, tables
from hyena_vision.benchmark.command import (
    DTYPES,
    add_measurement_arguments,
    apply_arguments,
    describe_machine,
    finish,
)
from hyena_vision.benchmark.contenders import CONTENDERS, Setting, find_errors, make_call
from hyena_vision.benchmark.measure import Measured, measure
from hyena_vision.benchmark.timing import Timing, speed_ratios, unless_out_of_memory
from hyena_vision.training.arguments import positive_int
from hyena_vision.training.errors import UserError

GRIDS = (14, 24, 32, 64, 128)
BASE, COPY = "sdpa", "copy"


class WrongResultError(UserError):
    """A contender does not compute what it should."""


@dataclass(frozen=True)
class OpRow:
    """One operator on one grid. Numbers are None where there are none; low and high are quartiles of the rounds."""

    op: str  # name in `CONTENDERS`
    grid: int  # side of the square of tokens
    tokens: int
    dim: int  # channels
    heads: int  # of attention
    batch_size: int  # images per call
    mode: str  # "forward" or "forward+backward"
    dtype: str
    device: str
    ms: float | None  # of a call, median of the rounds
    ms_low: float | None
    ms_high: float | None
    ratio: float | None  # speed over that of `sdpa` in the same round: 2 is twice as fast
    ratio_low: float | None
    ratio_high: float | None
    gb_per_s: float | None  # traffic of the least that must be read and written, 10^9 bytes
    copy_share: float | None  # that over the traffic of `copy` in the same run: 1 is as fast as memory goes
    peak_mb: float | None  # inputs included, 10^6 bytes
    status: str  # "ok", "out of memory", "failed" and why, or why it cannot run
    machine: str


def add_command(commands: Any) -> None:
    """Add the sub-command `ops`."""
    parser = commands.add_parser("ops", help="operators alone by grid of tokens", description=__doc__)
    parser.add_argument("--grids", type=positive_int, nargs="+", default=GRIDS, metavar="N", help="sides, in tokens")
    parser.add_argument("--dim", type=positive_int, default=384, metavar="N", help="channels")
    parser.add_argument("--heads", type=positive_int, default=6, metavar="N", help="heads of attention")
    parser.add_argument("-b", "--batch-size", type=positive_int, default=1, metavar="N")
    parser.add_argument("--backward", action="store_true", help="backward pass too")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=CONTENDERS,
        metavar="NAME",
        help=f"of {', '.join(CONTENDERS)} (default: all that can run)",
    )
    parser.add_argument("--check", action="store_true", help="compare all with float64 first; a wrong one ends it")
    add_measurement_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> list[OpRow]:
    """Check, measure, print the table, and write CSV and figure."""
    apply_arguments(args)
    if args.dim % args.heads:
        raise UserError(f"--dim must be a multiple of --heads, got {args.dim} and {args.heads}")
    settings = [
        Setting(grid, args.dim, args.heads, args.batch_size, DTYPES[args.dtype], args.device, args.backward)
        for grid in args.grids
    ]
    names = args.only or [name for name in CONTENDERS if CONTENDERS[name].reason(settings[0]) is None]
    if args.check:
        check_ops(names, settings)
    done: list[OpRow] = []

    def keep(rows: list[OpRow]) -> None:
        done.extend(rows)
        if args.output is not None:
            tables.write_csv(done, args.output, "ops.csv")

    measure_ops(names, settings, rounds=args.rounds, memory=not args.no_memory, on_rows=keep)
    finish(done, "op", figures.plot_ops(done) if args.output else None, args.output, "ops.png")
    return done


def check_ops(names: Sequence[str], settings: Sequence[Setting]) -> None:
    """Compare operators with the truth in float64, see `find_errors`.

    What cannot run is left out, and said to be unchecked if it is for want of memory.

    Raises:
        WrongResultError: With the name and the figures of every wrong one.
    """
    wrong = []
    for setting in settings:
        for name in [name for name in names if CONTENDERS[name].reason(setting) is None]:
            errors = unless_out_of_memory(partial(find_errors, CONTENDERS[name], setting))
            if errors is None:
                print(f"{name} at grid {setting.grid}: not checked, out of memory", file=sys.stderr)
            wrong += [f"{name} at grid {setting.grid}: {error}" for error in errors or []]
    if wrong:
        raise WrongResultError("nothing was timed: " + "; ".join(wrong))


def measure_ops(
    names: Sequence[str],
    settings: Sequence[Setting],
    *,
    rounds: int = 5,
    memory: bool = True,
    on_rows: Callable[[list[OpRow]], None] | None = None,
) -> list[OpRow]:
    """Measure operators, all of a setting in turn.

    Args:
        names: Keys of `CONTENDERS`.
        settings: The problems.
        rounds: Readings of each operator.
        memory: Whether peak memory is measured.
        on_rows: Called with the rows of each setting as soon as they are known.

    Returns:
        One row per operator and setting.
    """
    rows: list[OpRow] = []
    for setting in settings:
        reasons = {name: CONTENDERS[name].reason(setting) for name in names}
        runnable = [name for name in names if reasons[name] is None]
        measured = measure(make_call, runnable, setting, device=setting.device, rounds=rounds, memory=memory)
        measured |= {name: Measured(Timing((), why), None) for name, why in reasons.items() if why is not None}
        rows += [_row(name, setting, measured) for name in names]
        if on_rows is not None:
            on_rows(rows[-len(names) :])
    return rows


def _row(name: str, setting: Setting, measured: dict[str, Measured]) -> OpRow:
    timing, peak_mb = measured[name]
    low, middle, high = timing.quartiles(lambda seconds: 1000 * seconds)
    nothing = Measured(Timing(()), None)
    ratio_low, ratio, ratio_high = speed_ratios(timing, measured.get(BASE, nothing).timing)
    traffic, of_copy = (_gb_per_s(key, setting, measured.get(key, nothing).timing) for key in (name, COPY))
    return OpRow(
        op=name,
        grid=setting.grid,
        tokens=setting.grid**2,
        dim=setting.dim,
        heads=setting.heads,
        batch_size=setting.batch_size,
        mode="forward+backward" if setting.backward else "forward",
        dtype=str(setting.dtype).removeprefix("torch."),
        device=setting.device,
        ms=middle,
        ms_low=low,
        ms_high=high,
        ratio=ratio,
        ratio_low=ratio_low,
        ratio_high=ratio_high,
        gb_per_s=traffic,
        copy_share=traffic / of_copy if traffic and of_copy else None,
        peak_mb=peak_mb,
        status=timing.status,
        machine=describe_machine(),
    )


def _gb_per_s(name: str, setting: Setting, timing: Timing) -> float | None:
    """Traffic of what is read and written at least."""
    seconds, numbers = timing.quartiles()[1], CONTENDERS[name].numbers
    if seconds is None or numbers is None:
        return None
    count = numbers[0] + (numbers[1] if setting.backward else 0)
    return 1e-9 * count * setting.dtype.itemsize * setting.batch_size * setting.grid**2 * setting.dim / seconds
