"""Studies: runs with several seeds that follow each other, as curves and a table."""

import csv
import re
import statistics
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml
from trainer import QUICK, ROOT, summary

from hyena_vision import train
from hyena_vision.benchmark import study
from hyena_vision.benchmark.__main__ import main
from hyena_vision.training.errors import UserError

STUDY = dict(
    title="Two runs",
    common=" ".join(QUICK),
    seeds=[0, 1],
    runs={"first": "--epochs 1", "second": "--initial-checkpoint {first} --epochs 2"},
    curves={"alone": ["first"], "both": ["first", "second"]},
)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    return path


@pytest.fixture
def started(monkeypatch):
    """Runs in this process; the seeds and names of those that were started."""
    names = []

    def run(command, **options):
        argv = command[3:]  # python -m hyena_vision.train
        names.append((argv[argv.index("--seed") + 1], argv[argv.index("--experiment") + 1]))
        try:
            train.main(argv)
        except SystemExit as stopped:
            print("some trouble", file=options["stderr"])
            return SimpleNamespace(returncode=stopped.code)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(study, "call", run)
    return names


def test_runs_follow_each_other_and_are_not_trained_twice(path, started, images, tmp_path, capsys):
    output = tmp_path / "output"
    argv = ["study", str(path), "--output", str(output), "--args", "--data-dir", str(images)]
    main(argv)
    assert started == [("0", "first"), ("0", "second"), ("1", "first"), ("1", "second")]
    with open(output / "curves.csv", newline="") as file:
        points = {(row["curve"], row["seed"], int(row["updates"])): row["top1"] for row in csv.DictReader(file)}
    expected, last = {}, []
    for seed in ("0", "1"):
        (first,), second = (summary(output / f"seed-{seed}" / name) for name in ("first", "second"))
        expected |= {(curve, seed, 3): first["eval_top1"] for curve in ("alone", "both")}  # 24 images, batches of 8
        expected |= {("both", seed, 6): second[0]["eval_top1"], ("both", seed, 9): second[1]["eval_top1"]}
        last.append(float(second[1]["eval_top1"]))
    assert points == expected
    table = (output / "results.md").read_text()
    row = f"| both | 9 | {statistics.mean(last):.4g} | {statistics.stdev(last):.4g} | 2 |"
    assert row in re.sub(" +", " ", table)
    assert table.split("\n\n")[1] in capsys.readouterr().out and (output / "curves.png").stat().st_size > 0

    (output / "seed-1" / "second" / "model.safetensors").unlink()  # killed before it was finished
    before = (output / "curves.csv").read_bytes()
    started.clear()
    main(argv)
    assert started == [("1", "second")] and (output / "curves.csv").read_bytes() == before


def test_a_run_that_fails_ends_the_study_with_its_last_words(path, started, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["study", str(path), "--output", str(tmp_path / "output"), "--args", "--data-dir", "/no/such"])
    assert "seed-0/first ended with code 2" in (said := capsys.readouterr().err)
    assert "first.txt: some trouble" in said and started == [("0", "first"), ("1", "first")]  # other seeds go on


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        (dict(seeds=[]), "expected seeds: a list that is not empty, got []"),
        (
            dict(runs={"second": "--pretrained-path {first}"}),
            "run second needs 'first', expected one of those before it",
        ),
        (dict(curves={"other": ["third"]}), "curve 'other' has the run 'third', expected one of ['first', 'second']"),
    ],
)
def test_what_is_no_study(change, fragment, path, tmp_path, capsys):
    path.write_text(yaml.safe_dump(STUDY | change))
    with pytest.raises(SystemExit):
        main(["study", str(path), "--output", str(tmp_path / "output")])
    assert fragment in capsys.readouterr().err


def test_studies_of_the_repository_are_studies():
    paths = sorted((ROOT / "configs" / "studies").iterdir())
    assert paths and all(study.read_study(str(path)) for path in paths)


def test_a_program_that_outlives_the_benchmark_is_not_started_twice(tmp_path, monkeypatch):
    programs = []

    def start(command, **options):  # and come back, as if the benchmark had been killed
        programs.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, **options))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(study, "call", start)
    study.train_run(tmp_path / "run", [])
    with pytest.raises(UserError, match="run is trained by another process"):
        study.train_run(tmp_path / "run", [])
    programs[0].communicate(b"\n")
    study.train_run(tmp_path / "run", [])
    programs[1].communicate(b"\n")
    assert len(programs) == 2
