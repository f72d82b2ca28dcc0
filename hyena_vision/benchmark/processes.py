"""Processes of measurements: ended with all that they started, and what they said last."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from hyena_vision.training.interrupt import EXIT_RESUME

_running: set[subprocess.Popen] = set()


def call(command: Sequence[str], **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run a command as `subprocess.run` does; under `pass_sigterm_on` it ends when this process is asked to.

    Args:
        command: Program and arguments.
        **options: Of `subprocess.Popen`.

    Returns:
        Its exit code, and what it said to pipes.
    """
    with subprocess.Popen(command, **options) as process:
        _running.add(process)
        try:
            out, err = process.communicate()
        finally:
            _running.discard(process)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@contextmanager
def pass_sigterm_on() -> Iterator[None]:
    """Ask the programs of `call` to end when this process gets SIGTERM, which reaches it alone, and leave after them.

    Trainers save what they have. The exit code is theirs: 75, which says that the same command goes on.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        for process in list(_running):
            process.terminate()
        raise SystemExit(EXIT_RESUME)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
