"""Scripts that are run with the models registered."""

import json
import os
import runpy
import subprocess
import sys
from multiprocessing import get_context, spawn
from pathlib import Path

import pytest
from forks import ForkedPython

from hyena_vision.run import main

ROOT = Path(__file__).parents[1]

REPORT = """
import json, os, sys
is_main = sys.modules["__main__"].__dict__ is globals()
print(json.dumps([sys.argv, sys.path[:2], os.path.abspath(__file__), os.getcwd(), __name__, __spec__, is_main]))
sys.exit(7)
"""

WORKERS = """
import timm
import torch

class Logits(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        model = timm.create_model("hyena2d_iso_tiny", depth=1, embed_dim=8, num_classes=3)
        return model(torch.ones(1, 3, 32, 32)).shape[1] + index

if __name__ == "__main__":
    for method in ("fork", "forkserver"):
        loader = torch.utils.data.DataLoader(Logits(), num_workers=1, multiprocessing_context=method)
        print(method, [int(batch) for batch in loader])
"""


@pytest.fixture(autouse=True)
def _undo(monkeypatch):
    """Put back what main() changes for good."""
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.setattr(sys, "path", ["replaced", *sys.path])
    monkeypatch.setattr(spawn, "get_preparation_data", spawn.get_preparation_data)


def start(argv: list[str], folder: Path) -> None:
    """Body of a fork that is as if `python -m hyena_vision.run ARGV` had started in a folder."""
    os.chdir(folder)
    sys.stdout, sys.argv, sys.path = open("out", "w"), ["-m", *argv], [str(folder), str(ROOT)]
    runpy.run_module("hyena_vision.run", run_name="__main__", alter_sys=True)


def test_script_sees_what_it_sees_when_started_by_itself(tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "report.py").write_text(REPORT)
    (tmp_path / "link.py").symlink_to("scripts/report.py")
    arguments = ["link.py", "--help", "-m", "a b", "--", "--option=1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    alone = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    process = get_context("fork").Process(target=start, args=(arguments, tmp_path))
    process.start()
    process.join()
    assert process.exitcode == alone.returncode == 7, alone.stderr
    assert json.loads((tmp_path / "out").read_text()) == json.loads(alone.stdout)


@pytest.mark.slow
def test_workers_have_the_models(tmp_path):
    """Those of spawn are told the same as those of forkserver, and unpickle it the same way."""
    (tmp_path / "workers.py").write_text(WORKERS)
    with open(tmp_path / "out", "w") as out, open(tmp_path / "err", "w") as err:
        done = ForkedPython(["python", "-m", "hyena_vision.run", str(tmp_path / "workers.py")], out, err)
        done.wait(240)
    assert done.returncode == 0, (tmp_path / "err").read_text()
    assert (tmp_path / "out").read_text().splitlines() == ["fork [3, 4]", "forkserver [3, 4]"]


def test_arguments_and_name_of_the_script(tmp_path, capsys):
    script = tmp_path / "script.py"
    script.write_text("import sys, hyena_helper; print(__name__, sys.argv[1:], hyena_helper.VALUE)")
    (tmp_path / "hyena_helper.py").write_text("VALUE = 'beside the script'")
    main([str(script), "--help", "x"])
    assert capsys.readouterr().out == "__main__ ['--help', 'x'] beside the script\n"
    assert sys.argv == [str(script), "--help", "x"]
    assert sys.path[0] == str(tmp_path.resolve())
    assert "replaced" not in sys.path


@pytest.mark.parametrize("code", [0, 3, None, "a message"])
def test_exit_codes_pass_through(tmp_path, code):
    (tmp_path / "script.py").write_text(f"import sys; sys.exit({code!r})")
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / "script.py")])
    assert caught.value.code == code


def test_errors_pass_through(tmp_path):
    (tmp_path / "script.py").write_text("def fail():\n    raise KeyError('of the script')\n\nfail()\n")
    with pytest.raises(KeyError, match="of the script") as caught:
        main([str(tmp_path / "script.py")])
    assert [(entry.path.name, entry.name) for entry in caught.traceback[-2:]] == [
        ("script.py", "<module>"),
        ("script.py", "fail"),
    ]


def test_wrong_command_lines(tmp_path, capsys, monkeypatch):
    usage = "usage: python -m hyena_vision.run SCRIPT [ARGS...]\n"
    missing = str(tmp_path / "trian.py")
    for argv, code, out, err in (
        ([], 2, "", usage),
        (["--help"], 0, usage, ""),
        (["-h", "script.py"], 0, usage, ""),
        ([missing, "--help"], 2, "", f"hyena_vision.run: no such file: {missing!r}\n"),
        ([str(tmp_path)], 2, "", f"hyena_vision.run: no such file: {str(tmp_path)!r}\n"),
    ):
        monkeypatch.setattr(sys, "argv", ["run.py", *argv])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == code
        assert capsys.readouterr() == (out, err)
