"""Who else sees the operations of a call: compilers, exporters, transforms, modes and tensor subclasses."""

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

# Why an operator that shows nothing of its inside does not run.
WATCHED = "exporters, torch.func, forward derivatives and tensor subclasses see through torch's own calls only"


def is_compiling() -> bool:
    """Whether this call is traced by torch.compile or torch.export; torch's own flag is up in all threads meanwhile."""
    if torch.compiler.is_dynamo_compiling():
        return True
    traced = torch._C._len_torch_dispatch_stack() > 0
    return traced and (torch.compiler.is_compiling() or torch.compiler.is_exporting())


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
    for tensor in tensors:
        if tensor is not None and type(tensor) is not Tensor and type(tensor) is not Parameter:
            return True
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return transformed or torch._C._is_tracing() or is_compiling()


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether these are nothing but numbers, and nobody at all sees the operations on them.

    False where `is_watched` is true, in torch.compile, and in dispatch and function modes (make_fx, FlopCounterMode)
    but for a default device.
    """
    if torch.compiler.is_dynamo_compiling() or torch._C._len_torch_dispatch_stack() or is_watched(*tensors):
        return False
    if torch._C._len_torch_function_stack() == 0:
        return True
    return all(type(mode) is DeviceContext for mode in _get_current_function_mode_stack())
