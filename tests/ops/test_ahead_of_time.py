"""What the compiler makes of the fused kernels, for GPUs that need not be there."""

import json
from pathlib import Path

import pytest
from forks import run_for_a_gpu

pytest.importorskip("triton")
from hyena_vision.ops.triton.long_conv import LARGE_SHARED_MEMORY, shared_memory

# Bytes per thread; docs/gpu.md says which kernels need them.
SPILLED = {("sm_90", "bf16"): 192, ("sm_80", "bf16"): 512, ("sm_89", "fp32"): 1024}
# Parts of tiles, and whole ones: the largest, in chunks, and kept. A kernel takes a second, so each where it needs
# most: on older cards, and of whole tiles the backward pass, which convolves as the other does.
# `ahead_of_time.py` compiles what docs/gpu.md lists.
SIZES = {
    ("sm_90", "bf16"): ["32x32"],
    ("sm_80", "bf16"): ["65536", "128x128"],
    ("sm_89", "fp32"): ["64x64"],  # of all the one that needs most of a card with 99 KB of shared memory
}
WITHOUT = {
    ("sm_90", "bf16"): ["_long_conv_fwd", "_spectrum", "_short_filter"],
    ("sm_80", "bf16"): ["_short_filter"],
    ("sm_89", "fp32"): ["_long_conv_fwd"],
}
COUNTS = {("sm_90", "bf16"): 1, ("sm_80", "bf16"): 6, ("sm_89", "fp32"): 5}


@pytest.mark.slow
def test_kernels_fit(tmp_path):
    program, reports = Path(__file__).with_name("ahead_of_time.py"), {}
    for target, sizes in SIZES.items():
        given = (target, sizes, WITHOUT[target], False)
        lines = run_for_a_gpu(program, [given], tmp_path, TRITON_CACHE_DIR=str(tmp_path))
        reports[target] = [json.loads(line) for line in lines]
    for target, found in reports.items():
        assert len(found) == COUNTS[target]
        for report in found:
            large = report.get("size") == [128, 128] and report["kernel"].startswith("_long_conv")
            assert report["stack"] <= SPILLED[target], (target, report)
            needed = shared_memory(report.get("size", [8, 8]), target[1] == "fp32")
            assert report["shared"] <= (LARGE_SHARED_MEMORY if large else needed), (target, report)
            # A multiprocessor's registers: all that a program can have
            assert report["registers"] * report["threads"] <= 65536, (target, report)
