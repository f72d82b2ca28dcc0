"""What the compiler makes of the fused kernels, for GPUs that need not be there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
from hyena_vision.ops.long_conv_triton import LARGE_SHARED_MEMORY, SHARED_MEMORY

# Bytes per thread; docs/gpu.md says which kernels need them.
SPILLED = {("sm_90", "bf16"): 192, ("sm_80", "bf16"): 512, ("sm_90", "fp32"): 512, ("sm_80", "fp32"): 128}
# Parts of tiles, and whole ones: the largest, in chunks, and kept.
SIZES = {
    ("sm_90", "bf16"): ["65536", "128x128", "64x64"],
    ("sm_80", "bf16"): ["65536", "128x128", "32x32"],
    ("sm_90", "fp32"): ["64x64"],
    ("sm_80", "fp32"): ["32x32"],
}


@pytest.mark.parametrize(("architecture", "dtype"), SPILLED)
def test_kernels_fit(architecture, dtype, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    program = Path(__file__).with_name("ahead_of_time.py")
    run = subprocess.run(
        [sys.executable, program, architecture, dtype, *SIZES[architecture, dtype]],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    reports = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(reports) == (9 if dtype == "bf16" else 3) + 3
    for report in reports:
        large = report.get("size") == [128, 128] and report["kernel"].startswith("_long_conv")
        assert report["stack"] <= SPILLED[architecture, dtype], report
        assert report["shared"] <= (LARGE_SHARED_MEMORY if large else SHARED_MEMORY), report
