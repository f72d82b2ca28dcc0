"""Figures of measurements: speed, its ratio to the base's in the same rounds, and peak memory.

What slows the machine for a while dents all curves of speed at once. Only the ratio tells it from a slow model.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyena_vision.benchmark.timing import OUT_OF_MEMORY
from hyena_vision.training.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = {"images_per_s": "images/s", "ratio": "speed / {base}, same rounds", "peak_mb": "peak memory (MB)"}


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
    """Draw rows of `ops` or `models` over their size, a line per contender, quartiles as bars; axes are logarithmic.

    A cross at the lower edge is a lack of memory.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.6), layout="constrained")
    unit = "tokens" if rows[0].mode.startswith("forward") else "pixels"
    ticks, names = sorted({row.size for row in rows}), dict.fromkeys(row.name for row in rows)
    for axes, (column, title) in zip(figure.subplots(1, 3), PANELS.items(), strict=True):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", subs=(1.5, 2, 3, 5, 7))
        for index, name in enumerate(names):
            measured = [row for row in rows if row.name == name and getattr(row, column) is not None]
            at, color = [row.size for row in measured], f"C{index}"
            axes.plot(at, [getattr(row, column) for row in measured], "o-", markersize=4, color=color, label=name)
            if hasattr(rows[0], f"{column}_low"):
                low, high = ([getattr(row, f"{column}_{end}") for row in measured] for end in ("low", "high"))
                axes.vlines(at, low, high, color=color, linewidth=5, alpha=0.4)
            if missing := [row.size for row in rows if row.name == name and row.status == OUT_OF_MEMORY]:
                # Beside each other where several contenders miss the same point
                heights, label = [0.03 + 0.04 * index] * len(missing), f"{name}: out of memory"
                axes.plot(missing, heights, "x", color=color, transform=axes.get_xaxis_transform(), label=label)
        axes.set(xlabel=f"side ({unit})", title=title.format(base=rows[0].base))
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.grid(alpha=0.3, which="both")
    figure.axes[1].axhline(1, color="0.5", linewidth=1, zorder=0)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", fontsize="small", ncols=4)
    return figure
