"""The operators that `ops` compares: attention's product, Hyena mixers, and long convolutions, ours and others'.

One entry of `CONTENDERS` is all that a next one needs.
"""

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyena_vision.layers import Hyena1d, Hyena2d
from hyena_vision.ops import PreparedKernel, long_conv1d, long_conv2d, prepare_kernel1d, prepare_kernel2d
from hyena_vision.ops.table import INTERPRETED

# Above so many tokens the direct sum takes minutes, and the FFT in float64 is the truth of a mixer
_DIRECT_SUM_TOKENS = 100
# Short filter of three signals, gate, long convolution, gate
_MIX_ROUNDINGS = 6


@dataclass(frozen=True)
class Setting:
    """One problem, the same for all contenders.

    Attributes:
        grid: Side of the square of tokens.
        dim: Channels, C.
        heads: Heads of attention.
        batch_size: B.
        dtype: Of inputs and mixers.
        device: Where they are.
        backward: Whether gradients of all inputs and parameters follow the forward pass.
    """

    grid: int
    dim: int = 384
    heads: int = 6
    batch_size: int = 1
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    backward: bool = False


def _no_reason(setting: Setting) -> None:
    return None


@dataclass(frozen=True)
class Contender:
    """One operator.

    Attributes:
        inputs: Makes the arguments of `function`; tensors and modules among them get gradients.
        function: The operator.
        truth: The same on the arguments in float64 in a way known to be right, None for no check.
        roundings: How many times a value is rounded to the setting's dtype on its way.
        package: What must be installed.
        numbers: That are read and written at least per token and channel, forward and backward; None if not known.
        reason: `setting -> None` if it can run, else a phrase that says why not.
    """

    inputs: Callable[[Setting], tuple]
    function: Callable[..., Tensor]
    truth: Callable[..., Tensor] | None
    roundings: int = 1
    package: str = "torch"
    numbers: tuple[int, int] | None = None
    reason: Callable[[Setting], str | None] = _no_reason

    def installed(self) -> bool:
        """Whether its package is."""
        return importlib.util.find_spec(self.package) is not None


def make_call(name: str, setting: Setting) -> Callable[[], Tensor]:
    """Make a function without arguments that runs a contender once, backward pass included if the setting asks."""
    contender = CONTENDERS[name]
    inputs = contender.inputs(setting)
    if not setting.backward:
        return torch.inference_mode()(lambda: contender.function(*inputs))
    leaves = []
    for value in inputs:
        leaves += value.parameters() if isinstance(value, nn.Module) else []
        leaves += [value.requires_grad_()] if isinstance(value, Tensor) else []

    def call() -> Tensor:
        y = contender.function(*inputs)
        # The gradient of the sum of squares: one of ones would be an easy case for a spectrum
        torch.autograd.grad(y, leaves, y.detach(), allow_unused=True)
        return y

    return call


def _draw(setting: Setting, *shape: int) -> Tensor:
    """The same numbers in each call, made where they are used."""
    generator = torch.Generator(setting.device).manual_seed(0)
    return torch.randn(shape, generator=generator, device=setting.device).to(setting.dtype)


def _tokens(setting: Setting) -> Tensor:
    return _draw(setting, setting.batch_size, setting.grid, setting.grid, 3 * setting.dim)


def _attention_inputs(setting: Setting) -> tuple[Tensor, int]:
    return _tokens(setting).flatten(1, 2), setting.heads


def _mixer_inputs(layer: type[nn.Module], backend: str | None = None) -> Callable[[Setting], tuple[nn.Module, Tensor]]:
    def inputs(setting: Setting) -> tuple[nn.Module, Tensor]:
        mixer = layer(setting.dim, backend=backend, device=setting.device).to(setting.dtype).eval()
        return mixer, _tokens(setting)

    return inputs


def _convolution_inputs(rank: int) -> Callable[[Setting], tuple[Tensor, Tensor]]:
    def inputs(setting: Setting) -> tuple[Tensor, Tensor]:
        size = (setting.grid,) * 2 if rank == 2 else (setting.grid**2,)
        extents = [2 * n - 1 for n in size]
        kernel = _draw(setting, setting.dim, *extents) / math.prod(extents) ** 0.5
        return _draw(setting, setting.batch_size, setting.dim, *size), kernel

    return inputs


def sdpa(qkv: Tensor, heads: int) -> Tensor:
    """Attention between its two projections, (B, N, 3C) to (B, N, C)."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def mix(mixer: nn.Module, signals: Tensor) -> Tensor:
    """A Hyena mixer between its two projections, (B, H, W, 3C) to (B, H, W, C)."""
    return mixer.mix(signals)


def _mix_truth(mixer: nn.Module, signals: Tensor) -> Tensor:
    backend = "reference" if signals.shape[1] * signals.shape[2] <= _DIRECT_SUM_TOKENS else "fft"
    # A new one: a mixer may make use of its backend's name as it is made
    exact = type(mixer)(mixer.dim, backend=backend, device=signals.device, dtype=torch.float64).eval()
    exact.load_state_dict(mixer.state_dict())
    return exact.mix(signals)


def rfft2(x: Tensor, kernel: Tensor) -> Tensor:
    """The plain way in 2D: signal and global kernel (C, 2H-1, 2W-1) padded to 2H x 2W, product, crop."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    height, width = x.shape[-2:]
    size = (2 * height, 2 * width)
    spectrum = torch.fft.rfft2(x.to(dtype), s=size) * torch.fft.rfft2(kernel.to(dtype), s=size)
    return torch.fft.irfft2(spectrum, s=size)[..., height - 1 : -1, width - 1 : -1].to(x.dtype)


