"""Training runs in all ways: what they tell, what a stop and a resume give, and runs that fail."""

import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from forks import ForkedPython
from trainer import ROOT

from hyena_vision.benchmark import runs
from hyena_vision.benchmark.__main__ import main
from hyena_vision.benchmark.runs import CASES, RunRow, last_line
from hyena_vision.benchmark.tables import read_csv


def run(folder, *argv):
    main(["runs", "--device", "cpu", "--output", str(folder), "--program", str(ROOT / "train_imagenet.py"), *argv])
    return {(row.data, row.case): row for row in read_csv(str(folder / "runs.csv"), RunRow)}


@pytest.mark.slow
def test_a_stopped_run_that_goes_on_is_the_run_that_was_not_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "subprocess", SimpleNamespace(Popen=ForkedPython))
    argv = ["--data", "folder", "--epochs", "3", "--cases", "float32", "resume", "float16", "--args"]
    rows = run(tmp_path, *argv, "--model-kwargs", "depth=2", "embed_dim=48", "filter_dim=8")
    base, resumed = rows["folder", "float32"], rows["folder", "resume"]
    assert base.status == resumed.status == "ok" and base.images_per_s > 0 and 0 < base.train_loss < 3
    assert resumed.same_bits is True and resumed.loss_ratio == 1 and base.same_bits is None
    assert "stopped by SIGTERM" in (tmp_path / "logs" / "folder-resume.txt").read_text()
    assert rows["folder", "float16"].status == "float16 needs a GPU" and rows["folder", "float16"].train_loss is None
    assert "| folder | resume  |" in (tmp_path / "runs.md").read_text() and (tmp_path / "runs.png").exists()

    # Equal in the last epoch is not enough
    path = tmp_path / "folder-resume" / "summary.csv"
    header, first, *others = path.read_text().splitlines()
    path.write_text("\n".join([header, first.replace(".", ".1", 1), *others]))
    assert runs._compared(resumed, [base], tmp_path).same_bits is False
    shutil.rmtree(tmp_path / "folder-float32")
    assert runs._compared(resumed, [base], tmp_path).same_bits is None
    (axes,) = runs.plot([base, resumed], tmp_path).axes
    assert [line.get_label() for line in axes.lines] == ["resume"]


PROGRAM = """
import signal, subprocess, sys, time
if "--amp" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    with open({child!r}, "w") as file:
        file.write(str(child.pid))
    time.sleep(60)
if "--channels-last" in sys.argv:
    sys.exit(0)
print("some trouble", file=sys.stderr)
sys.exit(3)
"""


@pytest.fixture
def program(tmp_path):
    """A training program that fails; hangs, with a child, if it is to use mixed precision; or else writes nothing."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM.format(child=str(tmp_path / "child")))
    return path


def test_runs_that_fail_or_hang_are_rows(program, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_SECONDS_TO_END", 0.2)
    cases = ["float32", "bfloat16", "channels-last", "resume"]
    rows = run(tmp_path / "out", "--data", "digits", "--program", str(program), "--time-limit", "2", "--cases", *cases)
    assert rows["digits", "float32"].status == "failed: exit code 3, expected 0: some trouble"
    assert rows["digits", "bfloat16"].status == "failed: took longer than 2 s"
    assert rows["digits", "channels-last"].status.endswith("is not the folder of a run: it has no summary.csv")
    assert rows["digits", "resume"].status == "failed: exit code 3, expected 75: some trouble"
    assert all(row.seconds > 0 and row.train_loss is None for row in rows.values())
    assert (tmp_path / "out" / "logs" / "digits-float32.txt").read_text() == "some trouble\n"
    assert ended(int((tmp_path / "child").read_text()))


def ended(pid: int) -> bool:
    """Whether a process ends within five seconds, or waits only for its parent to notice."""
    for _ in range(50):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.1)
    return False


def test_of_torchrun_the_line_of_the_program_is_told():
    log = """RuntimeError: NCCL error

    E1126 07:54:12 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: 1) local_rank: 0
    Traceback (most recent call last):
    ===================================
    """
    assert last_line(log) == "RuntimeError: NCCL error"
    assert last_line("Traceback:\n  MemoryError\n\n") == "MemoryError" and last_line(" \n") == "nothing was said"
    assert "exitcode: -11" in last_line("W0 api.py] failed (exitcode: -11) local_rank: 0")


def test_what_is_done_is_left_out_and_what_failed_is_not(program, tmp_path, monkeypatch):
    def train(data, case, args):
        made.append(case)
        status = "ok" if case == "float32" else "failed: once"
        return RunRow(data, case, "cpu", 1, 1.0, None, None, None, None, None, None, status, "a machine")

    made = []
    monkeypatch.setattr(runs, "train", train)
    for _ in range(2):
        run(tmp_path, "--data", "digits", "--cases", "compile", "float32", "--go-on")
    assert made == ["float32", "compile", "compile"]


def test_the_program_must_be_there(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["runs", "--output", str(tmp_path), "--program", str(tmp_path / "none.py")])
    assert "none.py" in capsys.readouterr().err.splitlines()[-1]


def test_cases_are_flags_of_the_program():
    from hyena_vision.training.config import parse_args

    for case, flags in CASES.items():
        for data in ("digits", "folder"):
            argv = [*runs._DATA[data].split(), *runs._COMMON, *flags, "--data-dir", "x"]
            if case != "float16":  # which is refused without a GPU
                assert parse_args([*argv, "--device", "cpu"]).seed == 0
