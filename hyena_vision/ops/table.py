"""Which backend `backend=None` takes on a GPU: the fused kernels where this card has shown them right and fast.

`python -m hyena_vision.benchmark tune` compares and times them on the card at hand and writes a table into the user's
cache folder. The first call on a card reads it, for the life of the process: what runs is the same in eager and in
compiled code. Without a table it is `fft`, as it is in exported programs, which run without this package.

`HYENA_VISION_BACKEND_TABLE` names another file, or is 0 for no table. Tables in the folder `tables` beside this file
come with the package and count where the user has made none.
"""

import hashlib
import json
import logging
import math
import os
import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hyena_vision.ops.cache import cache_folder
from hyena_vision.version import __version__

_logger = logging.getLogger("hyena_vision")

COMMAND = "python -m hyena_vision.benchmark tune"
SWITCH = "HYENA_VISION_BACKEND_TABLE"
# With gradients; without them; without them and with a prepared kernel, as in a reparameterized model
USES = ("training", "inference", "prepared")
_SHIPPED = Path(__file__).with_name("tables")
# Smallest tiles of the kernels, by number of axes; all others are powers of two
_LEAST_TILE = {1: 256, 2: 16}
# Where kernels run without a GPU, for tests and dry runs; Triton reads the same variable, once
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


class Card(NamedTuple):
    """A kind of GPU.

    Attributes:
        name: As the driver gives it.
        capability: Of its compute units, (9, 0) for Hopper.
    """

    name: str
    capability: tuple[int, int]


@dataclass(frozen=True)
class Row:
    """What was measured of the long convolutions of one size.

    Attributes:
        size: (L,) of `long_conv1d`, (H, W) of `long_conv2d`.
        dtype: Of the signals, such as "bfloat16".
        use: One of `USES`.
        triton_ms: Median time of the fused kernels in milliseconds, None if they were not timed.
        fft_ms: That of `fft`.
        wrong: Why the kernels are not used whatever their time, empty if they were right.
    """

    size: tuple[int, ...]
    dtype: str
    use: str
    triton_ms: float | None
    fft_ms: float | None
    wrong: str = ""

    @property
    def backend(self) -> str:
        """The one that is taken: "triton" if it was right and at least as fast, else "fft"."""
        if self.wrong or self.triton_ms is None or self.fft_ms is None:
            return "fft"
        return "triton" if self.triton_ms <= self.fft_ms else "fft"


