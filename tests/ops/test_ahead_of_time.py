"""What the compiler makes of the fused kernels, for GPUs that need not be there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
from hyena_vision.ops.triton.long_conv import LARGE_SHARED_MEMORY, shared_memory

# Bytes per thread; docs/gpu.md says which kernels need them.
SPILLED = {("sm_90", "bf16"): 192, ("sm_80", "bf16"): 512, ("sm_89", "fp32"): 1024}
# Parts of tiles, and whole ones: the largest, in chunks, and kept. A kernel takes a second, so of older cards most:
# there it needs most. `ahead_of_time.py` compiles what docs/gpu.md lists.
SIZES = {
    ("sm_90", "bf16"): ["64x64"],
    ("sm_80", "bf16"): ["65536", "128x128", "32x32"],
    ("sm_89", "fp32"): ["64x64"],  # of all the one that needs most of a card with 99 KB of shared memory
}


# All in one process, since torch takes seconds to import. Short filters need little, so only what they need most of.
# Nobody asks for instructions, and disassembling takes a quarter of the time
PROGRAM = """
import json, sys, ahead_of_time
for given in json.loads(sys.argv[1]):
    print(json.dumps(given))
    ahead_of_time.main(*given, short_filters=given[1] == "fp32", instructions=False)
"""


@pytest.mark.slow
def test_kernels_fit(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent)}
    calls = json.dumps([[*target, *sizes] for target, sizes in SIZES.items()])
    run = subprocess.run([sys.executable, "-c", PROGRAM, calls], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    reports = {target: [] for target in SIZES}
    for line in map(json.loads, run.stdout.splitlines()):
        if isinstance(line, list):
            target = tuple(line[:2])
        else:
            reports[target].append(line)
    for target, found in reports.items():
        assert len(found) == (9 if "65536" in SIZES[target] else 3) + (3 if target[1] == "fp32" else 0)
        for report in found:
            large = report.get("size") == [128, 128] and report["kernel"].startswith("_long_conv")
            assert report["stack"] <= SPILLED[target], (target, report)
            needed = shared_memory(report.get("size", [8, 8]), target[1] == "fp32")
            assert report["shared"] <= (LARGE_SHARED_MEMORY if large else needed), (target, report)
            # A multiprocessor's registers: all that a program can have
            assert report["registers"] * report["threads"] <= 65536, (target, report)
