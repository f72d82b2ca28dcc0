"""`python -m hyena_vision.benchmark COMMAND`."""

from collections.abc import Sequence

from hyena_vision.benchmark import accuracy, gpu_report, models, ops, profile, runs, stability, study, transfer, tune
from hyena_vision.benchmark.program import run_command

COMMANDS = ops, models, accuracy, transfer, stability, study, tune, profile, runs, gpu_report


def main(argv: Sequence[str] | None = None) -> None:
    """Run one benchmark."""
    run_command(COMMANDS, argv)


if __name__ == "__main__":
    main()