@dataclass(frozen=True)
class BackendTable:
    """What was measured on one card; printing it gives a table for people.

    Attributes:
        card: The GPU, None for a device that has no table.
        rows: Of all sizes, dtypes and uses; empty if nothing was measured.
        versions: Of torch, Triton, this package, and of the kernels' sources.
        source: File that it was read from, None for none.
    """

    card: Card | None
    rows: tuple[Row, ...] = ()
    versions: tuple[tuple[str, str], ...] = ()
    source: str | None = None

    @property
    def choices(self) -> str:
        """Which sizes run what in training, in a word that is equal for equal choices: "fft" where all do."""
        chosen = (row for row in self.rows if row.use == "training" and row.backend == "triton")
        choices = sorted((row.size, row.dtype) for row in chosen)
        return f"triton-{hashlib.sha256(repr(choices).encode()).hexdigest()[:8]}" if choices else "fft"

    def covers(self, rank: int, dtype: str, use: str) -> tuple[tuple[tuple[tuple[int, int], ...], bool], ...]:
        """Ranges of sizes, in the order in which they are to be tried, each with whether Triton is taken there.

        A row stands for the sizes of its tile that have at least half its tokens and no smaller row; the largest row of
        a tile also for larger sizes. What is in no range is not known.

        Args:
            rank: Number of axes.
            dtype: As in rows.
            use: As in rows.

        Returns:
            Of each range, (more than, at most) of each axis, and whether Triton is taken.
        """
        rows = [row for row in self.rows if (len(row.size), row.dtype, row.use) == (rank, dtype, use)]
        rows.sort(key=lambda row: (math.prod(row.size), row.size))
        own, above = [], {}
        for row in rows:
            tile = tuple(tile_of(n, rank) for n in row.size)
            lowest = [
                max(low, math.ceil(n * 0.5 ** (1 / rank)) - 1) for (low, _), n in zip(tile, row.size, strict=True)
            ]
            own.append((tuple(zip(lowest, row.size, strict=True)), row.backend == "triton"))
            highest = [high for _, high in tile]
            above[tile] = tuple(zip(lowest, highest, strict=True)), row.backend == "triton"
        return (*own, *above.values())

    def __str__(self) -> str:
        if self.card is None:
            return "no GPU: no table"
        head = f"{self.card.name} (sm_{self.card.capability[0]}{self.card.capability[1]})"
        if not self.rows:
            return f"{head}: nothing was measured, so fft runs; `{COMMAND}` measures"
        lines = [
            f"{head}, {', '.join(f'{name} {value}' for name, value in self.versions)}, {self.source or 'not saved'}"
        ]
        lines += ["size       dtype     use         triton ms    fft ms  fft / triton  taken"]
        for row in self.rows:
            size = "x".join(map(str, row.size))
            times = "".join(f"{'-' if t is None else format(t, '.4f'):>10}" for t in (row.triton_ms, row.fft_ms))
            ratio = f"{row.fft_ms / row.triton_ms:.2f}" if row.triton_ms and row.fft_ms else "-"
            taken = f"{row.backend}{f': {row.wrong}' if row.wrong else ''}"
            lines.append(f"{size:<10} {row.dtype:<9} {row.use:<10} {times}  {ratio:>12}  {taken}")
        return "\n".join(lines)


