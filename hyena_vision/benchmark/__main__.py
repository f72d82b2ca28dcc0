"""Command line of the benchmarks: `python -m hyena_vision.benchmark COMMAND`."""

import argparse
from collections.abc import Sequence

from hyena_vision.benchmark import gpu_report, models, ops, profile, runs, tune
from hyena_vision.training.errors import UserError

COMMANDS = ops, models, tune, profile, runs, gpu_report


def main(argv: Sequence[str] | None = None) -> None:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(prog="hyena_vision.benchmark", description=__doc__)
    commands = parser.add_subparsers(title="commands", required=True)
    for command in COMMANDS:
        command.add_command(commands)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except UserError as error:
        parser.exit(error.exit_code, f"{parser.prog}: error: {error}\n")


if __name__ == "__main__":
    main()
