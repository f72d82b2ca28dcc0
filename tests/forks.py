"""Programs in forks of the test process, which has imported torch: a new process takes four seconds to do so."""

import contextlib
import os
import runpy
import signal
import sys
import traceback
from multiprocessing import forkserver, get_context
from pathlib import Path
from typing import TextIO


class ForkedPython:
    """As `subprocess.Popen` of Python, a program and its arguments, or `-m` and a module's; ended after 300 s."""

    def __init__(self, args, stdout: TextIO | None = None, stderr: TextIO | None = None, env=None, **options):
        argv = [word for word in args[1:] if word != "-u"]
        given = (argv, stdout, stderr, env or {}, options.get("start_new_session", False))
        self.process = get_context("fork").Process(target=_run, args=given)
        self.process.start()
        self.pid, self.terminate, self.wait = self.process.pid, self.process.terminate, self.process.join

    def poll(self) -> int | None:
        return self.process.exitcode

    returncode = property(poll)


def _run(argv: list[str], stdout: TextIO | None, stderr: TextIO | None, env: dict[str, str], session: bool) -> None:
    if session:
        os.setsid()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(300)
    forkserver._forkserver.__init__()  # a server that the parent has started is not one of this process
    os.environ.update(env)
    for number, file in ((1, stdout), (2, stderr)):
        if file is not None:
            os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = open(1, "w"), open(2, "w")
    if argv[0] == "-m":
        sys.argv = argv[1:]
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = argv
        runpy.run_path(argv[0], run_name="__main__")


def run_for_a_gpu(program: Path, calls: list[tuple], folder: Path, **environment: str) -> list[str]:
    """Call `main` of a program that must not import Triton as an interpreter, with the arguments of each call.

    Returns:
        Lines that it printed.
    """
    process = get_context("fork").Process(target=_call_for_a_gpu, args=(program, calls, folder, environment))
    process.start()
    process.join()
    assert process.exitcode == 0, (folder / "err").read_text()[-3000:]
    return (folder / "out").read_text().splitlines()


def _call_for_a_gpu(program: Path, calls: list[tuple], folder: Path, environment: dict[str, str]) -> None:
    from hyena_vision.ops import register

    os.environ.pop("TRITON_INTERPRET", None)
    os.environ.update(environment)
    # What was imported with Triton as an interpreter is imported again, and its operators are registered again
    del register._LIBRARY
    for name in [*sys.modules]:
        if name.startswith(("triton", "hyena_vision")) and not name.startswith("triton._C"):
            del sys.modules[name]
    try:
        with open(folder / "out", "w") as out, contextlib.redirect_stdout(out):
            main = runpy.run_path(str(program))["main"]
            for arguments in calls:
                main(*arguments)
    except BaseException:
        (folder / "err").write_text(traceback.format_exc())
        raise
