"""Run a script with the Hyena models registered: `python -m hyena_vision.run SCRIPT [ARGS...]`.

Meant for timm's own scripts (train.py, validate.py, inference.py, benchmark.py, onnx_export.py). They are not in timm's
package: take them from a checkout of the installed version. The script sees what it would see if Python had started it,
and worker processes of its data loaders have the models too, by whatever method they start. A Python that the script
starts anew (subprocess, as bulk_runner.py does) has them only if its command line says `-m hyena_vision.run` again.
"""

import os
import runpy
import sys
from collections.abc import Sequence
from multiprocessing import spawn

from hyena_vision.models import HyenaViT

USAGE = "usage: python -m hyena_vision.run SCRIPT [ARGS...]"


def main(argv: Sequence[str] | None = None) -> None:
    """Run a script as `__main__`, in this process.

    `sys.argv`, the first entry of `sys.path` and what spawned processes are told are changed for good.

    Args:
        argv: The script's path and its arguments, None for those of the command line.

    Raises:
        SystemExit: With 2 where there is no script to run, with 0 after `--help`, or as the script raises it.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if argv else sys.stderr)
        sys.exit(0 if argv else 2)
    script = argv[0]
    if not os.path.isfile(script):
        print(f"hyena_vision.run: no such file: {script!r}", file=sys.stderr)
        sys.exit(2)
    sys.argv = argv
    sys.path[0] = os.path.dirname(os.path.realpath(script))
    _register_in_spawned_processes()
    runpy.run_path(script, run_name="__main__")


def _register_in_spawned_processes() -> None:
    """Make processes of the start methods spawn and forkserver import this package.

    They import the script's file by themselves, but nothing that registers models. What the parent tells them is
    unpickled before, and unpickling a class imports its module; they ignore the entry itself.
    """
    get_preparation_data = spawn.get_preparation_data
    spawn.get_preparation_data = lambda name: {**get_preparation_data(name), "hyena_vision": HyenaViT}


if __name__ == "__main__":
    main()
