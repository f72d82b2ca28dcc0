"""Interleaved timing: contenders take turns, so that what slows the machine for a while slows all of them."""

import gc
import math
import statistics
import timeit
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import torch
from torch.utils.benchmark import timer

from hyena_vision.training.errors import UserError, one_line

Result = TypeVar("Result")
Quartiles: TypeAlias = tuple[float | None, float | None, float | None]
OK, SINGLE_READING, OUT_OF_MEMORY, FAILED = "ok", "single reading", "out of memory", "failed"


@dataclass(frozen=True)
class Timing:
    """Readings of one contender.

    Attributes:
        seconds: Of one call, one per round; empty if it failed.
        status: `OK`, `SINGLE_READING` (the warm-up's: it took longer than the limit), or a failure, as of `attempt`.
    """

    seconds: tuple[float, ...]
    status: str = OK

    def quartiles(self, figure: Callable[[float], float] = lambda seconds: seconds) -> Quartiles:
        """Lower quartile, median and upper quartile of a figure, a function of the seconds of one call."""
        return quartiles([figure(seconds) for seconds in self.seconds])


def quartiles(values: Sequence[float]) -> Quartiles:
    """Lower quartile, median and upper quartile: three times the only value of one, three times None of none."""
    if len(values) < 2:
        only = values[0] if values else None
        return only, only, only
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def time_interleaved(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int = 5,
    *,
    time_limit: float | None = None,
    least_seconds: float = 0.1,
    untimed_calls: int = 0,
) -> dict[str, Timing]:
    """Time callables in turn, round after round.

    Two warm-up calls of each come first. The clock is that of `torch.utils.benchmark.Timer`, which waits for the
    accelerator; Timer itself would call every contender twice more before every reading, three times the hours where
    one call takes minutes.

    Args:
        contenders: What to call, by name, in the order of their turns.
        rounds: Readings per contender, >= 1.
        time_limit: Seconds; a contender whose first call takes longer is not called again. None for no limit.
        least_seconds: Calls are repeated until a reading takes about this long.
        untimed_calls: Calls before the first one that the limit looks at, for what compiles itself.

    Returns:
        Readings by name. A contender that fails has none, and the others go on.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    status = dict.fromkeys(contenders, OK)
    number: dict[str, int] = {}

    def read(name: str, number: int) -> float | None:
        watch = timeit.Timer(contenders[name], timer=timer)
        reading, outcome = attempt(lambda: watch.timeit(number) / number)
        status[name] = status[name] if outcome == OK else outcome
        return reading

    for name in contenders:
        for _ in range(untimed_calls):
            if status[name] == OK:
                read(name, 1)
        first = read(name, 1) if status[name] == OK else None
        if first is not None and time_limit is not None and first > time_limit:
            status[name] = SINGLE_READING
            seconds[name].append(first)
        # The first call may have set things up; the second tells how many fill a reading
        elif first is not None and (again := read(name, 1)) is not None:
            number[name] = max(1, math.ceil(least_seconds / again))
    for _ in range(rounds):
        for name in number:
            if status[name] == OK and (reading := read(name, number[name])) is not None:
                seconds[name].append(reading)
    return {
        name: Timing(tuple(readings) if status[name] in (OK, SINGLE_READING) else (), status[name])
        for name, readings in seconds.items()
    }


def speed_ratios(timing: Timing, base: Timing) -> Quartiles:
    """Quartiles of how many times as fast as the base, round by round; of the medians where either was read once."""
    if not timing.seconds or not base.seconds:
        return None, None, None
    if len(timing.seconds) == len(base.seconds):
        return quartiles([theirs / ours for ours, theirs in zip(timing.seconds, base.seconds, strict=True)])
    return quartiles([statistics.median(base.seconds) / statistics.median(timing.seconds)])


def attempt(call: Callable[[], Result]) -> tuple[Result | None, str]:
    """Call a function without arguments that may fail without ending what others do.

    Returns:
        Its result and `OK`; or None and why: `OUT_OF_MEMORY`, or `FAILED` with the error in one line.

    Raises:
        UserError: As the function does; or it broke the GPU's context, after which every call fails.
    """
    try:
        result = unless_out_of_memory(lambda: (call(),))
        return (None, OUT_OF_MEMORY) if result is None else (result[0], OK)
    except UserError:
        raise
    except Exception as error:  # of a compiler, a driver, or the contender
        outcome = f"{FAILED}: {type(error).__name__}: {one_line(error)}"[:300]
    release_memory()
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError as error:
        raise UserError(f"{outcome}; that broke the GPU's context, and this process can do nothing more") from error
    return None, outcome


def unless_out_of_memory(call: Callable[[], Result]) -> Result | None:
    """Return what a function without arguments returns, or None if it runs out of memory."""
    try:
        return call()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Only here, after the handler, has the traceback let go of the tensors in its frames
    release_memory()
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: of the device, of torch's CPU allocator, or of Python."""
    phrases = ("can't allocate memory", "not enough memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(phrase in str(error) for phrase in phrases)


def release_memory() -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        with suppress(RuntimeError):  # of an earlier call, after which the device can do nothing
            torch.cuda.empty_cache()
