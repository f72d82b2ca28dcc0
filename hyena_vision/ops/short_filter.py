r"""Short filter and first gate: what a Hyena mixer does to the projected tokens before its first long convolution."""

from importlib.util import find_spec

import torch
from torch import Tensor

from hyena_vision.ops.short_filter_torch import filter_by_torch
from hyena_vision.ops.table import can_have_table, picks_triton
from hyena_vision.ops.tensors import check_tensors
from hyena_vision.ops.watchers import WATCHED, is_watched

_BACKENDS = ("torch", "triton")
MAX_TAPS = 49  # of a filter whose gradients the kernels sum in registers
_HAS_TRITON = find_spec("triton") is not None


def gated_short_filter(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    signals: int,
    causal: bool = False,
    backend: str | None = None,
) -> Tensor:
    r"""Filter each channel of projected tokens with a few taps of its own, and multiply the last two signals.

    The channels of x are those of S signals of C channels each. All are cross-correlated (not flipped, as in
    `torch.nn.Conv1d` and `Conv2d`) with zeros outside the image, here for images:

    $$s_{b,c,m,n} = \beta_c + \sum_{i=0}^{T_h-1} \sum_{j=0}^{T_w-1} w_{c,i,j}\,
    x_{b,\,m+i-\lfloor T_h/2 \rfloor,\,n+j-\lfloor T_w/2 \rfloor,\,c}$$

    and of the filtered signals $s_0, ..., s_{S-1}$ the result holds $s_0, ..., s_{S-3}$ and the value under its first
    gate, $s_{S-2} \odot s_{S-1}$.

    Args:
        x: (B, L, S * C) or (B, H, W, S * C), float16 / bfloat16 / float32 / float64, any strides: tokens as a linear
            layer gives them.
        weight: (S * C, 1, T) or (S * C, 1, Th, Tw), each extent odd (a causal T may be even), floating point. It is
            cast to the dtype of the sums.
        bias: (S * C,), floating point, cast likewise, or None.
        signals: S >= 2; a Hyena operator of order N has N + 1.
        causal: Whether position n of a sequence sees n - T + 1 to n, instead of T taps centred on it.
        backend: "torch", which runs anywhere; "triton", fused kernels for CUDA, without float64 and for at most 49
            taps. None is "triton" where `hyena_vision.ops.backend_table` takes it for the GPU and size, else "torch".
            Both can be differentiated any number of times.

    Returns:
        (B, S - 1, C, L) or (B, S - 1, C, H, W), contiguous, dtype of x. Sums and the product run in float32, in
        float64 for float64 x. `triton` rounds the gradients of the filtered signals to the dtype of x before it makes
        those of x, weight and bias of them; `torch` may round the factors to TF32 in CUDA convolutions of float32, as
        `torch.backends.cudnn.allow_tf32` says.

    Raises:
        ValueError: Shapes, devices or settings do not fit, or the backend's name is unknown; the message has what was
            given.
        TypeError: A dtype that is not listed above.
        RuntimeError: The named backend cannot run here; the message says why.

    Cost:
        O(B L S C T) time, bound by memory. `triton` moves, per token and channel (of C) and in units of the size of
        x's dtype, 2 S - 1 forward and 5 S + 1 backward, and keeps nothing but its inputs for the backward pass.

    Source:
        Hyena (arXiv:2302.10866), algorithm 1; the filter over images is that of HyenaPixel (arXiv:2402.19305).
    """
    _check(x, weight, bias, signals, causal)
    if backend is None:
        use = "training" if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad) else "inference"
        listed = can_have_table(x.device) and not is_watched(x, weight)
        listed = listed and picks_triton(x.device, x.shape[1:-1], x.dtype, use)
        backend = "triton" if listed and _reason_not_triton(x, weight) is None else "torch"
    if backend == "torch":
        return filter_by_torch(x, weight, bias, signals, causal)
    if backend != "triton":
        raise ValueError(f"unknown backend {backend!r}, expected one of {list(_BACKENDS)}")
    reason = _reason_not_triton(x, weight)
    if reason is not None:
        raise RuntimeError(f"backend 'triton' cannot run this call: {reason}")
    from hyena_vision.ops.triton.short_filter import gated_short_filter as fused

    return fused(x, weight, bias, signals, causal)


def _reason_not_triton(x: Tensor, weight: Tensor) -> str | None:
    """None if the Triton kernels can run these arguments, else a phrase that says why not."""
    if not _HAS_TRITON:
        return "Triton is not installed"
    if x.dtype == torch.float64:
        return "it has no float64"
    if weight[0].numel() > MAX_TAPS:
        return f"it has filters of at most {MAX_TAPS} taps, and this one has {weight[0].numel()}"
    if x.numel() // x.shape[-1] >= 2**31 - 2**10:
        return "it counts tokens in 32 bits"
    if is_watched(x, weight):
        return WATCHED
    if x.device.type != "cuda":
        from hyena_vision.ops.triton.short_filter import INTERPRETED

        if x.device.type != "cpu" or not INTERPRETED:
            return f"it is for CUDA devices, and x is on {x.device}"
    return None


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, signals: int, causal: bool) -> None:
    """Refuse arguments that would fail later or, worse, give a wrong number."""
    check_tensors(x, weight=weight, bias=bias)
    if signals < 2:
        raise ValueError(f"signals must be at least 2, got {signals}")
    given = f"x has shape {tuple(x.shape)}, weight {tuple(weight.shape)}"
    if weight.ndim not in (3, 4) or x.ndim != weight.ndim:
        raise ValueError(
            f"expected x (B, L, S * C) and weight (S * C, 1, T), or (B, H, W, S * C) and (S * C, 1, Th, Tw): {given}"
        )
    if x.shape[-1] % signals or tuple(weight.shape[:2]) != (x.shape[-1], 1):
        raise ValueError(f"x must have S * C channels last and weight (S * C, 1) first, with S = {signals}: {given}")
    if any(extent == 0 for extent in (*x.shape[1:], *weight.shape)):
        raise ValueError(f"no axis but the batch may be empty: {given}")
    if causal and weight.ndim == 4:
        raise ValueError(f"a causal filter is for sequences, weight (S * C, 1, T): {given}")
    if not causal and any(taps % 2 == 0 for taps in weight.shape[2:]):
        raise ValueError(f"a centred filter must have odd extents: {given}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape (S * C,): {given}, bias {tuple(bias.shape)}")
