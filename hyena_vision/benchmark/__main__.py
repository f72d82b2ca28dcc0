"""`python -m hyena_vision.benchmark COMMAND`."""

from hyena_vision.benchmark import gpu_report, models, ops, profile, runs, tune
from hyena_vision.benchmark.program import main

COMMANDS = ops, models, tune, profile, runs, gpu_report

if __name__ == "__main__":
    main(COMMANDS)
