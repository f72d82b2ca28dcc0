"""Figures of measurements: speed, its ratio to the base's in the same rounds, and peak memory.

What slows the machine for a while dents all curves of speed at once. Only the ratio tells it from a slow model.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyena_vision.benchmark.timing import OUT_OF_MEMORY
from hyena_vision.training.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Column, text, and height of crosses for those without memory
PANELS = (
    ("images_per_s", "images/s", 0.03),
    ("ratio", "speed / {base}, same rounds", 0.03),
    ("peak_mb", "peak memory (MB)", 0.97),
)


def require_matplotlib() -> None:
    """Raise a `UserError` that says what to install if there is no matplotlib."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise UserError('figures need matplotlib: pip install "hyena-vision[train]"') from None


def save_figure(figure: "Figure", folder: str, name: str) -> None:
    """Write a figure to the file `name` of a folder, which is made if it is missing."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    figure.savefig(Path(folder) / name, dpi=120)


def plot(rows: Sequence[Any]) -> "Figure":
    """Draw rows of `ops` or `models` over their size, a line per contender; a cross is a lack of memory."""
    require_matplotlib()
    from matplotlib.figure import Figure

    groups: dict[str, list] = {}
    for row in rows:
        groups.setdefault(row.name, []).append(row)
    figure = Figure(figsize=(14, 4.6), layout="constrained")
    unit = "tokens" if rows[0].mode.startswith("forward") else "pixels"
    for axes, (column, text, edge) in zip(figure.subplots(1, 3), PANELS, strict=True):
        _lines(axes, groups, column, edge)
        axes.set(xlabel=f"side ({unit})", title=text.format(base=rows[0].base))
    figure.axes[1].axhline(1, color="0.5", linewidth=1, zorder=0)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", fontsize="small", ncols=4)
    return figure


def _lines(axes: "Axes", groups: dict[str, list], y: str, edge: float) -> None:
    """Draw medians as lines, quartiles as bars, and crosses at a height of `edge` where memory ran out; log axes."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for index, (label, rows) in enumerate(groups.items()):
        measured = [row for row in rows if getattr(row, y) is not None]
        at, medians = ([getattr(row, name) for row in measured] for name in ("size", y))
        axes.plot(at, medians, marker="o", markersize=4, color=f"C{index}", label=label)
        if measured and hasattr(measured[0], f"{y}_low"):
            low, high = ([getattr(row, f"{y}_{end}") for row in measured] for end in ("low", "high"))
            axes.vlines(at, low, high, color=f"C{index}", linewidth=5, alpha=0.4)
        if missing := [row.size for row in rows if row.status == OUT_OF_MEMORY]:
            # Beside each other where several contenders miss the same point
            heights = [edge + (0.04 if edge < 0.5 else -0.04) * index] * len(missing)
            style = dict(color=f"C{index}", transform=axes.get_xaxis_transform(), label=f"{label}: out of memory")
            axes.plot(missing, heights, "x", **style)
    ticks = sorted({row.size for rows in groups.values() for row in rows})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
