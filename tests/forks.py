"""Programs in forks of the test process, which has imported torch: a new process takes four seconds to do so."""

import os
import runpy
import signal
import sys
from multiprocessing import forkserver, get_context
from typing import TextIO


class ForkedPython:
    """As `subprocess.Popen` of Python, a program and its arguments, or `-m` and a module's; ended after 300 s."""

    def __init__(self, command: list[str], stdout: TextIO, stderr: TextIO):
        self.process = get_context("fork").Process(target=_run, args=(command[1:], stdout, stderr))
        self.process.start()
        self.pid, self.terminate, self.wait = self.process.pid, self.process.terminate, self.process.join

    def poll(self) -> int | None:
        return self.process.exitcode

    returncode = property(poll)


def _run(argv: list[str], stdout: TextIO, stderr: TextIO) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(300)
    forkserver._forkserver.__init__()  # a server that the parent has started is not one of this process
    os.dup2(stdout.fileno(), 1)
    os.dup2(stderr.fileno(), 2)
    sys.stdout, sys.stderr = open(1, "w"), open(2, "w")
    if argv[0] == "-m":
        sys.argv = argv[1:]
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = argv
        runpy.run_path(argv[0], run_name="__main__")
