"""What the commands that measure speed share: arguments, the machine in words, and what becomes of rows."""

import argparse
import platform
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import timm
import torch

from hyena_vision.benchmark import figures, tables
from hyena_vision.benchmark.timing import FAILED
from hyena_vision.training.arguments import positive_int
from hyena_vision.training.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def add_measurement_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ops` and `models`."""
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=positive_int, metavar="N", help="CPU threads (default: torch's)")
    parser.add_argument("--rounds", type=positive_int, default=5, metavar="N", help="readings of each contender")
    parser.add_argument(
        "--no-memory", action="store_true", help="do not measure peak memory, which runs each once more"
    )
    add_output_argument(parser, "folder for the rows as CSV and their figure as PNG")


def add_output_argument(parser: argparse.ArgumentParser, text: str) -> None:
    """Add `--output`."""
    parser.add_argument("--output", metavar="DIR", help=text)


def apply_arguments(args: argparse.Namespace) -> None:
    """Set the threads, and find out before hours of measuring whether the figure can be drawn."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.output is not None:
        figures.require_matplotlib()


def finish(rows: Sequence[Any], label: str, figure: "Figure | None", output: str | None, name: str) -> None:
    """Print rows and save their figure; a `UserError` names those that failed, by the attribute `label`."""
    print(tables.text_table(rows))
    if output is not None and figure is not None:
        figures.save_figure(figure, output, name)
    if failed := [getattr(row, label) for row in rows if row.status.startswith(FAILED)]:
        raise UserError(f"failed, as their rows say: {', '.join(dict.fromkeys(failed))}")


def describe_machine() -> str:
    """Processor or GPU, threads, driver and versions in one line."""
    name = _found("/proc/cpuinfo", r"model name\s*: (.*)") or platform.processor() or platform.machine()
    parts = [f"{name}, {torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        driver = _found("/proc/driver/nvidia/version", r"Kernel Module.*?(\d+\.\d[\d.]*)")
        parts += [torch.cuda.get_device_name(), *([f"driver {driver}"] if driver else []), f"CUDA {torch.version.cuda}"]
    return f"{', '.join(parts)}, torch {torch.__version__}, timm {timm.__version__}, Python {platform.python_version()}"


def _found(path: str, pattern: str) -> str | None:
    """What a pattern finds in a file of the system, None where there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            found = re.search(pattern, file.read())
    except OSError:
        return None
    return found[1].strip() if found else None
