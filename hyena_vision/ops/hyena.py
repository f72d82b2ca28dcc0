r"""All that a Hyena mixer of order 2 does between its two projections, as one operator for the backward pass."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from hyena_vision.ops.backends import select
from hyena_vision.ops.short_filter import filter_sequence, gated_short_filter


def hyena_operator(
    tokens: Tensor,
    short_weight: Tensor,
    short_bias: Tensor | None,
    kernel: Tensor,
    skip: Tensor,
    *,
    causal: bool = False,
    padding: str = "linear",
    backend: str | None = None,
    gated_filter: bool = False,
) -> Tensor:
    r"""Filter projected tokens with a few taps, gate, convolve, gate.

    $$y = s_0 \odot (k * (s_1 \odot s_2) + d \odot s_1 \odot s_2), \quad s = \mathrm{short}(\mathrm{tokens})$$

    It keeps its arguments for the backward pass and nothing else: the filtered signals are computed again there.
    Second derivatives go through the plain form.

    Args:
        tokens: (B, H, W, 3 C), as a linear layer gives them; plain tensors.
        short_weight: (3 C, 1, T) of a mixer of sequences, or (3 C, 1, T, T), cross-correlated.
        short_bias: (3 C,) or None.
        kernel: (C, *K) or (B, C, *K), as for `long_conv1d` or `long_conv2d`.
        skip: (C,).
        causal: As for `long_conv1d`.
        padding: As for `long_conv2d`.
        backend: As for both.
        gated_filter: Whether short filter and first gate are `gated_short_filter` with this backend.

    Returns:
        (B, C, H * W) of a sequence, or (B, C, H, W).

    Raises:
        RuntimeError: The named backend cannot run here.

    Cost:
        That of its parts, the short filter twice. Memory of the arguments.

    Source:
        Hyena (arXiv:2302.10866), definition 3.1 as its code has it.
    """
    taps = kernel.shape[-1:] if short_weight.ndim == 3 else kernel.shape[-2:]
    centre = [0 if causal else extent // 2 for extent in taps]
    settings = causal, centre, padding == "circular", backend, gated_filter
    return _Hyena.apply(tokens, short_weight, short_bias, kernel, skip, *settings)


def _signals(tokens: Tensor, weight: Tensor, bias: Tensor | None, causal: bool, backend: str | None) -> Tensor:
    """The filtered signals (B, S, C, *size): three, or with a backend for it two, the value under its gate already."""
    rank = weight.ndim - 2
    if backend is not None:
        tokens = tokens.flatten(1, 2) if rank == 1 else tokens
        return gated_short_filter(tokens, weight, bias, signals=3, causal=causal, backend=backend)
    images = tokens.permute(0, 3, 1, 2)
    if rank == 1:
        filtered = filter_sequence(images, weight, bias, causal)
    else:
        filtered = F.conv2d(images, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))
    return filtered.unflatten(1, (3, -1))


def _named(signals: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """Value, gate and last gate."""
    out_gate, *gate, value = signals.unbind(1)
    return value, gate[0] if gate else None, out_gate


def _autocast(device_type: str) -> Callable[[], AbstractContextManager]:
    """What gives back the present state of autocast later."""
    if device_type == "meta":
        return nullcontext
    enabled, dtype = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    return partial(torch.autocast, device_type, dtype=dtype, enabled=enabled)


class _Hyena(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        tokens: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        kernel: Tensor,
        skip: Tensor,
        causal: bool,
        centre: Sequence[int],
        circular: bool,
        backend: str | None,
        gated_filter: bool,
    ) -> Tensor:
        ctx.save_for_backward(tokens, weight, bias, kernel, skip)
        ctx.autocast = _autocast(tokens.device.type)
        ctx.filter_settings = causal, backend if gated_filter else None
        ctx.settings = centre, circular
        value, gate, out_gate = _named(_signals(tokens, weight, bias, *ctx.filter_settings))
        ctx.backend = select(backend, value, kernel)
        return ctx.backend.long_conv(value, kernel, skip, gate, out_gate, *ctx.settings)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        tensors, needed = ctx.saved_tensors, ctx.needs_input_grad[:5]
        again = torch.is_grad_enabled()  # somebody wants second derivatives
        leaves = tensors if again else [None if t is None else t.detach() for t in tensors]
        if not again:
            leaves = [t if t is None else t.requires_grad_(need) for t, need in zip(leaves, needed, strict=True)]
        *of_filter, kernel, skip = leaves
        with torch.enable_grad(), ctx.autocast():
            signals = _signals(*of_filter, *ctx.filter_settings)
        if again or ctx.backend.gradients is None:
            with torch.enable_grad(), ctx.autocast():
                value, gate, out_gate = _named(signals)
                y = ctx.backend.long_conv(value, kernel, skip, gate, out_gate, *ctx.settings)
            found = _gradients(y, leaves, needed, dy, create_graph=again)
            return *found, *[None] * 5
        value, gate, out_gate = _named(signals.detach())
        dvalue, dkernel, dskip, dgate, dout_gate = ctx.backend.gradients(
            dy, value, kernel.detach(), skip.detach(), gate, out_gate, *ctx.settings
        )
        parts = [t for t in (dout_gate, None if gate is None else dgate, dvalue) if t is not None]
        if signals.stride(2) == 1:  # neighbouring channels, which the short filter goes on with
            dsignals = torch.stack([t.movedim(1, -1) for t in parts], -2).movedim((-2, -1), (1, 2))
        else:
            dsignals = torch.stack(parts, 1)
        del dvalue, dgate, dout_gate, parts, value, gate, out_gate
        found = _gradients(signals, of_filter, needed[:3], dsignals)
        return *found, dkernel if needed[3] else None, dskip if needed[4] else None, *[None] * 5


def _gradients(y, inputs, needed, dy, create_graph=False) -> list[Tensor | None]:
    wanted = [t for t, need in zip(inputs, needed, strict=True) if need]
    found = iter(torch.autograd.grad(y, wanted, dy, create_graph=create_graph) if wanted else ())
    return [next(found) if need else None for need in needed]
