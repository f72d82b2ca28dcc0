"""The report of a GPU, dry: every part's steps, tables and figures; and steps that fail, hang or are left."""

import multiprocessing
import shutil
import signal
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import SimpleNamespace

import pytest
from forks import ForkedPython
from PIL import Image
from trainer import ROOT

from hyena_vision.benchmark import gpu_report
from hyena_vision.benchmark.__main__ import main
from hyena_vision.benchmark.gpu_report import Part, Step, StepRow, make_parts
from hyena_vision.benchmark.tables import read_csv

pytest.importorskip("triton")


def numbers(folder):
    """Of the first part for each way of gathering."""
    first = {}
    for number, part in enumerate(make_parts(True, folder), start=1):
        first.setdefault(part.gather, number)
    return list(first.values())


def start(target, args):
    """Body of a fork, which is to say what it says, and to end when it is asked to, as one of a server's."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
    target(*args)


@pytest.fixture
def forked(monkeypatch):
    """Steps, and what they start, are forks of this process, which has imported what they need."""
    context = multiprocessing.get_context("fork")

    def fork(target, args):
        ForkingPickler.dumps((target, args))  # as a server of forks needs them
        return context.Process(target=start, args=(target, args))

    def call(command):
        process = ForkedPython(command)
        process.wait()
        return process.returncode

    server = SimpleNamespace(Process=fork, set_forkserver_preload=lambda names: None)
    monkeypatch.setattr(gpu_report, "multiprocessing", SimpleNamespace(get_context={"forkserver": server}.get))
    monkeypatch.setattr(gpu_report, "subprocess", SimpleNamespace(call=call))
    monkeypatch.setattr(gpu_report.runs, "subprocess", SimpleNamespace(Popen=ForkedPython))
    monkeypatch.setitem(gpu_report.runs._DATA, "folder", f"{gpu_report.runs._DATA['folder']} --model-kwargs depth=1")
    monkeypatch.setattr(gpu_report.torch.cuda, "_is_in_bad_fork", lambda: False)  # they need no CUDA


@pytest.mark.slow
def test_every_kind_of_part_runs_and_writes_tables_and_a_figure(tmp_path, forked, monkeypatch):
    """Without a GPU, and of the parts that are gathered alike, one."""
    monkeypatch.chdir(ROOT)
    chosen = numbers(tmp_path)
    main(["gpu-report", "--dry", "--output", str(tmp_path), "--part", *map(str, chosen)])
    rows = read_csv(str(tmp_path / "steps.csv"), StepRow)
    assert len(chosen) > 5 and {row.part for row in rows} == set(chosen)
    assert {f"{row.part}/{row.step}": row.status for row in rows if row.status != "ok"} == {}
    for part in [make_parts(True, tmp_path)[number - 1] for number in chosen]:
        text = (tmp_path / part.name / "README.md").read_text()
        assert "|" in text and "failed" not in text.replace("| failed |", "")
        (csv, *_), (figure, *_) = (sorted((tmp_path / part.name).glob(f"*.{kind}")) for kind in ("csv", "png"))
        assert len(csv.read_text().splitlines()) > 1
        assert Image.open(figure).convert("L").getextrema() == (0, 255)
    assert "[3-operators](3-operators/README.md)" in (tmp_path / "README.md").read_text()
    # The kernels of tests are named
    assert "_long_conv_fwd_kernel" in (tmp_path / "1-tests" / "kernels.csv").read_text()


def test_real_parts_ask_for_what_commands_have(tmp_path):
    """Arguments of the steps of a real report are those that the commands take, down to names of models."""
    parser = gpu_report.argparse.ArgumentParser()
    commands = parser.add_subparsers()
    from hyena_vision.benchmark import __main__ as program

    for command in program.COMMANDS:
        command.add_command(commands)
    parts = make_parts(False, tmp_path)
    steps = [step for part in parts for step in part.steps if step.argv[0] != "pytest"]
    assert len(steps) > 40 and len({part.name for part in parts}) == 11
    for step in steps:
        args = parser.parse_args([*step.argv, *([] if "--output" in step.argv else ["--output", "x"])])
        assert step.seconds <= 480 and getattr(args, "device", "cuda") == "cuda"


FAIL = Step("fails", ("ops", "--dim", "7", "--heads", "2"))
HANG = Step("hangs", ("pytest", "hang.py"), seconds=3)
GOOD = Step(
    "goes", ("ops", "--grids", "2", "--dim", "2", "--heads", "1", "--only", "copy", "--no-memory", "--device", "cpu")
)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A report of three steps, of which one fails and one hangs."""
    gathered = []
    parts = [Part("1-small", (FAIL, HANG, GOOD), lambda folder: gathered.append(folder))]
    monkeypatch.setattr(gpu_report, "make_parts", lambda dry, folder: parts)
    monkeypatch.setattr(gpu_report, "_SECONDS_TO_START", 1)
    return gathered


