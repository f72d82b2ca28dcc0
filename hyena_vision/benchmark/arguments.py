"""Command-line arguments that the measurements of speed share."""

import argparse

import torch

from hyena_vision.training.arguments import positive_int

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def add_measurement_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ops` and `models`."""
    add = parser.add_argument
    add("--dtype", choices=DTYPES, default="float32")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--rounds", type=positive_int, default=5, metavar="N", help="readings of each contender")
    text = "do not measure peak memory, which runs each once more"
    add("--no-memory", dest="memory", action="store_false", help=text)
    add_output_argument(parser, "folder for the rows as CSV and their figure as PNG")


def add_output_argument(parser: argparse.ArgumentParser, text: str) -> None:
    """Add `--output`."""
    parser.add_argument("--output", metavar="DIR", help=text)
