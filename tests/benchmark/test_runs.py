"""Training runs in all ways: what they tell, what a stop and a resume give, and runs that fail."""

import pytest
from trainer import ROOT

from hyena_vision.benchmark import runs
from hyena_vision.benchmark.__main__ import main
from hyena_vision.benchmark.report import read_csv
from hyena_vision.benchmark.runs import CASES, RunRow

TINY = ["--model-kwargs", "depth=1", "embed_dim=16", "num_heads=1"]


def run(folder, *argv):
    main(["runs", "--device", "cpu", "--output", str(folder), "--program", str(ROOT / "train_imagenet.py"), *argv])
    return {(row.data, row.case): row for row in read_csv(str(folder / "runs.csv"), RunRow)}


def test_a_stopped_run_that_goes_on_is_the_run_that_was_not_stopped(tmp_path):
    argv = ["--data", "folder", "--epochs", "3", "--cases", "float32", "resume", "float16", "--args"]
    rows = run(tmp_path, *argv, "--model-kwargs", "depth=2", "embed_dim=48", "filter_dim=8")
    base, resumed = rows["folder", "float32"], rows["folder", "resume"]
    assert base.status == resumed.status == "ok" and base.images_per_s > 0 and 0 < base.train_loss < 3
    assert resumed.same_bits is True and resumed.loss_ratio == 1 and base.same_bits is None
    assert "stopped by SIGTERM" in (tmp_path / "logs" / "folder-resume.txt").read_text()
    assert rows["folder", "float16"].status == "float16 needs a GPU" and rows["folder", "float16"].train_loss is None
    assert "| folder | resume |" in (tmp_path / "runs.md").read_text() and (tmp_path / "runs.png").exists()


PROGRAM = """
import sys, time, pathlib
with open({calls!r}, "a") as file:
    print(sys.argv[sys.argv.index("--experiment") + 1], file=file)
if "--amp" in sys.argv:
    time.sleep(60)
print("some trouble", file=sys.stderr)
sys.exit(3)
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A training program that fails, or hangs if it is to use mixed precision."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM.format(calls=str(tmp_path / "calls")))
    return path


def test_runs_that_fail_or_hang_are_rows(program, tmp_path):
    argv = ["--data", "digits", "--cases", "float32", "bfloat16", "resume", "--program", str(program)]
    rows = run(tmp_path / "out", *argv, "--time-limit", "2")
    assert rows["digits", "float32"].status == "failed: exit code 3, expected 0: some trouble"
    assert rows["digits", "bfloat16"].status == "failed: took longer than 2 s"
    assert rows["digits", "resume"].status == "failed: exit code 3, expected 75: some trouble"
    assert all(row.seconds > 0 and row.train_loss is None for row in rows.values())


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