def rfft(x: Tensor, kernel: Tensor) -> Tensor:
    """The plain way in 1D: signal and global kernel (C, 2N-1) padded to 2N, product, crop."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    length = x.shape[-1]
    spectrum = torch.fft.rfft(x.to(dtype), n=2 * length) * torch.fft.rfft(kernel.to(dtype), n=2 * length)
    return torch.fft.irfft(spectrum, n=2 * length)[..., length - 1 : -1].to(x.dtype)


def subquadratic_ops(x: Tensor, kernel: Tensor) -> Tensor:
    """NVIDIA's fused kernel, which crops at half of its transform: zeros before the kernel move it to the centre."""
    from subquadratic_ops_torch.fused_fft_conv2d import fused_fft_conv2d

    half = max(4, 1 << (x.shape[-1] - 1).bit_length())
    before = [half - extent // 2 for extent in kernel.shape[-2:]]
    kernel = F.pad(kernel, (before[1], 0, before[0], 0))
    return fused_fft_conv2d(x.contiguous(), kernel[None].contiguous(), fft_size=2 * half)


def _gated_inputs(rank: int, backend: str | None) -> Callable[[Setting], tuple]:
    """Signals and kernel of a convolution between gates; without gradients the kernel is prepared."""

    def inputs(setting: Setting) -> tuple:
        x, kernel = _convolution_inputs(rank)(setting)
        if not setting.backward:
            kernel = (prepare_kernel2d if rank == 2 else prepare_kernel1d)(x, kernel, backend=backend)
        return x, kernel, 1 + x.roll(1, 0) / 4, 1 + x.flip(-1) / 4

    return inputs


def _gated(rank: int, backend: str | None) -> Contender:
    """A contender: what the fused kernels do at once."""

    def convolve(x: Tensor, kernel: Tensor | PreparedKernel, gate: Tensor, out_gate: Tensor) -> Tensor:
        long_conv = long_conv2d if rank == 2 else long_conv1d
        return long_conv(x, kernel, gate=gate, out_gate=out_gate, backend=backend)

    return Contender(_gated_inputs(rank, backend), convolve, None, numbers=(4, 7))


def _needs_cuda(setting: Setting) -> str | None:
    return None if torch.device(setting.device).type == "cuda" else "needs CUDA"


def _needs_triton(setting: Setting) -> str | None:
    return None if INTERPRETED else _needs_cuda(setting)


def _subquadratic_ops_reason(setting: Setting) -> str | None:
    if _needs_cuda(setting):
        return _needs_cuda(setting)
    return "grids up to 64 only" if setting.grid > 64 else None


def nvsubquadratic(x: Tensor, kernel: Tensor) -> Tensor:
    """NVIDIA's convolution by torch.fft, which sums in float32."""
    from nvsubquadratic.ops.fftconv import fftconv2d_fp32_bhl

    return fftconv2d_fp32_bhl(x, kernel[None])


CONTENDERS: dict[str, Contender] = {
    # What memory can do: a number read and one written
    "copy": Contender(lambda setting: _convolution_inputs(2)(setting)[:1], Tensor.clone, None, numbers=(2, 0)),
    "sdpa": Contender(_attention_inputs, sdpa, None, numbers=(4, 7)),
    "gated2d": _gated(2, None),
    "gated1d": _gated(1, None),
    "hyena2d": Contender(_mixer_inputs(Hyena2d), mix, _mix_truth, _MIX_ROUNDINGS, numbers=(4, 7)),
    "hyena1d": Contender(_mixer_inputs(Hyena1d), mix, _mix_truth, _MIX_ROUNDINGS, numbers=(4, 7)),
    "long_conv2d": Contender(_convolution_inputs(2), long_conv2d, rfft2, numbers=(2, 3)),
    "long_conv1d": Contender(_convolution_inputs(1), long_conv1d, rfft, numbers=(2, 3)),
    "rfft2": Contender(_convolution_inputs(2), rfft2, rfft2, numbers=(2, 3)),
    "rfft": Contender(_convolution_inputs(1), rfft, rfft, numbers=(2, 3)),
    "subquadratic_ops": Contender(
        _convolution_inputs(2),
        subquadratic_ops,
        rfft2,
        package="subquadratic_ops_torch",
        numbers=(2, 3),
        reason=_subquadratic_ops_reason,
    ),
    "nvsubquadratic": Contender(
        _convolution_inputs(2), nvsubquadratic, rfft2, package="nvsubquadratic", numbers=(2, 3)
    ),
}
# Ours again with the fused kernels by name, which `backend=None` picks where a table says so
TRITON = "triton:"
CONTENDERS |= {
    TRITON + name: replace(CONTENDERS[name], **{**changes, "package": "triton", "reason": _needs_triton})
    for name, changes in {
        "hyena2d": {"inputs": _mixer_inputs(Hyena2d, "triton")},
        "hyena1d": {"inputs": _mixer_inputs(Hyena1d, "triton")},
        "long_conv2d": {"function": partial(long_conv2d, backend="triton")},
        "long_conv1d": {"function": partial(long_conv1d, backend="triton")},
        "gated2d": vars(_gated(2, "triton")),
        "gated1d": vars(_gated(1, "triton")),
    }.items()
}