def tile_of(n: int, rank: int) -> tuple[int, int]:
    """The sizes that share a tile of the fused kernels with n on an axis: (more than, at most)."""
    least = _LEAST_TILE[rank]
    high = max(least, 1 << (n - 1).bit_length())
    return (0 if high == least else high // 2), high


def card_of(device: torch.device | str | None = None) -> Card | None:
    """The card of a device, by default of the current GPU; None for a device that has no table."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and torch.version.hip is None:
        properties = torch.cuda.get_device_properties(device)
        return Card(properties.name, (properties.major, properties.minor))
    return Card("Triton's interpreter", (0, 0)) if device.type == "cpu" and INTERPRETED else None


def backend_table(device: torch.device | str | None = None) -> BackendTable:
    """What `backend=None` follows on a device, the same for the life of the process.

    >>> print(hyena_vision.ops.backend_table())

    Args:
        device: By default the current GPU.

    Returns:
        Without rows if there is no table: then it is `fft` on a GPU.
    """
    return _load(card_of(device))


def can_have_table(device: torch.device) -> bool:
    """Whether there are tables for such a device at all."""
    return (device.type == "cuda" and torch.version.hip is None) or INTERPRETED


def picks_triton(device: torch.device, size: Sequence[int], dtype: torch.dtype, use: str) -> bool:
    """Whether the table of a device takes the fused kernels, for shared kernels and zeros outside the signal.

    Args:
        device: Of the signals.
        size: (L,) or (H, W); may be symbolic, which binds a compiled graph to a range of sizes.
        dtype: Of the signals.
        use: One of `USES`.
    """
    for ranges, taken in _covers(f"{device}", len(size), f"{dtype}".removeprefix("torch."), use):
        if all([low < n <= high for (low, high), n in zip(ranges, size, strict=True)]):
            return taken
    return False


@torch.compiler.assume_constant_result
def _covers(device: str, rank: int, dtype: str, use: str) -> tuple:
    return _covers_of_card(card_of(device), rank, dtype, use)


@cache
def _covers_of_card(card: Card | None, rank: int, dtype: str, use: str) -> tuple:
    return _load(card).covers(rank, dtype, use)


@cache
def _load(card: Card | None) -> BackendTable:
    switch = os.environ.get(SWITCH, "")
    if card is None or switch == "0":
        return BackendTable(card)
    paths = [Path(switch)] if switch else [path for path in (cache_path(card), _SHIPPED / _file_name(card)) if path]
    ignored = False
    for path in paths:
        if not path.exists() and not switch:
            continue
        try:
            return read_table(path, card)
        except (OSError, ValueError) as error:
            _logger.warning(f"The table of backends {path} is ignored: {error}. `{COMMAND}` makes a new one.")
            ignored = True
    if not ignored and not INTERPRETED and find_spec("triton") is not None:
        _logger.warning(
            f"Long convolutions on {card.name} run torch.fft: `{COMMAND}` finds out, once and in five minutes, where "
            f"the fused kernels are faster on this card, and they are used from then on. {SWITCH}=0 is for silence."
        )
    return BackendTable(card)


def read_table(path: str | Path, card: Card) -> BackendTable:
    """Read a table.

    Args:
        path: A file that `write_table` wrote.
        card: What it must have been measured on.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged, of another card, or of other versions; the message has both.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        content = json.loads(text)
        major, minor = content["capability"]
        measured = Card(str(content["card"]), (int(major), int(minor)))
        versions = {str(name): str(value) for name, value in content["versions"].items()}
        rows = tuple(_parsed(row) for row in content["rows"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"it is damaged ({type(error).__name__}: {error})") from error
    if measured != card:
        raise ValueError(
            f"it was measured on {measured.name} {measured.capability}, this is {card.name} {card.capability}"
        )
    for name, here in current_versions().items():
        if name != "hyena_vision" and _release(versions.get(name, "none")) != _release(here):
            raise ValueError(f"it was measured with {name} {versions.get(name, 'none')}, here it is {here}")
    return BackendTable(card, rows, tuple(versions.items()), str(path))


def write_table(table: BackendTable, path: str | Path) -> BackendTable:
    """Write the table of a card, whole or not at all, and return it with its new source."""
    path, card = Path(path), table.card
    if card is None:
        raise ValueError("a table is of a card, got one without")
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "card": card.name,
        "capability": card.capability,
        "versions": dict(table.versions),
        "rows": [asdict(row) for row in table.rows],
    }
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8") as file:
        json.dump(content, file, indent=1)
    os.replace(file.name, path)
    return replace(table, source=str(path))


def cache_path(card: Card) -> Path | None:
    """Where the table of a card is kept for this user; None for a user without a home."""
    folder = cache_folder()
    return None if folder is None else folder / "tables" / _file_name(card)


def current_versions() -> dict[str, str]:
    """Of all that a measurement depends on; that of the kernels follows from their sources."""
    triton = "none"
    for name in ("triton", "pytorch-triton", "triton-windows"):
        with suppress(PackageNotFoundError):
            triton = version(name)
            break
    return {"torch": torch.__version__, "triton": triton, "hyena_vision": __version__, "kernels": _kernels_version()}


@cache
def _kernels_version() -> str:
    sources = sorted(Path(__file__).with_name("triton").glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]


def _release(text: str) -> str:
    """Of torch and Triton what is before the last point: 2.11 of 2.11.0+cu130."""
    found = re.match(r"(\d+\.\d+)\.", text)
    return found[1] if found else text


def _file_name(card: Card) -> str:
    return f"{re.sub(r'[^a-z0-9]+', '-', card.name.lower()).strip('-')}.json"


def _parsed(row: dict[str, Any]) -> Row:
    size, times = tuple(row["size"]), (row["triton_ms"], row["fft_ms"])
    if len(size) not in _LEAST_TILE or not all(type(n) is int and n > 0 for n in size):
        raise ValueError(f"size must be one or two positive numbers, got {size}")
    if row["use"] not in USES or not hasattr(torch, row["dtype"]):
        raise ValueError(f"unknown use or dtype: {row['use']}, {row['dtype']}")
    if not all(t is None or (type(t) is float and 0 < t < math.inf) for t in times):
        raise ValueError(f"times must be positive numbers, got {times}")
    return Row(size, row["dtype"], row["use"], *times, str(row["wrong"]))
