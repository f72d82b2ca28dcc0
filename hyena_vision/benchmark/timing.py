"""Interleaved timing: contenders take turns, so that what slows the machine for a while slows all of them."""

import gc
import math
import statistics
import timeit
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import cycle
from typing import NamedTuple, TypeVar

import torch
from torch.utils.benchmark import timer

from hyena_vision.training.errors import UserError, one_line

Result = TypeVar("Result")
OK, SINGLE_READING, OUT_OF_MEMORY, FAILED = "ok", "single reading", "out of memory", "failed"
LEAST_SECONDS = 0.1  # of a reading


class Timing(NamedTuple):
    """Readings of one contender."""

    seconds: tuple[float, ...]  # of one call, one per round; empty if it failed
    status: str = OK  # or `SINGLE_READING` (the warm-up's: it took longer than the limit), or a failure as of `attempt`


def time_interleaved(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int = 5,
    *,
    time_limit: float | None = None,
) -> dict[str, Timing]:
    """Time callables in turn, round after round, after two warm-up calls of each.

    Short calls are repeated until a reading takes about `LEAST_SECONDS`. The clock is that of
    `torch.utils.benchmark.Timer`, which waits for the accelerator; Timer itself would call every contender twice more
    before every reading, three times the hours where one call takes minutes.

    Args:
        contenders: What to call, in the order of their turns.
        rounds: Readings of each.
        time_limit: Seconds; a contender whose first call takes longer is not called again. None for no limit.

    Returns:
        Readings by name. What fails has none, and the others go on.
    """
    timings = dict.fromkeys(contenders, Timing(()))
    number: dict[str, int] = {}

    def read(name: str, number: int = 1) -> float | None:
        watch = timeit.Timer(contenders[name], timer=timer)
        reading, status = attempt(lambda: watch.timeit(number) / number)
        if status != OK:
            timings[name] = Timing((), status)
        return reading

    for name in contenders:
        if (first := read(name)) is None:
            continue
        if time_limit is not None and first > time_limit:
            timings[name] = Timing((first,), SINGLE_READING)
        # The first call may have set things up; the second tells how many fill a reading
        elif (again := read(name)) is not None:
            number[name] = max(1, math.ceil(LEAST_SECONDS / again))
    for _ in range(rounds):
        for name in number:
            if timings[name].status == OK and (reading := read(name, number[name])) is not None:
                timings[name] = Timing((*timings[name].seconds, reading))
    return timings


def quartiles(values: Sequence[float]) -> tuple[float | None, ...]:
    """Lower quartile, median and upper quartile; three times the only value, or three times None."""
    if len(values) < 2:
        return (*(values or [None]),) * 3
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))


def speed_ratios(timing: Timing, base: Timing) -> list[float]:
    """How many times as fast as the base, in each round; a single reading stands for all rounds."""
    rounds = range(max(len(timing.seconds), len(base.seconds)))
    return [theirs / ours for ours, theirs, _ in zip(cycle(timing.seconds), cycle(base.seconds), rounds, strict=False)]


def attempt(call: Callable[[], Result]) -> tuple[Result | None, str]:
    """Call a function that may fail; return its result and `OK`, or None and `OUT_OF_MEMORY` or `FAILED: the error`.

    Raises:
        UserError: As the function does; or it broke the GPU's context, after which every call fails.
    """
    try:
        return call(), OK
    except UserError:
        raise
    except Exception as error:  # of a compiler, a driver, or the contender
        status = f"{FAILED}: {type(error).__name__}: {one_line(error)}"[:300]
        of_cpu = "can't allocate memory" in str(error) or "not enough memory" in str(error)
        if of_cpu or isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            status = OUT_OF_MEMORY
    release_memory()  # only here, after the handler, has the traceback let go of the tensors in its frames
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError as error:
        raise UserError(f"{status}; that broke the GPU's context, and this process can do nothing more") from error
    return None, status


def release_memory() -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        with suppress(RuntimeError):  # of an earlier call, after which the device can do nothing
            torch.cuda.empty_cache()
