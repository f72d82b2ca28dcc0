"""Rows of measurements as CSV, text and Markdown.

A row is an instance of a frozen dataclass of numbers, strings and None.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from hyena_vision.training.checkpoint_files import replace_file

Row = TypeVar("Row")


def write_csv(rows: Sequence[Any], folder: str, name: str) -> None:
    """Write rows to the file `name` of a folder, which is made if it is missing; None is an empty cell."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    writer = csv.DictWriter(text := io.StringIO(), [field.name for field in fields(rows[0])])
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    replace_file(str(Path(folder) / name), text.getvalue().encode())  # a kill leaves the old rows or the new


def read_csv(path: str, row_type: type[Row]) -> list[Row]:
    """Read rows of a class that `write_csv` wrote; they are equal to those written."""
    types = get_type_hints(row_type)

    def parse(name: str, text: str) -> Any:
        kinds = get_args(types[name]) or (types[name],)
        if text == "" and type(None) in kinds:
            return None
        return text == "True" if kinds[0] is bool else kinds[0](text)

    with open(path, newline="", encoding="utf-8") as file:
        return [row_type(**{name: parse(name, text) for name, text in row.items()}) for row in csv.DictReader(file)]


def markdown_table(rows: Sequence[Any], columns: Sequence[str]) -> str:
    """Aligned Markdown table of some attributes of the rows; an underscore of a name becomes a space."""
    columns_cells = []
    for name in columns:
        values = [getattr(row, name) for row in rows]
        right = any(isinstance(value, (int, float)) for value in values)
        cells = [name.replace("_", " "), "---:" if right else "---", *map(_text, values)]
        width = max(map(len, cells))
        columns_cells.append([cell.rjust(width) if right else cell.ljust(width) for cell in cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns_cells, strict=True))


def _text(value: Any) -> str:
    if value is None:
        return "n/a"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)
