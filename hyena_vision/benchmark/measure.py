"""Contenders side by side: peak memory of each, then their times in turn."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from hyena_vision.benchmark.memory import peak_memory
from hyena_vision.benchmark.timing import Timing, attempt, time_interleaved


class Measured(NamedTuple):
    """One contender: its readings, and its peak memory in MB where that was asked for and is known."""

    timing: Timing
    peak_mb: float | None


def measure(
    make: Callable[..., Callable[[], object]],
    names: Sequence[str],
    *settings: Any,
    device: str,
    rounds: int,
    memory: bool = True,
    calls: int = 1,
    time_limit: float | None = None,
    untimed_calls: int = 0,
) -> dict[str, Measured]:
    """Measure contenders `make(name, *settings)`; one that fails has a status, and the others go on.

    Args:
        make: A function of a module, so that a fresh process can import it.
        names: Of the contenders.
        *settings: Further arguments of `make`.
        device: Where contenders run.
        rounds: Readings of each.
        memory: Whether peak memory is measured, before anything is timed: what dies of it there is not timed.
        calls: That peak memory is of.
        time_limit: As for `time_interleaved`.
        untimed_calls: As for `time_interleaved`.
    """
    peaks: dict[str, float | None] = {}
    contenders: dict[str, Callable[[], object]] = {}

    def prepare(name: str) -> None:
        if memory:
            peaks[name] = peak_memory(make, name, *settings, device=device, calls=calls)
        contenders[name] = make(name, *settings)

    timings = {name: Timing((), attempt(partial(prepare, name))[1]) for name in names}
    timings |= time_interleaved(contenders, rounds, time_limit=time_limit, untimed_calls=untimed_calls)
    return {name: Measured(timings[name], peaks.get(name)) for name in names}
