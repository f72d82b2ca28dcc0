"""Signals that end a run in order: finish the update, save, leave with a code that says how to go on."""

import signal
import threading
from types import FrameType

# sysexits.h: "temporary failure, the user is invited to retry"; clusters requeue on it
EXIT_RESUME = 75
EXIT_INTERRUPTED = 130


class Interrupted(Exception):
    """The run was asked to stop and stands between two updates; `signal` is the one that asked."""

    def __init__(self, number: int):
        """Remember the signal."""
        super().__init__(signal.Signals(number).name)
        self.signal = number

    @property
    def exit_code(self) -> int:
        """Return the code of the program: 75 asks a cluster to start it again, 130 is what Ctrl-C gives."""
        return EXIT_INTERRUPTED if self.signal == signal.SIGINT else EXIT_RESUME


class Interrupt:
    """While it is entered, SIGTERM, SIGUSR1 and the first Ctrl-C are remembered instead of killing the process.

    A second Ctrl-C stops at once, as Python does.
    """

    def __init__(self):
        """Nothing has been received."""
        self.received = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interrupt":
        """Install the handlers, where Python can: in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return self
        for name in ("SIGTERM", "SIGINT", "SIGUSR1"):
            number = getattr(signal, name, None)  # Windows has no SIGUSR1
            # nohup, or a shell that starts a job in the background, has one ignored: so it stays
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        """Put the handlers back that were there."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
