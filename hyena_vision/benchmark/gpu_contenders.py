"""What `ops` compares with a GPU in mind: fused kernels, others' kernels, and a copy, which is what memory can do."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from hyena_vision.benchmark.contenders import Contender, Setting, ours, plain_fft, signal_and_kernel
from hyena_vision.benchmark.measure import SpeedRow
from hyena_vision.benchmark.program import DTYPES
from hyena_vision.ops import PreparedKernel, long_conv1d, long_conv2d, prepare_kernel1d, prepare_kernel2d
from hyena_vision.ops.table import INTERPRETED


def subquadratic_ops(x: Tensor, kernel: Tensor) -> Tensor:
    """NVIDIA's fused kernel, which crops at half of its transform: zeros before the kernel move it to the centre."""
    from subquadratic_ops_torch.fused_fft_conv2d import fused_fft_conv2d

    half = max(4, 1 << (x.shape[-1] - 1).bit_length())
    before = [half - extent // 2 for extent in kernel.shape[-2:]]
    kernel = F.pad(kernel, (before[1], 0, before[0], 0))
    return fused_fft_conv2d(x.contiguous(), kernel[None].contiguous(), fft_size=2 * half)


def _gated(rank: int, backend: str | None = None, prefix: str = "", **needs) -> dict[str, Contender]:
    """A convolution between gates, what the fused kernels do at once; without gradients its kernel is prepared."""
    conv, prepare = (long_conv1d, prepare_kernel1d) if rank == 1 else (long_conv2d, prepare_kernel2d)

    def inputs(setting: Setting) -> tuple:
        x, kernel = signal_and_kernel(setting, rank)
        kernel = kernel if setting.backward else prepare(x, kernel, backend=backend)
        return x, kernel, 1 + x.roll(1, 0) / 4, 1 + x.flip(-1) / 4

    def gated(x: Tensor, kernel: Tensor | PreparedKernel, gate: Tensor, out_gate: Tensor) -> Tensor:
        return conv(x, kernel, gate=gate, out_gate=out_gate, backend=backend)

    return {f"{prefix}gated{rank}d": Contender(inputs, gated, **needs)}


def _needs(package: str, cuda: bool = True, largest: float = float("inf")) -> Callable[[Setting], str | None]:
    """Why a contender with these needs cannot run."""

    def reason(setting: Setting) -> str | None:
        if importlib.util.find_spec(package) is None:
            return f"package {package} is not installed"
        if cuda and torch.device(setting.device).type != "cuda":
            return "needs CUDA"
        return f"grids up to {largest} only" if setting.grid > largest else None

    return reason


_FUSED = dict(backend="triton", prefix="triton:", reason=_needs("triton", cuda=not INTERPRETED))
_NVIDIAS = dict(reason=_needs("subquadratic_ops_torch", largest=64))
GPU_CONTENDERS: dict[str, Contender] = {
    "copy": Contender(lambda setting: signal_and_kernel(setting, 2)[:1], Tensor.clone),
    **_gated(2),
    **_gated(1),
    "subquadratic_ops": Contender(partial(signal_and_kernel, rank=2), subquadratic_ops, plain_fft, **_NVIDIAS),
    # What `backend=None` picks where a table says so
    **{name: made for make in (ours, _gated) for rank in (2, 1) for name, made in make(rank, **_FUSED).items()},
}


def with_traffic(rows: Sequence[SpeedRow]) -> list[SpeedRow]:
    """The rows of one setting with the traffic of what must be read and written at least, and its share of a copy's."""
    traffic = {}
    for row in rows:
        # Numbers per token and channel, forward and backward
        numbers = (2, 0) if row.name == "copy" else (4, 7) if row.name == "sdpa" else (2, 3)
        numbers = (4, 7) if "gated" in row.name or "hyena" in row.name else numbers
        count = sum(numbers) if "backward" in row.mode else numbers[0]
        per_image = count * DTYPES[row.dtype].itemsize * row.tokens * row.dim
        traffic[row.name] = row.images_per_s and 1e-9 * per_image * row.images_per_s
    copy = traffic.get("copy")
    shares = {name: speed and copy and speed / copy for name, speed in traffic.items()}
    return [replace(row, gb_per_s=traffic[row.name], copy_share=shares[row.name]) for row in rows]
