"""The command line of the benchmarks."""

import argparse
from collections.abc import Sequence
from types import ModuleType

from hyena_vision.training.errors import UserError


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
