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

from hyena_vision.benchmark import report
from hyena_vision.benchmark.arguments import DTYPES, add_measurement_arguments, apply_arguments
from hyena_vision.benchmark.check import find_errors
from hyena_vision.benchmark.contenders import CONTENDERS, Setting, make_call
from hyena_vision.benchmark.machine import describe_machine
from hyena_vision.benchmark.memory import peak_memory
from hyena_vision.benchmark.timing import FAILED, Timing, attempt, speed_ratio, time_interleaved, unless_out_of_memory
from hyena_vision.training.arguments import positive_int
from hyena_vision.training.errors import UserError

GRIDS = (14, 24, 32, 64, 128)
BASE, COPY = "sdpa", "copy"


class WrongResultError(UserError):
    """A contender does not compute what it should."""


@dataclass(frozen=True)
class OpRow:
    """One operator on one grid. Numbers are None where there are none.

    Attributes:
        op: Name in `CONTENDERS`.
        grid: Side of the square of tokens.
        tokens: Their number.
        dim: Channels.
        heads: Heads of attention.
        batch_size: Images per call.
        mode: "forward" or "forward+backward".
        dtype: Of the inputs.
        device: Where it ran.
        ms: Milliseconds of a call, median of the rounds.
        ms_low: Lower quartile.
        ms_high: Upper quartile.
        ratio: Speed over that of `sdpa`, median of the rounds: 2 is twice as fast.
        gb_per_s: Memory traffic of the least that must be read and written, in 10^9 bytes per second.
        copy_share: That over the traffic of `copy` in the same run: 1 is as fast as memory goes.
        peak_mb: Peak memory, inputs included, in 10^6 bytes.
        status: "ok", "out of memory", "failed" and why, or why it cannot run.
        machine: What it was measured on.
    """

    op: str
    grid: int
    tokens: int
    dim: int
    heads: int
    batch_size: int
    mode: str
    dtype: str
    device: str
    ms: float | None
    ms_low: float | None
    ms_high: float | None
    ratio: float | None
    gb_per_s: float | None
    copy_share: float | None
    peak_mb: float | None
    status: str
    machine: str


def add_command(commands: Any) -> None:
    """Add the sub-command `ops`."""
    parser = commands.add_parser("ops", help="operators alone by grid of tokens", description=__doc__)
    parser.add_argument("--grids", type=positive_int, nargs="+", default=GRIDS, metavar="N", help="sides, in tokens")
    parser.add_argument("--dim", type=positive_int, default=384, metavar="N", help="channels")
    parser.add_argument("--heads", type=positive_int, default=6, metavar="N", help="heads of attention")
    parser.add_argument("-b", "--batch-size", type=positive_int, default=1, metavar="N")
    parser.add_argument("--backward", action="store_true", help="backward pass too")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, metavar="NAME", help=f"of {', '.join(CONTENDERS)}")
    parser.add_argument("--check", action="store_true", help="compare all with float64 first; a wrong one ends it")
    add_measurement_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> list[OpRow]:
    """Check, measure, print the table, and write CSV and figure.

    Args:
        args: Parsed arguments of the sub-command.

    Returns:
        The rows.
    """
    apply_arguments(args)
    if args.dim % args.heads:
        raise UserError(f"--dim must be a multiple of --heads, got {args.dim} and {args.heads}")
    settings = [
        Setting(grid, args.dim, args.heads, args.batch_size, DTYPES[args.dtype], args.device, args.backward)
        for grid in args.grids
    ]
    names = args.only or list(CONTENDERS)
    for name in names:
        if not CONTENDERS[name].installed():
            print(f"{name}: package {CONTENDERS[name].package} is not installed", file=sys.stderr)
    if args.check:
        check_ops(names, settings)
    done: list[OpRow] = []

    def keep(rows: list[OpRow]) -> None:
        done.extend(rows)
        if args.output is not None and done:
            report.write_csv(done, args.output, "ops.csv")

    measure_ops(names, settings, rounds=args.rounds, memory=not args.no_memory, on_rows=keep)
    if not done:
        raise UserError("none of the operators asked for is installed")
    print(report.table(done))
    if args.output is not None:
        report.save_figure(report.plot_ops(done), args.output, "ops.png")
    if failed := [row.op for row in done if row.status.startswith(FAILED)]:
        raise UserError(f"failed, as their rows say: {', '.join(dict.fromkeys(failed))}")
    return done


def check_ops(names: Sequence[str], settings: Sequence[Setting]) -> None:
    """Compare operators with the truth in float64, see `find_errors`.

    What cannot run is left out, and said to be unchecked if it is for want of memory.

    Args:
        names: Keys of `CONTENDERS`.
        settings: The problems.

    Raises:
        WrongResultError: With the name and the figures of every wrong one.
    """
    wrong = []
    for setting in settings:
        for name in _runnable(names, setting):
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
        names: Keys of `CONTENDERS`; those that are not installed give no row.
        settings: The problems.
        rounds: Readings of each operator.
        memory: Whether peak memory is measured.
        on_rows: Called with the rows of each setting as soon as they are known.

    Returns:
        One row per operator and setting.
    """
    rows = []
    for setting in settings:
        of_setting = _measure_setting(names, setting, rounds, memory)
        rows += of_setting
        if on_rows is not None:
            on_rows(of_setting)
    return rows


def _runnable(names: Sequence[str], setting: Setting) -> list[str]:
    return [name for name in names if CONTENDERS[name].installed() and CONTENDERS[name].reason(setting) is None]


def _measure_setting(names: Sequence[str], setting: Setting, rounds: int, memory: bool) -> list[OpRow]:
    runnable = _runnable(names, setting)
    peaks: dict[str, float | None] = {}
    calls = {}

    def prepare(name: str) -> None:
        if memory:
            peaks[name] = peak_memory(make_call, name, setting, device=setting.device)
        calls[name] = make_call(name, setting)

    timings = {name: Timing((), attempt(partial(prepare, name))[1]) for name in runnable}
    timings |= time_interleaved(calls, rounds)
    traffic = {name: _gb_per_s(name, setting, timing) for name, timing in timings.items()}
    rows = []
    for name in names:
        if not CONTENDERS[name].installed():
            continue
        timing = timings.get(name, Timing((), CONTENDERS[name].reason(setting) or ""))
        low, middle, high = timing.quartiles(lambda seconds: 1000 * seconds)
        rows.append(
            OpRow(
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
                ratio=speed_ratio(timing, timings[BASE]) if BASE in timings else None,
                gb_per_s=traffic.get(name),
                copy_share=traffic[name] / traffic[COPY] if traffic.get(name) and traffic.get(COPY) else None,
                peak_mb=peaks.get(name),
                status=timing.status,
                machine=describe_machine(),
            )
        )
    return rows


def _gb_per_s(name: str, setting: Setting, timing: Timing) -> float | None:
    """Traffic of what is read and written at least."""
    seconds, numbers = timing.quartiles()[1], CONTENDERS[name].numbers
    if seconds is None or numbers is None:
        return None
    count = numbers[0] + (numbers[1] if setting.backward else 0)
    return 1e-9 * count * setting.dtype.itemsize * setting.batch_size * setting.grid**2 * setting.dim / seconds
