"""A study of training runs: several recipes, each with several seeds, as curves of accuracy over updates and a table.

A study is a YAML file:

    title: What it shows
    common: -c configs/digits_vit.yaml        # flags of all runs
    seeds: [0, 1, 2]
    runs:                                     # flags of each; {NAME} is the best checkpoint of an earlier run
      teacher: --epochs 100
      mixers: --convert hyena2d --convert-stage mixers --teacher-path {teacher} --epochs 4
      model: --convert hyena2d --convert-stage model --teacher-path {teacher} --pretrained-path {mixers} --epochs 6
    curves:                                   # runs that follow each other, by what to call them
      teacher: [teacher]
      both stages: [mixers, model]

A call that was ended goes on where it was when it is repeated; runs that are finished are not trained again.
"""

import argparse
import os
import re
import shlex
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hyena_vision.benchmark.figures import require_matplotlib, save_figure
from hyena_vision.benchmark.machine import describe_machine
from hyena_vision.benchmark.processes import call, last_line, pass_sigterm_on
from hyena_vision.benchmark.tables import markdown_table, write_csv
from hyena_vision.training.arguments import positive_int
from hyena_vision.training.errors import UserError
from hyena_vision.training.report import read_results, read_summary

if os.name == "posix":
    import fcntl
if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Point:
    """A validation of one run.

    Attributes:
        curve: What it is part of.
        seed: Of the run.
        run: Its name in the study.
        updates: Of the weights so far, by this run and those before it in the curve.
        top1: In per cent; None where it was not validated.
    """

    curve: str
    seed: int
    run: str
    updates: int
    top1: float | None


@dataclass(frozen=True)
class Result:
    """A curve's last point, over all seeds.

    Attributes:
        curve: Its name.
        updates: Until then.
        top1: Mean, in per cent.
        spread: Standard deviation over seeds, in points.
        seeds: Number of seeds.
        parameters: Of the model.
    """

    curve: str
    updates: int
    top1: float
    spread: float
    seeds: int
    parameters: int