def run(folder, *argv):
    main(["gpu-report", "--dry", "--output", str(folder), *argv])
    path = folder / "steps.csv"
    return {row.step: row.status for row in read_csv(str(path), StepRow)} if path.exists() else {}


def is_running(pid):
    """Whether a process has not ended; one that nobody has asked about since is a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_failures_are_rows_and_the_next_step_goes_on(small, forked, tmp_path, monkeypatch, capsys):
    # Without files of the process that it was forked from, as a program that is started
    body = "os.closerange(3, 256); pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(60)"
    (tmp_path / "hang.py").write_text(f"import os, time, pathlib\ndef test_hang():\n    {body}\n")
    monkeypatch.chdir(tmp_path)
    status = run(tmp_path / "report", "--part", "1")
    assert "--dim must be a multiple of --heads" in status["fails"] and "exit code 1" in status["fails"]
    assert status["hangs"] == "failed: took longer than 3 s" and small == [tmp_path / "report" / "1-small"]
    assert status["goes"] == "ok"
    assert not is_running((tmp_path / "pid").read_text())
    assert "failed: fails, hangs" in capsys.readouterr().out


def test_a_part_without_time_is_left_and_goes_on_when_called_again(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_report, "_SECONDS_TO_START", 1000)
    assert set(run(tmp_path, "--part", "1").values()) == {"left"}
    assert "left: fails, hangs, goes" in capsys.readouterr().out
    calls = []

    def run_step(part, step, folder, root, left):
        calls.append(step.name)
        return StepRow(part, step.name, "ok", 1.0, "a machine")

    monkeypatch.setattr(gpu_report, "_run_step", run_step)
    assert set(run(tmp_path, "--part", "1").values()) == {"ok"} and calls == ["fails", "hangs", "goes"]
    run(tmp_path, "--part", "1")
    assert calls == ["fails", "hangs", "goes"] and "3 of 3 steps done" in capsys.readouterr().out


def test_what_there_is_to_do_is_told(small, tmp_path, capsys):
    assert run(tmp_path) == {} and "PART=1 1-small: 0 of 3 steps done; left: fails" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(tmp_path, "--part", "2")
    assert "--part must be 1 to 1, got 2" in capsys.readouterr().err


def test_tables_that_fail_hide_nothing(small, tmp_path, monkeypatch, capsys):
    def gather(folder):
        raise ValueError("no rows")

    monkeypatch.setattr(gpu_report, "make_parts", lambda dry, folder: [Part("1-small", (), gather)])
    run(tmp_path, "--part", "1")
    assert "1-small: its tables and figure failed: ValueError: no rows" in capsys.readouterr().err


JUNIT = """<testsuites><testsuite>
<testcase classname="tests.ops.test_a" name="test_one"><properties>
<property name="kernels" value="_a_kernel _b_kernel"/></properties></testcase>
<testcase classname="tests.ops.test_a" name="test_two[x]"><properties><property name="kernels" value="_b_kernel"/>
</properties><failure message="dx in bfloat16: relative RMS 2e-2&#10;more">trace</failure></testcase>
<testcase classname="tests.ops.test_b" name="test_three"><skipped message="no"/></testcase>
<testcase classname="" name="tests.ops.test_c"><error message="collection failure">ImportError</error></testcase>
</testsuite></testsuites>"""


def test_failures_of_each_kernel_are_named(tmp_path):
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu" / "tests.xml").write_text(JUNIT)
    gpu_report._gather_tests(tmp_path)
    kernels = {row.kernel: row for row in read_csv(str(tmp_path / "kernels.csv"), gpu_report.KernelRow)}
    assert [(kernels["_b_kernel"].passed, kernels["_b_kernel"].failed), kernels["_a_kernel"].failed] == [(1, 1), 0]
    assert (kernels["no kernel"].failed, kernels["no kernel"].skipped) == (1, 1)
    first, second = read_csv(str(tmp_path / "failures.csv"), gpu_report.FailureRow)
    assert first.test == "tests/ops/test_a.py::test_two[x]" and first.kernels == "_b_kernel"
    assert first.message == "dx in bfloat16: relative RMS 2e-2 more" and "collection" in second.message
    assert "test_two[x]" in (tmp_path / "README.md").read_text()


def test_make_calls_the_report():
    root, make = Path(gpu_report.__file__).parents[2], shutil.which("make")
    if make is not None:
        told = subprocess.run([make, "-n", "gpu-report", "PART=1 2"], cwd=root, capture_output=True, text=True)
        assert "gpu-report --output output/gpu-report --part 1 2" in told.stdout
