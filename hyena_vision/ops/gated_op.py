"""Long convolutions between two gates, registered with PyTorch as one operator."""

from collections.abc import Callable, Sequence
from typing import Optional

import torch
from torch import Tensor

from hyena_vision.ops import fft
from hyena_vision.ops.library import empty_result, is_compiling, laid_out_like, sum_dtype

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def empty_gated_result(x: Tensor, gate: Tensor | None, out_gate: Tensor | None, keep_layout: bool = True) -> Tensor:
    """Memory for a result: channels last if x is, unless told otherwise; its dtype is promoted from all three."""
    dtype = x.dtype
    for tensor in (gate, out_gate):
        dtype = dtype if tensor is None else torch.promote_types(dtype, tensor.dtype)
    return empty_result(x, keep_layout, dtype)


def gated_op(
    name: str,
    forward: Callable[..., Tensor],
    gradients: Callable[..., Gradients],
    on_trace: Callable[[Tensor, bool], None] | None = None,
    keep_layout: bool = True,
) -> Callable[..., Tensor]:
    """Register a long convolution as `hyena_vision::{name}`, and its backward pass as `hyena_vision::{name}_backward`.

    What is kept for the backward pass is what came in. An implementation must not use lazy conjugation (`conj()`,
    `mH`): within an operator that a compiled graph calls, the mark on such a tensor is not seen.

    Args:
        name: Of the operator.
        forward: `(x, kernel, skip, gate, out_gate, centre, circular) -> y`.
        gradients: `(dy, x, kernel, skip, gate, out_gate, centre, circular)` to those of x, kernel, skip, gate and
            out_gate, empty where they are None.
        on_trace: `(x, circular)`, called where a compiler asks for the shape of the result.
        keep_layout: Whether results are channels last where x is; else they are contiguous.

    Returns:
        The operator.
    """

    @torch.library.custom_op(f"hyena_vision::{name}", mutates_args=())
    def op(
        x: Tensor,
        kernel: Tensor,
        skip: Optional[Tensor],  # noqa: UP045  torch reads the schema from this spelling
        gate: Optional[Tensor],  # noqa: UP045
        out_gate: Optional[Tensor],  # noqa: UP045
        centre: Sequence[int],
        circular: bool,
    ) -> Tensor:
        return forward(x, kernel, skip, gate, out_gate, centre, circular)

    @op.register_fake
    def _(x, kernel, skip, gate, out_gate, centre, circular):
        if on_trace is not None:
            on_trace(x, circular)
        return empty_gated_result(x, gate, out_gate, keep_layout)

    @torch.library.custom_op(f"hyena_vision::{name}_backward", mutates_args=())
    def backward_op(
        dy: Tensor,
        x: Tensor,
        kernel: Tensor,
        skip: Optional[Tensor],  # noqa: UP045
        gate: Optional[Tensor],  # noqa: UP045
        out_gate: Optional[Tensor],  # noqa: UP045
        centre: Sequence[int],
        circular: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        dx, dkernel, *rest = gradients(dy, x, kernel, skip, gate, out_gate, centre, circular)
        # Empty for None: an operator returns tensors
        return dx, laid_out_like(kernel, dkernel), *(x.new_empty(0) if t is None else t for t in rest)

    @backward_op.register_fake
    def _(dy, x, kernel, skip, gate, out_gate, centre, circular):
        signals = (x.new_empty(0) if t is None else empty_result(t, keep_layout) for t in (gate, out_gate))
        dskip = x.new_empty(0) if skip is None else skip.new_empty(skip.shape)
        return empty_result(x, keep_layout), torch.empty_like(kernel), dskip, *signals

    def keep(ctx, inputs, output) -> None:
        *tensors, ctx.centre, ctx.circular = inputs
        ctx.save_for_backward(*tensors)

    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        again = torch.is_grad_enabled() and not is_compiling()
        compute = _differentiable_gradients if again else backward_op
        results = compute(dy, *tensors, ctx.centre, ctx.circular)
        return (*(None if t is None else g for t, g in zip(tensors, results, strict=True)), None, None)

    op.register_autograd(backward, setup_context=keep)
    return op


def gated_gradients(convolve: Callable[..., Tensor], gradients: Callable[..., tuple]) -> Callable[..., tuple]:
    """Gradients between two gates, None for none, from a convolution and its gradients that know of no gates.

    Args:
        convolve: `(x, kernel, skip, centre, circular) -> y`.
        gradients: `(dy, x, kernel, skip, centre, circular)` to those of x, kernel and skip.

    Returns:
        `(dy, x, kernel, skip, gate, out_gate, centre, circular)` to those of x, kernel, skip, gate and out_gate.
    """

    def gated(dy, x, kernel, skip, gate, out_gate, centre, circular):
        dtype = sum_dtype(x, gate, out_gate)
        u, du = (t if g is None else t.to(dtype) * g.to(dtype) for t, g in ((x, gate), (dy, out_gate)))
        dout_gate = None
        if out_gate is not None:
            dout_gate = (dy.to(dtype) * convolve(u, kernel, skip, centre, circular)).to(out_gate.dtype)
        du, dkernel, dskip = gradients(du, u, kernel, skip, centre, circular)
        dgate = None if gate is None else (du * x).to(gate.dtype)
        dx = (du if gate is None else du * gate).to(x.dtype)
        return dx, dkernel, None if skip is None else dskip, dgate, dout_gate

    return gated


_differentiable_gradients = gated_gradients(fft.convolve, fft.gradients)
