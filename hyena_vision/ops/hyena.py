r"""All that a Hyena mixer of order 2 does between its two projections, as one operator for the backward pass."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from hyena_vision.ops.backends import BACKENDS, select
from hyena_vision.ops.long_conv import check_arguments, long_conv, taps1d, taps2d
from hyena_vision.ops.short_filter import MAX_TAPS, gated_short_filter
from hyena_vision.ops.short_filter_torch import filter_sequence
from hyena_vision.ops.tensors import Taps
from hyena_vision.ops.watchers import is_batched


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
        backend: As for both; `triton` is that of `gated_short_filter` as well, for filters that it has.

    Returns:
        (B, C, H * W) of a sequence, or (B, C, H, W).

    Raises:
        ValueError, TypeError, RuntimeError: As `long_conv1d` and `long_conv2d`.

    Cost:
        That of its parts, the short filter twice. Memory of the arguments.

    Source:
        Hyena (arXiv:2302.10866), definition 3.1 as its code has it.
    """
    rank = short_weight.ndim - 2
    value, use = first_signal(tokens, rank, 3), table_use(tokens)
    # Here, since a function's forward pass has no gradients, and its backward pass needs the same one
    chosen = select(backend, value, kernel, use=use, circular=padding == "circular")
    taps = taps1d(kernel, causal) if rank == 1 else taps2d(kernel, padding)
    return _Hyena.apply(tokens, short_weight, short_bias, kernel, skip, taps, causal, chosen.name)


def first_signal(tokens: Tensor, rank: int, signals: int) -> Tensor:
    """A view of projected tokens (B, H, W, S * C) that shows size, dtype and device of what will be convolved.

    Returns:
        (B, C, H * W) or (B, C, H, W).
    """
    tokens = tokens.flatten(1, 2) if rank == 1 else tokens
    return tokens[..., : tokens.shape[-1] // signals].movedim(-1, 1)


def table_use(tokens: Tensor, prepared: bool = False) -> str | None:
    """What a table of backends calls a mixer's call; None where autocast will make it another dtype's."""
    if _autocast_dtype(tokens.device.type) not in (None, tokens.dtype):
        return None
    return "training" if torch.is_grad_enabled() else "prepared" if prepared else "inference"


def _autocast_dtype(device_type: str) -> torch.dtype | None:
    enabled = device_type != "meta" and torch.is_autocast_enabled(device_type)
    return torch.get_autocast_dtype(device_type) if enabled else None


def _signals(
    tokens: Tensor, weight: Tensor, bias: Tensor | None, causal: bool, backend: str
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Value, gate (None if the value is under it already) and last gate, and all of them (B, S, C, *size)."""
    rank = weight.ndim - 2
    if backend == "triton" and weight[0].numel() <= MAX_TAPS:
        tokens = tokens.flatten(1, 2) if rank == 1 else tokens
        signals = gated_short_filter(tokens, weight, bias, signals=3, causal=causal, backend=backend)
    else:
        images = tokens.permute(0, 3, 1, 2)
        if rank == 1:
            filtered = filter_sequence(images, weight, bias, causal)
        else:
            padding = [extent // 2 for extent in weight.shape[2:]]
            filtered = F.conv2d(images, weight, bias, padding=padding, groups=len(weight))
        signals = filtered.unflatten(1, (3, -1))
    out_gate, *gate, value = signals.unbind(1)
    return value, gate[0] if gate else None, out_gate, signals


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
        taps: Taps,
        causal: bool,
        backend: str,
    ) -> Tensor:
        ctx.save_for_backward(tokens, weight, bias, kernel, skip)
        ctx.settings, ctx.autocast = (taps, causal, backend), _autocast(tokens.device.type)
        value, gate, out_gate, _ = _signals(tokens, weight, bias, causal, backend)
        check_arguments(value, kernel, skip, len(taps.centre))
        chosen = select(backend, value, kernel)
        if not value.numel():
            return torch.empty_like(value)
        return chosen.convolve(value, chosen.prepare(value, kernel, skip, taps), gate, out_gate, taps)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        needed, again, (taps, causal, backend) = ctx.needs_input_grad[:5], torch.is_grad_enabled(), ctx.settings
        # Aliases: where one argument follows from another, autograd goes that way itself
        leaves = [None if t is None else t.view_as(t) if again else t.detach() for t in ctx.saved_tensors]
        if not again:
            leaves = [t if t is None else t.requires_grad_(need) for t, need in zip(leaves, needed, strict=True)]
        tokens, weight, bias, kernel, skip = leaves
        assert tokens is not None and weight is not None and kernel is not None and skip is not None
        compute = BACKENDS[backend].gradients
        with torch.enable_grad(), ctx.autocast():
            value, gate, out_gate, filtered = _signals(tokens, weight, bias, causal, backend)
            if again or is_batched(dy) or compute is None or not dy.numel():
                y = long_conv(value, kernel, skip, gate, out_gate, taps, backend)
                return *_gradients(y, leaves, needed, dy, create_graph=again), None, None, None
        signals = value.detach(), None if gate is None else gate.detach(), out_gate.detach()
        dvalue, dkernel, dskip, dgate, dout_gate = compute(
            dy, signals[0], kernel.detach(), skip.detach(), *signals[1:], taps
        )
        parts = [t for t in (dout_gate, dgate, dvalue) if t is not None]
        if filtered.stride(2) == 1:  # neighbouring channels, which the short filter goes on with
            dfiltered = torch.stack([t.movedim(1, -1) for t in parts], -2).movedim((-2, -1), (1, 2))
        else:
            dfiltered = torch.stack(parts, 1)
        del dvalue, dgate, dout_gate, parts, value, gate, out_gate, signals
        found = _gradients(filtered, [tokens, weight, bias], needed[:3], dfiltered)
        return *found, dkernel if needed[3] else None, dskip if needed[4] else None, None, None, None


def _gradients(
    y: Tensor, inputs: Sequence[Tensor | None], needed: Sequence[bool], dy: Tensor, create_graph: bool = False
) -> list[Tensor | None]:
    wanted = [t for t, need in zip(inputs, needed, strict=True) if t is not None and need]
    found = iter(torch.autograd.grad(y, wanted, dy, create_graph=create_graph) if wanted else ())
    return [next(found) if need else None for need in needed]