def add_command(commands: Any) -> None:
    """Add the sub-command `study`."""
    text = "recipes with several seeds, as curves and a table"
    options = dict(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser = commands.add_parser("study", help=text, **options)
    parser.add_argument("study", metavar="FILE", help="YAML file of the study")
    parser.add_argument("--jobs", type=positive_int, default=1, metavar="N", help="seeds that are trained at a time")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for runs, logs, table and figure")
    parser.add_argument("--args", nargs=argparse.REMAINDER, default=[], help="what follows goes to all runs")
    parser.set_defaults(run=run)


@pass_sigterm_on()
def run(args: argparse.Namespace) -> list[Result]:
    """Train what is missing, print the table, and write curves.csv, results.md and curves.png.

    Args:
        args: Parsed arguments of the sub-command.

    Returns:
        The results.

    Raises:
        UserError: The file is not a study, matplotlib is missing, or a run fails: other seeds are trained to their end.
    """
    require_matplotlib()
    study, output = read_study(args.study), Path(args.output)
    with ThreadPoolExecutor(args.jobs) as pool:
        for _ in pool.map(lambda seed: _train_all(study, seed, output, args.args), study["seeds"]):
            pass
    points = [
        point for name in study["curves"] for seed in study["seeds"] for point in _points(study, name, seed, output)
    ]
    write_csv(points, str(output), "curves.csv")
    results = [_result(study, name, points, output) for name in study["curves"]]
    text = markdown_table(results, [*vars(results[0])])
    (output / "results.md").write_text(f"{study['title']}. {describe_machine()}\n\n{text}\n", encoding="utf-8")
    save_figure(plot(study["title"], points), str(output), "curves.png")
    print(text)
    return results


def read_study(path: str) -> dict[str, Any]:
    """Read a study.

    Args:
        path: The YAML file.

    Returns:
        `title`, `common`, `seeds`, `runs` and `curves`, whose names fit.

    Raises:
        UserError: The file cannot be read or is not a study.
    """
    try:
        with open(path, encoding="utf-8") as file:
            study = yaml.safe_load(file)
        kinds = {"title": str, "common": str, "seeds": list, "runs": dict, "curves": dict}
        for name, kind in kinds.items():
            if not isinstance(study.get(name), kind) or not study[name]:
                raise ValueError(f"expected {name}: a {kind.__name__} that is not empty, got {study.get(name)!r}")
        before: list[str] = []
        for name, flags in study["runs"].items():
            if unknown := [other for other in re.findall(r"\{(.*?)\}", str(flags)) if other not in before]:
                raise ValueError(f"run {name} needs {unknown[0]!r}, expected one of those before it: {before}")
            before.append(name)
        for name, runs in study["curves"].items():
            if unknown := [other for other in runs if other not in study["runs"]]:
                raise ValueError(f"curve {name!r} has the run {unknown[0]!r}, expected one of {before}")
    except (OSError, AttributeError, TypeError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not a study: {' '.join(str(error).split())}") from error
    return study


def _folder(output: Path, seed: int, name: str) -> Path:
    return output / f"seed-{seed}" / name


def _train_all(study: dict[str, Any], seed: int, output: Path, more: Sequence[str]) -> None:
    """Train the runs of one seed, one after the other."""
    best = {name: str(_folder(output, seed, name) / "model_best.pth.tar") for name in study["runs"]}
    for name, flags in study["runs"].items():
        folder = _folder(output, seed, name)
        if not is_finished(folder):
            flags = [word.format(**best) for word in shlex.split(f"{study['common']} {flags}")]
            train_run(folder, [*flags, "--seed", str(seed), *more])
            print(f"{os.path.relpath(folder)}: done", flush=True)


def is_finished(folder: Path) -> bool:
    """Whether a run has come to its end."""
    return (folder / "model.safetensors").exists()  # written last


def train_run(folder: Path, flags: Sequence[str]) -> None:
    """Train in a process of its own, or go on with a run that was ended.

    Args:
        folder: Of the run; what the program says goes into a file beside it.
        flags: Of the training program.

    Raises:
        UserError: It fails, or goes on already: the program outlives a benchmark that was killed.
    """
    command = [sys.executable, "-m", "hyena_vision.train", *flags, "--resume", "auto"]
    command += ["--output", str(folder.parent), "--experiment", folder.name]
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_name(f"{folder.name}.txt")
    with open(log, "a", encoding="utf-8") as file:
        try:
            if os.name == "posix":
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until the program, too, has closed the file
        except BlockingIOError:
            raise UserError(f"the run {folder} is trained by another process; wait for it, or end it") from None
        code = call(command, stdout=file, stderr=file).returncode
    if code:
        said = last_line(log.read_text(encoding="utf-8", errors="replace"))
        raise UserError(f"the run {folder} ended with code {code}, see {log}: {said}")


def _points(study: dict[str, Any], curve: str, seed: int, output: Path) -> list[Point]:
    """The validations of a curve's runs, one after the other."""
    points, updates = [], 0
    for name in study["curves"][curve]:
        folder = str(_folder(output, seed, name))
        rows, each = read_summary(folder), read_results(folder)["updates_per_epoch"]
        points += [
            Point(curve, seed, name, updates + round(each * (row["epoch"] + 1)), row.get("eval_top1")) for row in rows
        ]
        updates = points[-1].updates
    return points


def _result(study: dict[str, Any], curve: str, points: Sequence[Point], output: Path) -> Result:
    own = [point for point in points if point.curve == curve]
    last = [[point for point in own if point.seed == seed][-1] for seed in study["seeds"]]
    top1 = [point.top1 for point in last if point.top1 is not None]
    parameters = read_results(str(_folder(output, last[0].seed, last[0].run)))["parameters"]
    spread = statistics.stdev(top1) if len(top1) > 1 else 0.0
    return Result(curve, last[0].updates, statistics.mean(top1), spread, len(top1), parameters)


def plot(title: str, points: Sequence[Point]) -> "Figure":
    """Draw the mean over seeds of each curve, and between the least and the largest a band.

    Args:
        title: Of the figure.
        points: Of all curves.

    Returns:
        A figure of matplotlib.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for index, curve in enumerate(dict.fromkeys(point.curve for point in points)):
        values: dict[int, list[float]] = {}
        for point in points:
            if point.curve == curve and point.top1 is not None:
                values.setdefault(point.updates, []).append(point.top1)
        at = sorted(values)
        marker = "o" if len(at) == 1 else None
        means = [statistics.mean(values[update]) for update in at]
        axes.plot(at, means, label=curve, color=f"C{index}", marker=marker)
        axes.fill_between(at, [min(values[u]) for u in at], [max(values[u]) for u in at], color=f"C{index}", alpha=0.2)
    axes.set(xlabel="training updates", ylabel="validation top-1 (%)", title=title, xscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure
