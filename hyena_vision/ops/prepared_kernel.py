"""Kernels as a backend wants them: the part of a long convolution that depends on the kernel alone, done once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from hyena_vision.ops.backends import BACKENDS, select
from hyena_vision.ops.gated_op import empty_gated_result
from hyena_vision.ops.library import is_plain, laid_out_like, sum_dtype


@dataclass(frozen=True)
class PreparedKernel:
    """A kernel and its skip as a backend wants them, for signals of one size; made by `prepare_kernel1d` and `2d`.

    Nothing but numbers and tensors: it can be copied and pickled, and a compiled graph can read it.

    Attributes:
        backend: Name of the one that made it.
        size: Extents of the signals, (L,) or (H, W).
        channels: C.
        batch: B if each sample has its own kernel, else None.
        extents: Of the kernel, as many as of the signals.
        centre: Index of displacement 0.
        circular: Whether displacements are taken modulo the size.
        dtype: Of the sums.
        device: Where it is.
        tensors: What the backend wants, usually a spectrum.
    """

    backend: str
    size: tuple[int, ...]
    channels: int
    batch: int | None
    extents: tuple[int, ...]
    centre: tuple[int, ...]
    circular: bool
    dtype: torch.dtype
    device: torch.device
    tensors: tuple[Tensor, ...]


@torch.no_grad()
def prepare(
    x: Tensor, kernel: Tensor, skip: Tensor | None, centre: Sequence[int], circular: bool, name: str | None
) -> PreparedKernel:
    """Prepare a kernel, whose index of displacement 0 is `centre`, on checked arguments."""
    backend = select(name, x, kernel, use="prepared", circular=circular)
    given = [t.untyped_storage()._cdata for t in (kernel, skip) if t is not None]
    tensors = (t.detach() for t in backend.prepare(x, kernel, skip, centre, circular))
    return PreparedKernel(
        backend.name,
        tuple(x.shape[2:]),
        x.shape[1],
        x.shape[0] if kernel.ndim == x.ndim else None,
        tuple(kernel.shape[-len(centre) :]),
        tuple(centre),
        circular,
        sum_dtype(x),
        x.device,
        tuple(t.clone() if t.untyped_storage()._cdata in given else t for t in tensors),
    )


def convolve(x: Tensor, kernel: PreparedKernel, gate: Tensor | None, out_gate: Tensor | None) -> Tensor:
    """The convolution of x with a prepared kernel; gates fit x.

    Raises:
        ValueError: x has another shape or device than the kernel was prepared for.
        TypeError: Its sums are of another dtype.
        RuntimeError: A gradient is wanted.
    """
    batch = "B" if kernel.batch is None else kernel.batch
    fits = x.ndim == len(kernel.size) + 2 and x.shape[1:] == (kernel.channels, *kernel.size)
    if not fits or (kernel.batch is not None and x.shape[0] != kernel.batch):
        shape = ", ".join(str(n) for n in (batch, kernel.channels, *kernel.size))
        raise ValueError(f"x must have shape ({shape}) for this prepared kernel, got {tuple(x.shape)}")
    if x.device != kernel.device:
        raise ValueError(f"x must be on the device that the kernel was prepared for: {kernel.device}, got {x.device}")
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, gate, out_gate)):
        raise RuntimeError("a prepared kernel has no gradients: give the kernel itself, or use torch.no_grad()")
    dtype = sum_dtype(x, gate, out_gate)
    if dtype != kernel.dtype:
        raise TypeError(f"the kernel was prepared for sums in {kernel.dtype}, got x and gates in {dtype}")
    settings = kernel.backend, kernel.extents, kernel.centre, kernel.circular
    if is_plain(x, gate, out_gate):
        with torch.no_grad():
            return _run(x, gate, out_gate, kernel.tensors, *settings)
    return _op(x, gate, out_gate, list(kernel.tensors), *settings)


def _run(x, gate, out_gate, tensors, backend, extents, centre, circular):
    if not x.numel():
        return empty_gated_result(x, gate, out_gate)
    return BACKENDS[backend].convolve_prepared(x, tensors, gate, out_gate, extents, centre, circular)


@torch.library.custom_op("hyena_vision::prepared_conv", mutates_args=())
def _op(
    x: Tensor,
    gate: Optional[Tensor],  # noqa: UP045  torch reads the schema from this spelling
    out_gate: Optional[Tensor],  # noqa: UP045
    tensors: Sequence[Tensor],
    backend: str,
    extents: Sequence[int],
    centre: Sequence[int],
    circular: bool,
) -> Tensor:
    y = _run(x, gate, out_gate, tensors, backend, extents, centre, circular)
    return laid_out_like(empty_gated_result(x, gate, out_gate), y)


@_op.register_fake
def _(x, gate, out_gate, tensors, backend, extents, centre, circular):
    return empty_gated_result(x, gate, out_gate)
