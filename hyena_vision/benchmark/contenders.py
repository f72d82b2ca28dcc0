"""The operators that `ops` compares: attention's product, Hyena mixers, long convolutions, and plain FFTs.

One entry of `CPU_CONTENDERS` is all that a next one needs. What only tells something of GPUs is in `gpu_contenders`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyena_vision.layers import Hyena1d, Hyena2d
from hyena_vision.ops import long_conv1d, long_conv2d

# Above so many tokens the direct sum takes minutes, and the FFT in float64 is the truth of a mixer
_DIRECT_SUM_TOKENS = 100


@dataclass(frozen=True)
class Setting:
    """One problem, the same for all contenders."""

    grid: int  # side of the square of tokens
    dim: int = 384  # channels, C
    heads: int = 6  # of attention
    batch_size: int = 1  # B
    dtype: torch.dtype = torch.float32  # of inputs and mixers
    device: str = "cpu"
    backward: bool = False  # whether gradients of all inputs and parameters follow the forward pass


@dataclass(frozen=True)
class Contender:
    """One operator."""

    inputs: Callable[[Setting], tuple]  # arguments of the function; tensors and modules among them get gradients
    function: Callable[..., Tensor]
    truth: Callable[..., Tensor] | None = None  # on arguments in float64, in a way known to be right; None: no check
    roundings: int = 1  # times that a value is rounded to the setting's dtype on its way
    reason: Callable[[Setting], str | None] = lambda setting: None  # a phrase that says why it cannot run


def _draw(setting: Setting, *shape: int) -> Tensor:
    """The same numbers in each call, made where they are used."""
    generator = torch.Generator(setting.device).manual_seed(0)
    return torch.randn(shape, generator=generator, device=setting.device).to(setting.dtype)


def _tokens(setting: Setting) -> Tensor:
    return _draw(setting, setting.batch_size, setting.grid, setting.grid, 3 * setting.dim)


def signal_and_kernel(setting: Setting, rank: int) -> tuple[Tensor, Tensor]:
    """Of a long convolution: (B, C, H, W) or (B, C, H W), and the global kernel."""
    size = (setting.grid,) * 2 if rank == 2 else (setting.grid**2,)
    extents = [2 * n - 1 for n in size]
    kernel = _draw(setting, setting.dim, *extents) / math.prod(extents) ** 0.5
    return _draw(setting, setting.batch_size, setting.dim, *size), kernel


def sdpa(qkv: Tensor, heads: int) -> Tensor:
    """Attention between its two projections, (B, N, 3C) to (B, N, C)."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _mix_truth(mixer: nn.Module, signals: Tensor) -> Tensor:
    backend = "reference" if signals.shape[1] * signals.shape[2] <= _DIRECT_SUM_TOKENS else "fft"
    # A new one: a mixer may make use of its backend's name as it is made
    exact = type(mixer)(mixer.dim, backend=backend, device=signals.device, dtype=torch.float64).eval()
    exact.load_state_dict(mixer.state_dict())
    return exact.mix(signals)


def plain_fft(x: Tensor, kernel: Tensor) -> Tensor:
    """The plain way: signal (B, C, *N) and global kernel (C, *(2N-1)) padded to 2N on each axis, product, crop."""
    dtype, axes = torch.promote_types(x.dtype, torch.float32), tuple(range(1 - kernel.ndim, 0))
    size = [2 * x.shape[axis] for axis in axes]
    of_x, of_kernel = (torch.fft.rfftn(t.to(dtype), s=size, dim=axes) for t in (x, kernel))
    y = torch.fft.irfftn(of_x * of_kernel, s=size, dim=axes)
    return y[(..., *(slice(n // 2 - 1, n - 1) for n in size))].to(x.dtype)


def ours(rank: int, backend: str | None = None, prefix: str = "", **needs) -> dict[str, Contender]:
    """Our operators: a mixer, and its convolution alone."""
    layer, conv = (Hyena1d, long_conv1d) if rank == 1 else (Hyena2d, long_conv2d)

    def mixer_inputs(setting: Setting) -> tuple[nn.Module, Tensor]:
        mixer = layer(setting.dim, backend=backend, device=setting.device).to(setting.dtype).eval()
        return mixer, _tokens(setting)

    inputs, function = partial(signal_and_kernel, rank=rank), partial(conv, backend=backend)
    return {
        # Between its two projections: short filter of three signals, gate, long convolution, gate are six roundings
        f"{prefix}hyena{rank}d": Contender(
            mixer_inputs, lambda mixer, signals: mixer.mix(signals), _mix_truth, roundings=6, **needs
        ),
        f"{prefix}long_conv{rank}d": Contender(inputs, function, plain_fft, **needs),
    }


CPU_CONTENDERS: dict[str, Contender] = {
    "sdpa": Contender(lambda setting: (_tokens(setting).flatten(1, 2), setting.heads), sdpa),
    **ours(2),
    **ours(1),
    "rfft2": Contender(partial(signal_and_kernel, rank=2), plain_fft, plain_fft),
    "rfft": Contender(partial(signal_and_kernel, rank=1), plain_fft, plain_fft),
}
