"""The `triton` backend of `gated_short_filter`: tokens in, filtered and gated signals out, in one pass over memory.

A sequence is an image of height 1. Forward, a program has a block of tokens of one image and a block of channels of one
result: it reads tiles with channels fastest, as the tokens lie, and writes them with tokens fastest, as the long
convolutions want them. Shifted tiles overlap and come from the caches.

Backward, a first kernel filters the last two signals once more and writes the gradients of all filtered signals in the
layout of x. The second reads those, shifted: times a tap they sum to the gradient of x, times x to that of the tap. Its
programs go through 256 tokens each and write one partial sum per tap, and torch adds these up: no atomics, so that
repeats are equal bit by bit.
"""

from typing import Optional

import torch
import triton
from torch import Tensor

from hyena_vision.ops.register import register_operator
from hyena_vision.ops.short_filter_torch import filter_by_torch
from hyena_vision.ops.triton.short_filter_kernels import (
    _short_filter_bwd_inputs_kernel,
    _short_filter_bwd_signals_kernel,
    _short_filter_fwd_kernel,
)
from hyena_vision.ops.watchers import is_compiling

INTERPRETED: bool = triton.knobs.runtime.interpret  # what the kernels below are made for, CPU tensors if true

_CHANNELS = 32  # of a tile: 64 bytes of a token in 16 bits, two sectors
WARPS = 4
CHUNK = 256  # tokens of a program that sums gradients of taps


def forward_block(tokens: int, itemsize: int) -> int:
    """Tokens of a tile of images of this many: 128 bytes of a line of the result, 64 if fewer then idle."""
    return min((128 // itemsize, 64 // itemsize), key=lambda block: triton.cdiv(tokens, block) * block)


def backward_block(taps: int) -> int:
    """Tokens of a tile where each thread keeps a sum per tap for 4, 2 or 1 of its elements: at most 52 registers."""
    return 16 if taps <= 9 else 8 if taps <= 25 else 4


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],  # noqa: UP045  torch reads the schema from this spelling
    signals: int,
    causal: bool,
) -> Tensor:
    out = _empty_result(x, signals, _stored(x.dtype))
    if out.numel():
        images = _as_images(x)
        batch, height, width, channels = *images.shape[:3], images.shape[3] // signals
        block = forward_block(height * width, x.itemsize)
        grid = (batch * triton.cdiv(height * width, block), triton.cdiv(channels, _CHANNELS), signals - 1)
        with torch.cuda.device_of(x):
            _short_filter_fwd_kernel[grid](
                images, _by_tap(weight), _sum_dtype(bias), out, height, width, channels, *images.stride(),
                SIGNALS=signals, HAS_BIAS=bias is not None, **_filter_shape(weight, causal),
                TOKENS=block, CHANNELS=_CHANNELS, num_warps=WARPS,
            )  # fmt: skip
    return out.to(x.dtype)


def _result_like(x, weight, bias, signals, causal):
    return _empty_result(x, signals, x.dtype)


def _gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],  # noqa: UP045  as above
    signals: int,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias, which may be None all the same."""
    images, taps, shape = _as_images(x), weight[0].numel(), _filter_shape(weight, causal)
    batch, height, width, channels = images.shape
    tokens, chunks = batch * height * width, triton.cdiv(batch * height * width, CHUNK)
    dx = x.new_empty(x.shape, dtype=_stored(x.dtype))
    sums = x.new_empty((chunks, taps + 1, channels), dtype=torch.float32)
    if tokens:
        grad = grad.flatten(3)
        dsignal, by_tap = torch.empty_like(dx), _by_tap(weight)
        block, step = forward_block(height * width, x.itemsize), backward_block(taps)
        blocks = batch * triton.cdiv(height * width, block), triton.cdiv(channels // signals, _CHANNELS)
        with torch.cuda.device_of(x):
            _short_filter_bwd_signals_kernel[(*blocks, signals - 1)](
                grad, images, by_tap, _sum_dtype(bias), dsignal, height, width, channels // signals,
                *grad.stride(), *images.stride(), SIGNALS=signals, HAS_BIAS=bias is not None, **shape,
                TOKENS=block, CHANNELS=_CHANNELS, num_warps=WARPS,
            )  # fmt: skip
            _short_filter_bwd_inputs_kernel[(chunks, triton.cdiv(channels, _CHANNELS))](
                dsignal.to(x.dtype), images, by_tap, dx, sums, tokens, height, width, channels, *images.stride(),
                **shape, STEPS=CHUNK // step, TOKENS=step, CHANNELS=_CHANNELS, num_warps=WARPS,
            )  # fmt: skip
    *dtaps, dbias = sums.sum(0)
    dweight = torch.stack(dtaps, 1).reshape(weight.shape).to(weight.dtype)
    return dx.to(x.dtype), dweight, dbias.to(x.dtype if bias is None else bias.dtype, copy=True)


def _gradients_like(grad, x, weight, bias, signals, causal):
    dbias = x.new_empty(weight.shape[0]) if bias is None else bias.new_empty(bias.shape)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), dbias


_backward_operator = register_operator("gated_short_filter_backward", _gradients, _gradients_like)


def _keep(ctx, inputs, output) -> None:
    x, weight, bias, ctx.signals, ctx.causal = inputs
    ctx.save_for_backward(x, weight, bias)


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    if torch.is_grad_enabled() and not is_compiling():
        # Somebody wants second derivatives: by operations that autograd knows
        wanted = [t for t, needed in zip((x, weight, bias), ctx.needs_input_grad[:3], strict=True) if needed]
        y = filter_by_torch(x, weight, bias, ctx.signals, ctx.causal)
        found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
        return *[next(found) if needed else None for needed in ctx.needs_input_grad[:3]], None, None
    dx, dweight, dbias = _backward_operator(grad, x, weight, bias, ctx.signals, ctx.causal)
    return dx, dweight, None if bias is None else dbias, None, None


gated_short_filter = register_operator("gated_short_filter", _forward, _result_like, keep=_keep, backward=_backward)


def _stored(dtype: torch.dtype) -> torch.dtype:
    """What kernels write for results of this dtype: Triton's interpreter would cut float32 to bfloat16, not round."""
    return torch.float32 if INTERPRETED and dtype == torch.bfloat16 else dtype


def _empty_result(x: Tensor, signals: int, dtype: torch.dtype) -> Tensor:
    return x.new_empty((x.shape[0], signals - 1, x.shape[-1] // signals, *x.shape[1:-1]), dtype=dtype)


def _as_images(x: Tensor) -> Tensor:
    return x.unsqueeze(1) if x.ndim == 3 else x


def _by_tap(weight: Tensor) -> Tensor:
    """(T, S * C) in float32: a thread reads a tap of the channels that it has at once."""
    return weight.flatten(1).t().to(torch.float32).contiguous()


def _sum_dtype(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.to(torch.float32).contiguous()


def _filter_shape(weight: Tensor, causal: bool) -> dict[str, int]:
    """Extents of the filter, and the tap that sees the token itself."""
    th, tw = weight.shape[2:] if weight.ndim == 4 else (1, weight.shape[2])
    return dict(TH=th, TW=tw, TOP=th // 2, LEFT=tw - 1 if causal else tw // 2)
