"""The command line of the benchmarks, and the arguments that `ops` and `models` share."""

import argparse
from collections.abc import Sequence
from types import ModuleType

import torch

from hyena_vision.training.arguments import positive_int
from hyena_vision.training.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def run_command(commands: Sequence[ModuleType], argv: Sequence[str] | None = None) -> None:
    """Run one of several commands, modules with `add_command`; a `UserError` is one line."""
    parser = argparse.ArgumentParser(prog="hyena_vision.benchmark")
    group = parser.add_subparsers(title="commands", required=True)
    for command in commands:
        command.add_command(group)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except UserError as error:
        parser.exit(error.exit_code, f"{parser.prog}: error: {error}\n")


def add_measurement_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ops` and `models`."""
    add = parser.add_argument
    add("--dtype", choices=DTYPES, default="float32")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--rounds", type=positive_int, default=5, metavar="N", help="readings of each contender")
    text = "do not measure peak memory, which runs each once more"
    add("--no-memory", dest="memory", action="store_false", help=text)
    add("--output", metavar="DIR", help="folder for the rows as CSV and their figure as PNG")
