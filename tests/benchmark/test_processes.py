"""Programs that a benchmark starts."""

import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from hyena_vision.benchmark.processes import call, pass_sigterm_on

SAVES_AT_SIGTERM = """
import signal, sys, time
from pathlib import Path
def save(*signal):
    Path(sys.argv[1], "saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
Path(sys.argv[1], "ready").touch()
time.sleep(60)
"""


@pytest.mark.parametrize("jobs", [0, 1], ids=["here", "in a thread"])
def test_a_benchmark_that_is_asked_to_end_asks_its_trainer(jobs, tmp_path):
    def kill_when_ready():
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    command, codes = [sys.executable, "-S", "-c", SAVES_AT_SIGTERM, str(tmp_path)], []
    before, killer = signal.getsignal(signal.SIGTERM), threading.Thread(target=kill_when_ready)
    killer.start()
    with pytest.raises(SystemExit) as left, pass_sigterm_on():
        if jobs:
            with ThreadPoolExecutor(jobs) as pool:
                for done in pool.map(call, [command] * 3):  # what has not begun is left out
                    codes.append(done.returncode)
        else:
            call(command)
    killer.join()
    assert left.value.code == 75 and (tmp_path / "saved").exists() and codes == []
    assert signal.getsignal(signal.SIGTERM) is before
