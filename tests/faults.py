"""Faults that a person could make, one at a time, and the tests that must catch each.

    python tests/faults.py [--only NAME ...] [--jobs N]

plants each fault in a copy of the tree and runs its tests there. A fault that they miss is a gap in the tests.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from planted import in_models, in_ops, in_training
from planted.fault import CPP, VECTOR, Fault

ROOT = Path(__file__).parents[1]

FAULTS = [*in_ops.FAULTS, *in_models.FAULTS, *in_training.FAULTS]


def plant(fault: Fault, tree: Path) -> None:
    """Put a fault into a copy of the project."""
    path = tree / fault.path
    text = path.read_text()
    if text.count(fault.find) != 1:
        raise ValueError(f"{fault.name}: {fault.find!r} occurs {text.count(fault.find)} times in {fault.path}")
    path.write_text(text.replace(fault.find, fault.replace))


def caught_by(fault: Fault) -> str | None:
    """The first test that fails with a fault, None if none does.

    Raises:
        RuntimeError: The tests did not begin.
    """
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        for name in filter(None, tracked.split("\0")):
            if (ROOT / name).is_file():
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, tree / name)
        plant(fault, tree)
        environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        if fault.path in (CPP, VECTOR):
            environment["HYENA_VISION_CACHE"] = folder
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        command += [f"tests/{test}" for test in fault.tests]
        run = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if run.returncode == 0:
        return None
    if run.returncode < 0:  # memory that is not the tensor's
        return f"signal {-run.returncode} in {fault.tests[0]}"
    failed = [line for line in run.stdout.splitlines() if line.startswith("FAILED ")]
    if run.returncode != 1 or not failed:
        raise RuntimeError(f"{fault.name}: the tests did not run\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    return failed[0].removeprefix("FAILED ").split(" - ")[0]


def main() -> int:
    """Plant the faults, and say for each which test caught it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="faults whose names begin so")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    args = parser.parse_args()
    chosen = [fault for fault in FAULTS if not args.only or fault.name.startswith(tuple(args.only))]
    missed = 0
    with ThreadPoolExecutor(args.jobs) as pool:
        for fault, test in zip(chosen, pool.map(caught_by, chosen), strict=True):
            missed += test is None
            print(f"{'MISSED' if test is None else 'caught'}  {fault.name}  {test or ''}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} faults caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
