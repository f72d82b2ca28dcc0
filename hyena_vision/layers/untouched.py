"""The one test that all fast paths ask: whether nobody could tell that modules are not called."""

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from hyena_vision.ops.watchers import is_plain


def fast_weights(module: nn.Module, types: Collection[type], *signals: Tensor | None) -> list[Tensor] | None:
    """All parameters and buffers of a module that nobody would miss a call of, or None if somebody might.

    A fast path that reads weights past their modules may run only where this gives them: the module is untouched
    (`untouched_weights`), weights and signals are plain tensors, and no tracer, transform or mode sees the operations.

    Args:
        module: That is not going to be called.
        types: Of modules whose `forward` the fast path knows.
        *signals: That go into the fast path, or None.

    Returns:
        The weights, or None.

    Cost:
        About a microsecond per module and tensor.
    """
    weights = untouched_weights(module, types)
    return weights if weights is not None and is_plain(*signals, *weights) else None


def untouched_weights(module: nn.Module, types: Collection[type]) -> list[Tensor] | None:
    """All parameters and buffers of a module, or None if somebody has put something on it; torch.compile can trace it.

    Untouched are exact types, without hooks (of the module or global), without a `forward` put on an instance and
    without parametrizations (which change the type), in the module and in all below it.

    Args:
        module: That is not going to be called.
        types: As for `fast_weights`; `nn.ModuleList` is always among them.
    """
    if _has_any_global_hook():
        return None
    weights, parts = [], [module]
    while parts:
        part = parts.pop()
        if type(part) not in types and type(part) is not nn.ModuleList:
            return None
        if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks:
            return None
        if "forward" in part.__dict__ or part._compiled_call_impl is not None:
            return None
        for tensors in (part._parameters, part._buffers):
            for tensor in tensors.values():
                if tensor is not None:
                    weights.append(tensor)
        for child in part._modules.values():
            if child is not None:
                parts.append(child)
    return weights


def saves_plainly() -> bool:
    """Whether what is kept for the backward pass is nobody's business: no checkpointing, no offloading of it."""
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        return False
    return torch._C._current_graph_task_id() == -1  # else a backward pass runs this again, for reentrant checkpointing
