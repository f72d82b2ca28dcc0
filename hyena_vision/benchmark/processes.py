"""Processes of measurements: ended with all that they started, and what they said last."""

import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def end(pid: int, wait: Callable[[float], object], seconds: float) -> None:
    """Ask a process to end, and after some seconds end it and all that it started.

    torchrun puts its processes into sessions of their own, and one that waits for a GPU does not hear a question.

    Args:
        pid: Of a child of this process.
        wait: Waits for it, at most as long as its argument says; may raise `subprocess.TimeoutExpired`.
        seconds: That it is given.
    """
    family = _family(pid)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        wait(seconds)
    for member in {*family, *_family(pid)}:
        with suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        wait(seconds)  # not for ever: a driver may hold it


def _family(pid: int) -> list[int]:
    """A process and all below it, where there is /proc; else the process alone."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    family = [pid]
    for member in family:  # which grows
        family += [child for child, parent in parents.items() if parent == member]
    return family


def last_line(log: str) -> str:
    """What a program said last; torchrun's own report comes after that and is left out."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    of_torchrun = [index for index, line in enumerate(lines) if "failed (exitcode: " in line]
    said = lines[: of_torchrun[0]] if of_torchrun else lines
    return (said or lines or ["nothing was said"])[-1][:200]
