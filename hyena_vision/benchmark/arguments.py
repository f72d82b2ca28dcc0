"""Command-line arguments that the measurements of speed share."""

import argparse

import torch

from hyena_vision.benchmark.report import require_matplotlib
from hyena_vision.training.arguments import positive_int

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def batch_size(text: str) -> int | str:
    """Parse a number of at least 1, or "auto"."""
    return text if text == "auto" else positive_int(text)


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
        require_matplotlib()
