"""Which implementation of an operator runs: a short table, and one rule to choose from it.

A backend that was named either runs or says why it cannot; nothing is replaced behind the caller's back.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from hyena_vision.ops import blocked, fft, reference
from hyena_vision.ops.lazy_kernel import LazyKernel


@dataclass(frozen=True)
class Backend:
    """One implementation of the long convolutions.

    Attributes:
        name: What callers pass as `backend=`.
        long_conv1d: `(x, kernel, skip, causal) -> y` on checked arguments.
        long_conv2d: `(x, kernel, skip, padding) -> y` on checked arguments.
        available: Whether the machine can run it at all.
        reason: `(x, kernel) -> None` when it can run these arguments, else a phrase that says why not.
        prepare: `(x, kernel, skip, centre, circular, keep) -> state`: what can be done before x is known, for a kernel
            or a lazy one; without `keep` it is done in each call.
        convolve_prepared: `(x, state, gate, out_gate) -> y`, without gradients.
        automatic: Whether `backend=None` may pick it.
    """

    name: str
    long_conv1d: Callable[[Tensor, Tensor, Tensor | None, bool], Tensor]
    long_conv2d: Callable[[Tensor, Tensor, Tensor | None, str], Tensor]
    available: Callable[[], bool]
    reason: Callable[[Tensor, Tensor], str | None]
    prepare: Callable[[Tensor, Tensor | LazyKernel, Tensor | None, Sequence[int], bool, bool], Any]
    convolve_prepared: Callable[[Tensor, Any, Tensor | None, Tensor | None], Tensor]
    automatic: bool = True


def _plain_backend(name: str, module: Any, automatic: bool = True) -> Backend:
    """A backend that prepares nothing."""

    def prepare(
        x: Tensor,
        kernel: Tensor | LazyKernel,
        skip: Tensor | None,
        centre: Sequence[int],
        circular: bool,
        keep: bool,
    ) -> Any:
        if keep and isinstance(kernel, LazyKernel):
            kernel = kernel.whole()
        if len(centre) == 1:
            # A centred kernel has its centre at 0 only if it has one tap, which is causal as well
            return kernel, partial(module.long_conv1d, skip=skip, causal=centre[0] == 0)
        return kernel, partial(module.long_conv2d, skip=skip, padding="circular" if circular else "linear")

    def convolve(x: Tensor, state: tuple, gate: Tensor | None, out_gate: Tensor | None) -> Tensor:
        kernel, long_conv = state
        kernel = kernel.whole() if isinstance(kernel, LazyKernel) else kernel
        y = long_conv(x if gate is None else x * gate, kernel)
        return y if out_gate is None else y * out_gate

    return Backend(name, module.long_conv1d, module.long_conv2d, _always, _no_reason, prepare, convolve, automatic)


def _always() -> bool:
    return True


def _no_reason(x: Tensor, kernel: Tensor) -> None:
    return None


def _reason_not_blocked(x: Tensor, kernel: Tensor) -> str | None:
    if x.device.type != "cpu":
        return f"it is for the CPU, and x is on {x.device}"
    if not torch.compiler.is_dynamo_compiling() and not is_plain(x, kernel):
        return "exporters, torch.func, forward derivatives and tensor subclasses see through torch's own calls only"
    return None


def is_plain(*tensors: Tensor) -> bool:
    """Whether these are nothing but numbers, and nobody wants to see the operations on them.

    False for tensor subclasses, and in torch.compile, torch.export, torch.onnx.export, torch.func and forward-mode
    differentiation.
    """
    watched = torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return not watched and not transformed and all(type(tensor) in (Tensor, Parameter) for tensor in tensors)


# In order of preference for `backend=None`.
_BACKENDS: dict[str, Backend] = {
    "blocked": Backend(
        "blocked",
        blocked.long_conv1d,
        blocked.long_conv2d,
        _always,
        _reason_not_blocked,
        blocked.prepare,
        blocked.convolve_prepared,
    ),
    "fft": _plain_backend("fft", fft),
    "reference": _plain_backend("reference", reference, automatic=False),
}


def available_backends() -> list[str]:
    """Names that can be passed as `backend=` on this machine, in order of preference."""
    return [name for name, backend in _BACKENDS.items() if backend.available()]


def select(name: str | None, x: Tensor, kernel: Tensor) -> Backend:
    """Choose the implementation of one call.

    Args:
        name: A backend's name, or None for the first automatic one that can run these arguments.
        x: Input of the operator.
        kernel: Kernel of the operator.

    Returns:
        The backend to call.

    Raises:
        ValueError: No backend has that name; the message lists the known ones.
        RuntimeError: The named backend cannot run here; the message says why.
    """
    if name is None:
        for backend in _BACKENDS.values():
            if backend.automatic and backend.available() and backend.reason(x, kernel) is None:
                return backend
        raise RuntimeError(f"no backend can run {tuple(x.shape)} {x.dtype} on {x.device}")
    if name not in _BACKENDS:
        raise ValueError(f"unknown backend {name!r}, expected one of {list(_BACKENDS)}")
    backend = _BACKENDS[name]
    if not backend.available():
        raise RuntimeError(f"backend {name!r} is not available on this machine")
    reason = backend.reason(x, kernel)
    if reason is not None:
        raise RuntimeError(f"backend {name!r} cannot run this call: {reason}")
    return backend
