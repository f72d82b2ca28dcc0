"""Learning curves of a run, and a table that compares runs.

Usage: python -m hyena_vision.training.report RUN [RUN ...] [--output FILE]
"""

import argparse
import csv
import json
import logging
import math
import os
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hyena_vision.training.checkpoint_files import replace_file
from hyena_vision.training.errors import UserError, one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_logger = logging.getLogger("train")


def write_results(folder: str, **values) -> None:
    """Write `results.json` of a run: what the comparison needs beside `summary.csv`.

    Raises:
        UserError: It cannot be written.
    """
    replace_file(os.path.join(folder, "results.json"), f"{json.dumps(values, indent=2)}\n".encode())


def read_summary(folder: str) -> list[dict[str, float]]:
    """Return the rows of a run's `summary.csv`, without what is empty in them, or no row of its columns.

    Raises:
        UserError: The file is missing or empty.
    """
    path = os.path.join(folder, "summary.csv")
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [
                {name: float(value) for name, value in row.items() if value}
                for row in csv.DictReader(file)
                if None not in (*row, *row.values())  # of a version that wrote other columns into the same file
            ]
    except FileNotFoundError:
        raise UserError(f"{folder} is not the folder of a run: it has no summary.csv") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not rows:
        raise UserError(f"{path} has no finished epoch")
    return rows


def plot_curves(runs: dict[str, list[dict[str, float]]], path: str) -> bool:
    """Draw loss and accuracy over epochs, one colour per run.

    Args:
        runs: Rows of `summary.csv` by the name of the run.
        path: PNG file to write.

    Returns:
        Whether it was written: False, after one log line, where matplotlib is missing.

    Raises:
        UserError: The file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        _logger.warning(f'No matplotlib, so no {path}: pip install "hyena-vision[train]"')
        return False
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for index, (name, rows) in enumerate(runs.items()):
        color = f"C{index}"
        for axes, column, line, label in (
            (loss, "train_loss", "--", f"{name}, training"),
            (loss, "eval_loss", "-", f"{name}, validation"),
            (accuracy, "eval_top1", "-", name),
        ):
            points = [(row["epoch"] + 1, row[column]) for row in rows if column in row]
            if points:  # a single one makes no line
                marker = "o" if len(points) == 1 else None
                axes.plot(*zip(*points, strict=True), line, label=label, color=color, marker=marker)
    loss.set(xlabel="epoch", ylabel="loss", title="Loss")
    accuracy.set(xlabel="epoch", ylabel="validation top-1 (%)", title="Accuracy")
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    _save(figure, path)
    return True


def plot_errors(rows: list[dict[str, float]], path: str) -> bool:
    """Draw the errors of the blocks of a converted model over epochs, one line per block, darker with depth.

    Args:
        rows: Rows of `summary.csv`.
        path: PNG file to write.

    Returns:
        Whether it was written: False where there are no such errors or no matplotlib.

    Raises:
        UserError: The file cannot be written.
    """
    blocks = block_errors(rows)
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ImportError:
        return False  # said by `plot_curves`
    if not blocks:
        return False
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    colors = colormaps["viridis_r"].resampled(len(blocks) + 1)
    for place, (block, points) in enumerate(blocks.items()):
        marker = "o" if len(points) == 1 else None
        axes.plot(*zip(*points, strict=True), label=f"block {block}", color=colors(place + 1), marker=marker)
    axes.set(xlabel="epoch", ylabel="relative error", yscale="log", title="Error of each block")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", ncols=1 + len(blocks) // 13)
    _save(figure, path)
    return True


def block_errors(rows: list[dict[str, float]]) -> dict[int, list[tuple[float, float]]]:
    """Return the points (epoch from 1, error) of each block of a converted model, by the number of the block."""
    found: dict[int, list[tuple[float, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith("eval_error_"):
                found.setdefault(int(name.rpartition("_")[2]), []).append((row["epoch"] + 1, value))
    return dict(sorted(found.items()))


def _save(figure: "Figure", path: str) -> None:
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise UserError(f"cannot write {path}: {one_line(error)}") from error


def compare(folders: Sequence[str]) -> str:
    """Return a Markdown table of runs: model, parameters, top-1 and training speed.

    Args:
        folders: Folders of finished runs.

    Raises:
        UserError: A folder without `summary.csv` or `results.json`.
    """
    header = ("model", "parameters", "top-1 last epoch (%)", "top-1 best epoch (%)", "training images/s")
    table = [header]
    for folder in folders:
        rows, results = read_summary(folder), read_results(folder)
        accuracy = [row["eval_top1"] for row in rows if "eval_top1" in row]
        table.append(
            (
                results["model"],
                f"{results['parameters']:,}",
                f"{accuracy[-1]:.2f}" if accuracy else "-",
                f"{max(accuracy):.2f}" if accuracy else "-",
                f"{results['images_per_second'] or math.nan:.0f}",
            )
        )
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    lines = [_row([cell.ljust(width) for cell, width in zip(row, widths, strict=True)]) for row in table]
    rule = _row(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join([lines[0], rule, *lines[1:]])


def images_per_second(speeds: Sequence[float]) -> float | None:
    """Return the median speed of the epochs, without the first one where there are others (it warms up)."""
    return statistics.median(speeds[1:] or speeds) if speeds else None


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table of the runs and draw their curves in one PNG."""
    parser = argparse.ArgumentParser(prog="hyena_vision.training.report", description="Compare finished runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument("--output", metavar="FILE", help="PNG to write (default: comparison.png beside the first run)")
    args = parser.parse_args(argv)
    output = args.output or os.path.join(os.path.dirname(os.path.abspath(args.runs[0])), "comparison.png")
    try:
        table = compare(args.runs)
        names = [os.path.basename(os.path.normpath(folder)) for folder in args.runs]
        if plot_curves({name: read_summary(run) for name, run in zip(names, args.runs, strict=True)}, output):
            table += f"\n\nLearning curves: {os.path.relpath(output)}"
    except UserError as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    print(table)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def read_results(folder: str) -> dict:
    """Return what `write_results` wrote.

    Raises:
        UserError: The file is missing or damaged.
    """
    try:
        with open(os.path.join(folder, "results.json"), encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        raise UserError(f"{folder} is not the folder of a finished run: it has no results.json") from None


if __name__ == "__main__":
    main()
