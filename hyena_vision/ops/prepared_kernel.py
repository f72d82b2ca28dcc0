"""Kernels as a backend wants them: the part of a long convolution that depends on the kernel alone, done once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from hyena_vision.ops.backends import BACKENDS, select
from hyena_vision.ops.register import register_operator
from hyena_vision.ops.tensors import Taps, check_gates, empty_gated_result, laid_out_like, sum_dtype
from hyena_vision.ops.watchers import is_plain


@dataclass(frozen=True)
class PreparedKernel:
    """A kernel and its skip as a backend wants them, for signals of one size; made by `prepare_kernel1d` and `2d`.

    Nothing but numbers and tensors: it can be copied and pickled, and a compiled graph can read it.

    Attributes:
        backend: Name of the one that made it.
        size: Extents of the signals, (L,) or (H, W).
        channels: C.
        batch: B if each sample has its own kernel, else None.
        taps: Where the taps of the kernel lie.
        dtype: Of the sums.
        device: Where it is.
        tensors: What the backend wants, usually a spectrum.
    """

    backend: str
    size: tuple[int, ...]
    channels: int
    batch: int | None
    taps: Taps
    dtype: torch.dtype
    device: torch.device
    tensors: tuple[Tensor, ...]


@torch.no_grad()
def prepare(x: Tensor, kernel: Tensor, skip: Tensor | None, taps: Taps, name: str | None) -> PreparedKernel:
    """Prepare a kernel, on checked arguments."""
    backend = select(name, x, kernel, use="prepared", circular=taps.circular)
    arguments = [t.untyped_storage()._cdata for t in (kernel, skip) if t is not None]
    tensors = (t.detach() for t in backend.prepare(x, kernel, skip, taps))
    return PreparedKernel(
        backend.name,
        tuple(x.shape[2:]),
        x.shape[1],
        x.shape[0] if kernel.ndim == x.ndim else None,
        taps,
        sum_dtype(x),
        x.device,
        tuple(t.clone() if t.untyped_storage()._cdata in arguments else t for t in tensors),
    )


def convolve(
    x: Tensor, kernel: PreparedKernel, skip: Tensor | None, gate: Tensor | None, out_gate: Tensor | None
) -> Tensor:
    """The convolution of x with a prepared kernel.

    Raises:
        ValueError: x has another shape or device than the kernel was prepared for, gates do not fit x, or there is
            another skip.
        TypeError: Its sums are of another dtype.
        RuntimeError: A gradient is wanted.
    """
    if skip is not None:
        raise ValueError("a prepared kernel has its skip already, got another one")
    check_gates(x, gate, out_gate)
    fits = x.ndim == len(kernel.size) + 2 and x.shape[1:] == (kernel.channels, *kernel.size)
    if not fits or (kernel.batch is not None and x.shape[0] != kernel.batch):
        batch = "B" if kernel.batch is None else kernel.batch
        shape = ", ".join(str(n) for n in (batch, kernel.channels, *kernel.size))
        raise ValueError(f"x must have shape ({shape}) for this prepared kernel, got {tuple(x.shape)}")
    if x.device != kernel.device:
        raise ValueError(f"x must be on the device that the kernel was prepared for: {kernel.device}, got {x.device}")
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, gate, out_gate)):
        raise RuntimeError("a prepared kernel has no gradients: give the kernel itself, or use torch.no_grad()")
    dtype = sum_dtype(x, gate, out_gate)
    if dtype != kernel.dtype:
        raise TypeError(f"the kernel was prepared for sums in {kernel.dtype}, got x and gates in {dtype}")
    if x.numel() and is_plain(x, gate, out_gate):
        return BACKENDS[kernel.backend].convolve(x, kernel.tensors, gate, out_gate, kernel.taps)
    return _operator(x, gate, out_gate, list(kernel.tensors), kernel.backend, *kernel.taps)


def _forward(
    x: Tensor,
    gate: Optional[Tensor],  # noqa: UP045  torch reads the schema from this spelling
    out_gate: Optional[Tensor],  # noqa: UP045
    tensors: Sequence[Tensor],
    backend: str,
    extents: Sequence[int],
    centre: Sequence[int],
    circular: bool,
) -> Tensor:
    empty = empty_gated_result(x, gate, out_gate)
    if not x.numel():
        return empty
    taps = Taps(tuple(extents), tuple(centre), circular)
    return laid_out_like(empty, BACKENDS[backend].convolve(x, tensors, gate, out_gate, taps))


def _result_like(x, gate, out_gate, tensors, backend, extents, centre, circular):
    return empty_gated_result(x, gate, out_gate)


_operator = register_operator("prepared_conv", _forward, _result_like)
