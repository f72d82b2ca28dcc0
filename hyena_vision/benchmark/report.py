"""Rows of measurements as CSV, text, Markdown and figures.

A row is an instance of a frozen dataclass of numbers, strings and None.
"""

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

from hyena_vision.benchmark.timing import OUT_OF_MEMORY
from hyena_vision.training.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = TypeVar("Row")


def write_csv(rows: Sequence[Any], folder: str, name: str) -> None:
    """Write rows to the file `name` of a folder, which is made if it is missing; None is an empty cell."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    with open(path / name, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(rows[0])])
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)


def read_csv(path: str, row_type: type[Row]) -> list[Row]:
    """Read rows that `write_csv` wrote.

    Args:
        path: File.
        row_type: Class of the rows.

    Returns:
        The rows, equal to those written.
    """
    types = get_type_hints(row_type)

    def parse(name: str, text: str) -> Any:
        kinds = get_args(types[name]) or (types[name],)
        if text == "" and type(None) in kinds:
            return None
        return text == "True" if kinds[0] is bool else kinds[0](text)

    with open(path, newline="", encoding="utf-8") as file:
        return [row_type(**{name: parse(name, text) for name, text in row.items()}) for row in csv.DictReader(file)]


def table(rows: Sequence[Any]) -> str:
    """Aligned text: what all rows share in the first lines, machine first, and a column for the rest."""
    names = [field.name for field in dataclasses.fields(rows[0])]
    shared = [name for name in names[1:] if name != "status" and len({getattr(row, name) for row in rows}) == 1]
    shared = shared if len(rows) > 1 else ["machine"]
    columns = [name for name in names if name not in shared]
    facts = ", ".join(f"{name} {_text(getattr(rows[0], name))}" for name in shared if name != "machine")
    lines = ["; ".join(sorted({row.machine for row in rows})), *([facts] if facts else [])]
    columns = [name for name in columns if name != "machine"]
    cells, numeric = _cells(rows, columns)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        )
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def markdown_table(rows: Sequence[Any], columns: Sequence[str]) -> str:
    """Markdown table of some columns.

    Args:
        rows: Rows of one class.
        columns: Names of its attributes; an underscore becomes a space.
    """
    (header, *body), numeric = _cells(rows, columns)
    rule = ["---:" if right else "---" for right in numeric]
    lines = [[name.replace("_", " ") for name in header], rule, *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(rows: Sequence[Any], columns: Sequence[str]) -> tuple[list[list[str]], list[bool]]:
    """Header and rows as text, and which columns hold numbers."""
    values = [[getattr(row, name) for name in columns] for row in rows]
    numeric = [any(isinstance(value, (int, float)) for value in column) for column in zip(*values, strict=True)]
    return [list(columns), *[[_text(value) for value in line] for line in values]], numeric


def _text(value: Any) -> str:
    if value is None:
        return "n/a"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def plot_models(rows: Sequence[Any]) -> "Figure":
    """Draw images/s and peak memory over the resolution, a line per model and mode.

    Args:
        rows: Rows of `hyena_vision.benchmark.models`.

    Returns:
        A figure of matplotlib. A cross at the edge is a point for which memory ran out.

    Raises:
        UserError: matplotlib is missing.
    """
    several = len({row.mode for row in rows}) > 1
    labels = [row.model + (f", {row.mode}" if several else "") for row in rows]
    return _speed_and_memory(rows, labels, ("img_size", "image size (pixels)"), ("images_per_s", "images/s"), edge=0.03)


def plot_ops(rows: Sequence[Any]) -> "Figure":
    """Draw milliseconds and peak memory over the side of the grid, a line per operator.

    Args:
        rows: Rows of `hyena_vision.benchmark.ops`.

    Returns:
        A figure of matplotlib. A cross at the edge is a point for which memory ran out.

    Raises:
        UserError: matplotlib is missing.
    """
    return _speed_and_memory(rows, [row.op for row in rows], ("grid", "grid side (tokens)"), ("ms", "ms"), edge=0.97)


def save_figure(figure: "Figure", folder: str, name: str) -> None:
    """Write a figure to the file `name` of a folder, which is made if it is missing."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    figure.savefig(Path(folder) / name, dpi=120)


def require_matplotlib() -> None:
    """Raise a `UserError` that says what to install if there is no matplotlib."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise UserError('figures need matplotlib: pip install "hyena-vision[train]"') from None


def _speed_and_memory(
    rows: Sequence[Any], labels: Sequence[str], x: tuple[str, str], speed: tuple[str, str], edge: float
) -> "Figure":
    """Two panels, a line per label; x and speed are attributes and their texts, `edge` where missing speeds stand."""
    require_matplotlib()
    from matplotlib.figure import Figure

    groups: dict[str, list] = {}
    for label, row in zip(labels, rows, strict=True):
        groups.setdefault(label, []).append(row)
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = (speed, edge), (("peak_mb", "peak memory (MB)"), 0.97)
    for axes, ((column, text), height) in zip(figure.subplots(1, 2), panels, strict=True):
        _lines(axes, groups, x[0], column, edge=height)
        axes.set(xlabel=x[1], ylabel=text)
    figure.axes[0].legend(fontsize="small")
    return figure


def _lines(axes: "Axes", groups: dict[str, list], x: str, y: str, edge: float) -> None:
    """Draw a line per group on log axes; points without memory are crosses at a height of `edge` of the panel."""
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for index, (label, rows) in enumerate(groups.items()):
        color = f"C{index}"
        points = [(getattr(row, x), getattr(row, y)) for row in rows if getattr(row, y) is not None]
        axes.plot(*zip(*points, strict=True) if points else ([], []), marker="o", color=color, label=label)
        missing = [getattr(row, x) for row in rows if row.status == OUT_OF_MEMORY]
        # Beside each other where several contenders miss the same point
        height = edge + (0.04 if edge < 0.5 else -0.04) * index
        if missing:
            axes.plot(
                missing,
                [height] * len(missing),
                "x",
                color=color,
                transform=axes.get_xaxis_transform(),
                label=f"{label}: out of memory",
            )
    ticks = sorted({getattr(row, x) for rows in groups.values() for row in rows})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)  # those of y stay: between two powers of ten they are all there is
    axes.grid(alpha=0.3)
