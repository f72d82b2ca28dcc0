"""Operators that run on a GPU alone: the fused kernels by name, and other projects' kernels."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from hyena_vision.benchmark.contenders import Contender, Setting, ours, plain_fft, signal_and_kernel
from hyena_vision.ops.table import INTERPRETED


def subquadratic_ops(x: Tensor, kernel: Tensor) -> Tensor:
    """NVIDIA's fused kernel, which crops at half of its transform: zeros before the kernel move it to the centre."""
    from subquadratic_ops_torch.fused_fft_conv2d import fused_fft_conv2d

    half = max(4, 1 << (x.shape[-1] - 1).bit_length())
    before = [half - extent // 2 for extent in kernel.shape[-2:]]
    kernel = F.pad(kernel, (before[1], 0, before[0], 0))
    return fused_fft_conv2d(x.contiguous(), kernel[None].contiguous(), fft_size=2 * half)


def _needs_cuda(setting: Setting) -> str | None:
    return None if torch.device(setting.device).type == "cuda" else "needs CUDA"


_FUSED = dict(prefix="triton:", backend="triton", package="triton")
_FUSED |= dict(lacks=lambda setting: None if INTERPRETED else _needs_cuda(setting))
GPU_CONTENDERS: dict[str, Contender] = {
    "subquadratic_ops": Contender(
        partial(signal_and_kernel, rank=2),
        subquadratic_ops,
        plain_fft,
        package="subquadratic_ops_torch",
        lacks=lambda setting: _needs_cuda(setting) or ("grids up to 64 only" if setting.grid > 64 else None),
    ),
    # What `backend=None` picks where a table says so
    **ours(2, **_FUSED),
    **ours(1, **_FUSED),
}
