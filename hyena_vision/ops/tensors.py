"""What the operators share: checks of arguments, memory of results, and precision of sums."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

# Of x, kernel, skip, gate and out_gate, None for those that are not there
Gradients: TypeAlias = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


class Taps(NamedTuple):
    """Where the taps of a kernel lie.

    Attributes:
        extents: Of the kernel, (K,) or (Kh, Kw).
        centre: Index of displacement 0.
        circular: Whether displacements are taken modulo the size of the signal.
    """

    extents: tuple[int, ...]
    centre: tuple[int, ...]
    circular: bool


def tap_at(kernel: Tensor, index: Sequence[int]) -> Tensor:
    """A view (...) of one tap of kernels (..., *K)."""
    for n in reversed(index):
        kernel = kernel.select(-1, n)
    return kernel


def empty_result(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for a result of the shape of x: channels last if x is, else contiguous."""
    if x.stride(1) == 1:
        return x.new_empty((x.shape[0], *x.shape[2:], x.shape[1]), dtype=dtype).movedim(-1, 1)
    return x.new_empty(x.shape, dtype=dtype)


def result_dtype(x: Tensor, gate: Tensor | None, out_gate: Tensor | None) -> torch.dtype:
    """Dtype of a gated convolution: promoted from all three."""
    dtype = x.dtype
    for tensor in (gate, out_gate):
        dtype = dtype if tensor is None else torch.promote_types(dtype, tensor.dtype)
    return dtype


def empty_gated_result(x: Tensor, gate: Tensor | None, out_gate: Tensor | None) -> Tensor:
    """Memory for a gated convolution: channels last if x is."""
    return empty_result(x, result_dtype(x, gate, out_gate))


def sum_dtype(*tensors: Tensor | None) -> torch.dtype:
    """Dtype of transforms and sums: float64 if any of these is, else float32."""
    for tensor in tensors:
        if tensor is not None and tensor.dtype == torch.float64:
            return torch.float64
    return torch.float32


def laid_out_like(tensor: Tensor, result: Tensor) -> Tensor:
    """A result in the memory order that `torch.empty_like(tensor)` has, which is what compilers are told."""
    strides = torch.empty_like(tensor, device="meta").stride()
    return result if result.stride() == strides else torch.empty_like(tensor, dtype=result.dtype).copy_(result)


def without_autocast(device_type: str) -> AbstractContextManager:
    """Keep autocast away from what must run in the dtype of its inputs."""
    autocast = device_type != "meta" and torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if autocast else nullcontext()


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Keep autocast and what users set for float32 products away from sums in float32."""
    with _full_products(device_type), without_autocast(device_type):
        yield


@contextmanager
def _full_products(device_type: str) -> Iterator[None]:
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:
        # Somebody uses torch 2.9's settings, one per backend, which this one does not go with
        # torch sets up the attributes of mkldnn when it is imported, which checkers do not see
        products = torch.backends.cuda.matmul if device_type == "cuda" else torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
        precision, products.fp32_precision = products.fp32_precision, "ieee"
        try:
            yield
        finally:
            products.fp32_precision = precision
        return
    if precision == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


def check_tensors(x: Tensor, **others: Tensor | None) -> None:
    """Refuse dtypes that operators do not take (TypeError) and other devices than that of x (ValueError)."""
    for name, tensor in {"x": x, **others}.items():
        if tensor is None:
            continue
        if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")
        if tensor.device != x.device:
            raise ValueError(f"{name} must be on the device of x: x is on {x.device}, {name} on {tensor.device}")


def check_gates(x: Tensor, gate: Tensor | None, out_gate: Tensor | None) -> None:
    """Refuse gates that do not fit."""
    check_tensors(x, gate=gate, out_gate=out_gate)
    for name, tensor in (("gate", gate), ("out_gate", out_gate)):
        if tensor is not None and tensor.shape != x.shape:
            raise ValueError(f"{name} must have the shape of x: x has {tuple(x.shape)}, {name} {tuple(tensor.shape)}")
