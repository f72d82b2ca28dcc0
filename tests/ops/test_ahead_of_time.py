"""What the compiler makes of the fused kernels, for GPUs that need not be there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
from hyena_vision.ops.long_conv_triton import SHARED_MEMORY

# Bytes per thread; docs/gpu.md says which kernels need them.
SPILLED = {"bf16": 128, "fp32": 512}


@pytest.mark.parametrize("dtype", SPILLED)
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_kernels_fit(architecture, dtype, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    program = Path(__file__).with_name("ahead_of_time.py")
    run = subprocess.run(
        # One kernel for an image, three for a sequence: each kernel once
        [sys.executable, program, architecture, dtype, "64x64", "65536"],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    reports = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(reports) == 10
    for report in reports:
        assert report["stack"] <= SPILLED[dtype], report
        assert report["shared"] <= SHARED_MEMORY, report
