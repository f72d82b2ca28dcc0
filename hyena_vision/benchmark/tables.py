"""Rows of measurements, frozen dataclasses of numbers, strings and None, as CSV, text and Markdown."""

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

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
    """Read rows that `write_csv` wrote."""
    types = get_type_hints(row_type)

    def parse(name: str, text: str) -> Any:
        kinds = get_args(types[name]) or (types[name],)
        if text == "" and type(None) in kinds:
            return None
        return text == "True" if kinds[0] is bool else kinds[0](text)

    with open(path, newline="", encoding="utf-8") as file:
        return [row_type(**{name: parse(name, text) for name, text in row.items()}) for row in csv.DictReader(file)]


def text_table(rows: Sequence[Any]) -> str:
    """Aligned text: what all rows share in the first lines, machine first, and a column for the rest."""
    names = [field.name for field in dataclasses.fields(rows[0])]
    shared = [name for name in names[1:] if name != "status" and len({getattr(row, name) for row in rows}) == 1]
    shared = [name for name in shared if name != "machine"] if len(rows) > 1 else []
    lines = ["; ".join(sorted({row.machine for row in rows}))]
    lines += [", ".join(f"{name} {_text(getattr(rows[0], name))}" for name in shared)] if shared else []
    cells, numeric = _cells(rows, [name for name in names if name not in (*shared, "machine")])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        padded = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def markdown_table(rows: Sequence[Any], columns: Sequence[str]) -> str:
    """Markdown table of some attributes; an underscore becomes a space."""
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
