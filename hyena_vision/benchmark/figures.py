"""Rows of measurements as figures: absolute speed, speed over the base's in the same rounds, and peak memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyena_vision.benchmark.timing import OUT_OF_MEMORY
from hyena_vision.training.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_models(rows: Sequence[Any]) -> "Figure":
    """Draw rows of `models` over the image size, a line per model and mode.

    Returns:
        A figure of matplotlib: images/s, their ratio to the base model of the same round with its quartiles, and peak
        memory. Machines are shared: what slows all models at once shows in the first panel alone. A cross at the edge
        is a point for which memory ran out.

    Raises:
        UserError: matplotlib is missing.
    """
    several = len({row.mode for row in rows}) > 1
    labels = [row.model + (f", {row.mode}" if several else "") for row in rows]
    return _plot(rows, labels, ("img_size", "image size (pixels)"), ("images_per_s", "images/s"), rows[0].base)


def plot_ops(rows: Sequence[Any]) -> "Figure":
    """Draw rows of `ops` over the side of the grid, as `plot_models` does, with milliseconds for images/s."""
    return _plot(rows, [row.op for row in rows], ("grid", "grid side (tokens)"), ("ms", "ms"), "sdpa")


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


def _plot(
    rows: Sequence[Any], labels: Sequence[str], x: tuple[str, str], speed: tuple[str, str], base: str
) -> "Figure":
    require_matplotlib()
    from matplotlib.figure import Figure

    groups: dict[str, list[Any]] = {}
    for label, row in zip(labels, rows, strict=True):
        groups.setdefault(label, []).append(row)
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    panels = speed, ("ratio", f"times as fast as\n{base}"), ("peak_mb", "peak memory (MB)")
    for axes, (column, text) in zip(figure.subplots(1, 3), panels, strict=True):
        # Missing points stand where they would be: no images at the bottom, too much time or memory at the top
        _draw(axes, groups, x[0], column, edge=0.03 if column in ("images_per_s", "ratio") else 0.97)
        axes.set(xlabel=x[1], ylabel=text)
    figure.axes[1].axhline(1, color="0.5", linewidth=1, zorder=0)
    figure.axes[0].legend(fontsize="small")
    return figure


def _draw(axes: "Axes", groups: dict[str, list[Any]], x: str, y: str, edge: float) -> None:
    """A line per group on log axes, with quartiles where rows have them, and crosses where memory ran out."""
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for index, (label, rows) in enumerate(groups.items()):
        known = [row for row in rows if getattr(row, y) is not None]
        places, values = ([getattr(row, name) for row in known] for name in (x, y))
        axes.plot(places, values, marker="o", color=f"C{index}", label=label)
        if known and hasattr(known[0], f"{y}_low"):
            low, high = ([getattr(row, f"{y}_{end}") for row in known] for end in ("low", "high"))
            axes.vlines(places, low, high, color=f"C{index}", linewidth=4, alpha=0.3)
        missing = [getattr(row, x) for row in rows if row.status == OUT_OF_MEMORY]
        if missing:  # beside each other where several contenders miss the same point
            height = edge + (0.04 if edge < 0.5 else -0.04) * index
            marks = dict(color=f"C{index}", transform=axes.get_xaxis_transform(), label=f"{label}: out of memory")
            axes.plot(missing, [height] * len(missing), "x", **marks)
    ticks = sorted({getattr(row, x) for rows in groups.values() for row in rows})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)  # those of y stay: between two powers of ten they are all there is
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="y", which="minor", labelsize="x-small")
    axes.grid(alpha=0.3)
