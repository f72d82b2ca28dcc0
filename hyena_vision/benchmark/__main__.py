"""Command line of the benchmarks: `python -m hyena_vision.benchmark COMMAND`."""

import argparse
from collections.abc import Sequence

from hyena_vision.benchmark import loop


def main(argv: Sequence[str] | None = None) -> None:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(prog="hyena_vision.benchmark", description=__doc__)
    commands = parser.add_subparsers(title="commands", required=True)
    loop.add_command(commands)
    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    main()
