"""What torch.compile makes of mixers on a GPU, where there need not be one."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from forks import run_for_a_gpu

pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed"),
    pytest.mark.skipif(torch.version.cuda is None, reason="torch is built without CUDA"),
    pytest.mark.skipif(
        tuple(int(n) for n in torch.__version__.split(".")[:2]) < (2, 11), reason="older versions ask for a real GPU"
    ),
]


@pytest.mark.slow
def test_mixers_compile_to_one_graph_of_fused_kernels(tmp_path):
    lines = run_for_a_gpu(Path(__file__).with_name("pretended_gpu.py"), [()], tmp_path)
    operators = [json.loads(line) for line in lines]
    assert [[name for name, _ in graph] for graph in operators] == [
        ["hyena_vision.gated_short_filter.default", "hyena_vision.long_conv.default"]
    ] * 3
    assert [graph[1][1] for graph in operators] == [["triton"]] * 3
