"""The operators that `ops` compares: attention's product, Hyena mixers, and long convolutions, ours and others'.

One entry of `CONTENDERS` is all that a next one needs.
"""

import copy
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyena_vision.layers import Hyena1d, Hyena2d
from hyena_vision.ops import PreparedKernel, long_conv1d, long_conv2d, prepare_kernel1d, prepare_kernel2d
from hyena_vision.ops.table import INTERPRETED
from hyena_vision.testing import TOLERANCES, relative_errors

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
        numbers: That are read and written at least per token and channel, forward and backward; None if not known.
        reason: `setting -> None` if it can run, else a phrase that says why not.
    """

    inputs: Callable[[Setting], tuple]
    function: Callable[..., Tensor]
    truth: Callable[..., Tensor] | None
    roundings: int = 1
    numbers: tuple[int, int] | None = None
    reason: Callable[[Setting], str | None] = _no_reason


def find_errors(contender: Contender, setting: Setting) -> list[str]:
    """Compare a contender with its truth, by the tolerances of `hyena_vision.testing` for the setting's dtype.

    Args:
        contender: An entry of `CONTENDERS`.
        setting: The problem; with `backward` the gradients of a convolution's inputs are compared too.

    Returns:
        What is wrong, with figures: nothing if all is right, or if the contender has no truth.
    """
    if contender.truth is None:
        return []
    inputs = contender.inputs(setting)
    exact = tuple(_to_double(value) for value in inputs)
    for value in (*inputs, *exact):
        if isinstance(value, Tensor):
            value.requires_grad_(setting.backward)
    with torch.enable_grad() if setting.backward else torch.inference_mode():
        contender.function(*inputs)
        # The second call is like those that are timed: the first may have kept something for it
        y, truth = contender.function(*inputs), contender.truth(*exact)
    if y.shape != truth.shape:
        return [f"result has shape {tuple(y.shape)} instead of {tuple(truth.shape)}"]
    compared = [("result", y, truth)]
    # Gradients of a mixer's many parameters are sums in its dtype, for which there is no bound to hold
    if setting.backward and contender.roundings == 1:
        weights = torch.randn_like(truth).to(y.dtype)
        given = torch.autograd.grad(y, inputs, weights)
        expected = torch.autograd.grad(truth, exact, weights.double())
        compared += zip(("gradient of x", "gradient of kernel"), given, expected, strict=True)
    # Independent roundings add up as the root of their number. In float32 the sums err more than they do
    growth = math.sqrt(contender.roundings) if setting.dtype in (torch.float16, torch.bfloat16) else 1.0
    wrong = []
    for what, value, exact_value in compared:
        errors = relative_errors(value, exact_value)
        rms, worst = TOLERANCES[setting.dtype]
        # A gate multiplies the error of its element, and the largest of millions of them are 5 times their RMS
        bounds = growth * rms, growth * worst * (5.0 if contender.roundings > 1 else 1.0)
        if not all(error <= bound for error, bound in zip(errors, bounds, strict=True)):
            wrong.append(
                f"{what} in {setting.dtype}: relative RMS {errors[0]:.2e} (at most {bounds[0]:.1e}), "
                f"worst / RMS {errors[1]:.2e} (at most {bounds[1]:.1e})"
            )
    return wrong


def _to_double(value: Any) -> Any:
    """The same argument in float64, as a new leaf."""
    if isinstance(value, Tensor):
        return value.detach().double()
    return copy.deepcopy(value).double() if isinstance(value, nn.Module) else value


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


def _needs(package: str, setting: Setting, anywhere: bool = False) -> str | None:
    if importlib.util.find_spec(package) is None:
        return f"package {package} is not installed"
    return None if anywhere or torch.device(setting.device).type == "cuda" else "needs CUDA"


def _needs_triton(setting: Setting) -> str | None:
    return _needs("triton", setting, anywhere=INTERPRETED)


def _needs_subquadratic_ops(setting: Setting) -> str | None:
    return _needs("subquadratic_ops_torch", setting) or ("grids up to 64 only" if setting.grid > 64 else None)


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
        numbers=(2, 3),
        reason=_needs_subquadratic_ops,
    ),
}
# Ours again with the fused kernels by name, which `backend=None` picks where a table says so
TRITON = "triton:"
CONTENDERS |= {
    TRITON + name: replace(CONTENDERS[name], **{**changes, "reason": _needs_triton})
    for name, changes in {
        "hyena2d": {"inputs": _mixer_inputs(Hyena2d, "triton")},
        "hyena1d": {"inputs": _mixer_inputs(Hyena1d, "triton")},
        "long_conv2d": {"function": partial(long_conv2d, backend="triton")},
        "long_conv1d": {"function": partial(long_conv1d, backend="triton")},
        "gated2d": vars(_gated(2, "triton")),
        "gated1d": vars(_gated(1, "triton")),
    }.items()
}
