# ruff: noqa: E402  what is replaced must be before others read it
"""Compiles mixers for a GPU that is not there: signals that say they are on it, and questions to it answered by hand.

Nothing is computed: what a compiler makes of the calls is printed, as one line of JSON for each mixer.
"""

import json
from types import SimpleNamespace

import torch
import torch._dynamo
import torch.utils._triton
from torch._dynamo.device_interface import CudaInterface
from torch._subclasses import fake_tensor

H100 = SimpleNamespace(name="H100", major=9, minor=0, shared_memory_per_block_optin=232448)
fake_tensor.init_gpu_context = lambda *args: None
torch.accelerator.is_available = lambda: False  # its streams
torch.cuda.device_count = lambda: 1
torch.cuda.current_device = CudaInterface.current_device = lambda: 0
torch.cuda.get_device_properties = lambda *args: H100
torch.cuda.get_device_capability = lambda *args: (9, 0)
torch.cuda.get_rng_state = lambda *args, **kwargs: torch.empty(0, dtype=torch.uint8)
torch.cuda.set_rng_state = lambda *args, **kwargs: None
torch.cuda.is_current_stream_capturing = lambda: False
torch.utils._triton.has_triton = lambda *args, **kwargs: True

from hyena_vision.layers import Hyena1d, Hyena2d
from hyena_vision.ops import table
from hyena_vision.ops.triton import long_conv as long_conv_triton

rows = [table.Row(size, "float32", use, 1.0, 2.0) for size in ((14, 14), (196,)) for use in table.USES]
table.table_of = lambda card: table.BackendTable(card, tuple(rows))
long_conv_triton._tables = long_conv_triton.make_kernel_tables = lambda *args: None


def move(module: torch.nn.Module) -> None:
    """Put weights that say that they are on the GPU in the place of a module's own."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = torch.nn.Parameter(torch.empty(weight.shape, device="cuda"))
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")


def main() -> None:
    """Compile in training and inference, for a fixed size and for free ones, with the backend by name and chosen."""
    for layer, backend, training, dynamic in (
        (Hyena2d, None, True, True),
        (Hyena1d, None, False, True),
        (Hyena1d, "triton", True, False),
    ):
        graphs = []

        def keep(graph, inputs, graphs=graphs):
            graphs.append(graph)
            return graph

        torch.compiler.reset()
        torch.cuda.is_available = lambda: False
        mixer = layer(32, backend=backend).train(training)
        with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True) as mode:
            move(mixer)
            x = torch.empty(2, 14, 14, 32, device="cuda")
        torch.cuda.is_available = lambda: True
        with mode, torch.set_grad_enabled(training):
            y = torch.compile(mixer, backend=keep, fullgraph=True, dynamic=dynamic)(x)
        assert y.shape == x.shape and y.device == x.device
        (graph,) = graphs
        found = [(str(node.target), node.args[-1:]) for node in graph.graph.nodes]
        print(json.dumps([pair for pair in found if pair[0].startswith("hyena_vision")]), flush=True)


if __name__ == "__main__":
    main()
