"""The benchmarks' command line, in this process."""

from hyena_vision.benchmark.__main__ import COMMANDS
from hyena_vision.benchmark.program import main as run


def main(argv):
    run(COMMANDS, argv)
