"""What the operators share: registering with PyTorch as one operator, checks, and precision of sums."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext


def empty_result(x: Tensor, keep_layout: bool, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for a result of the shape of x: contiguous, or channels last if x is and `keep_layout` is set."""
    if keep_layout and x.stride(1) == 1:
        return x.new_empty((x.shape[0], *x.shape[2:], x.shape[1]), dtype=dtype).movedim(-1, 1)
    return x.new_empty(x.shape, dtype=dtype)


def sum_dtype(*tensors: Tensor | None) -> torch.dtype:
    """Dtype of transforms and sums: float64 if any of these is, else float32."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


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
        products = torch.backends.cuda.matmul if device_type == "cuda" else torch.backends.mkldnn.matmul
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


def is_compiling() -> bool:
    """Whether this call is traced by torch.compile or torch.export; torch's own flag is up in all threads meanwhile."""
    if torch.compiler.is_dynamo_compiling():
        return True
    return (torch.compiler.is_compiling() or torch.compiler.is_exporting()) and torch._C._len_torch_dispatch_stack() > 0


def is_batched(tensor: Tensor) -> bool:
    """Whether it stands for several, as gradients do under `is_grads_batched` and in vectorised jacobians."""
    return torch._C._functorch.is_legacy_batchedtensor(tensor) or torch._C._functorch.is_functorch_wrapped_tensor(
        tensor
    )


def is_watched(*tensors: Tensor | None) -> bool:
    """Whether somebody sees through torch's own calls only; torch.compile takes operators as they are.

    True for tensor subclasses, and in torch.export, torch.onnx.export, torch.jit.trace, torch.func and forward-mode
    differentiation.
    """
    if torch.compiler.is_dynamo_compiling():
        return False
    traced = is_compiling() or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    plain = all(tensor is None or type(tensor) in (Tensor, Parameter) for tensor in tensors)
    return traced or transformed or not plain


# Why an operator that shows nothing of its inside does not run.
WATCHED = "exporters, torch.func, forward derivatives and tensor subclasses see through torch's own calls only"


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether these are nothing but numbers, and nobody at all sees the operations on them.

    False where `is_watched` is true, in torch.compile, and in dispatch and function modes (make_fx, FlopCounterMode)
    but for a default device.
    """
    if torch.compiler.is_dynamo_compiling() or torch._C._len_torch_dispatch_stack() or is_watched(*tensors):
        return False
    return all(type(mode) is DeviceContext for mode in _get_current_function_mode_stack())


def check_tensors(x: Tensor, **others: Tensor | None) -> None:
    """Refuse dtypes that operators do not take (TypeError) and other devices than that of x (ValueError)."""
    for name, tensor in {"x": x, **others}.items():
        if tensor is None:
            continue
        if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")
        if tensor.device != x.device:
            raise ValueError(f"{name} must be on the device of x: x is on {x.device}, {name} on {tensor.device}")
