"""Which implementation of an operator runs: a short table, and one rule to choose from it.

A backend that was named either runs or says why it cannot; nothing is replaced behind the caller's back.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from hyena_vision.ops import blocked, cpp_library, fft, long_conv_cpp, reference
from hyena_vision.ops.lazy_kernel import LazyKernel
from hyena_vision.ops.library import WATCHED, is_watched


@dataclass(frozen=True)
class Backend:
    """One implementation of the long convolutions.

    Attributes:
        name: What callers pass as `backend=`.
        long_conv: `(x, kernel, skip, gate, out_gate, centre, circular) -> y` on checked arguments; `centre` is the
            index of displacement 0 on each axis.
        missing: None if the machine can run it at all, else a phrase that says what it lacks.
        reason: `(x, kernel) -> None` when it can run these arguments, else a phrase that says why not.
        prepare: `(x, kernel, skip, centre, circular, keep) -> state`: what can be done before x is known, for a kernel
            or a lazy one; without `keep` it is done in each call.
        convolve_prepared: `(x, state, gate, out_gate) -> y`, without gradients.
        automatic: Whether `backend=None` may pick it.
    """

    name: str
    long_conv: Callable[[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Sequence[int], bool], Tensor]
    missing: Callable[[], str | None]
    reason: Callable[[Tensor, Tensor], str | None]
    prepare: Callable[[Tensor, Tensor | LazyKernel, Tensor | None, Sequence[int], bool, bool], Any]
    convolve_prepared: Callable[[Tensor, Any, Tensor | None, Tensor | None], Tensor]
    automatic: bool = True


def _gated(long_conv: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A convolution between two gates, from one that knows of none."""

    def gated(
        x: Tensor,
        kernel: Tensor,
        skip: Tensor | None,
        gate: Tensor | None,
        out_gate: Tensor | None,
        centre: Sequence[int],
        circular: bool,
    ) -> Tensor:
        y = long_conv(x if gate is None else x * gate, kernel, skip, centre, circular)
        return y if out_gate is None else y * out_gate

    return gated


def _backend(name: str, long_conv: Callable[..., Tensor], automatic: bool = True) -> Backend:
    """A backend that runs anywhere, has no gates in its kernels and prepares nothing."""
    gated = _gated(long_conv)

    def prepare(
        x: Tensor,
        kernel: Tensor | LazyKernel,
        skip: Tensor | None,
        centre: Sequence[int],
        circular: bool,
        keep: bool,
    ) -> Any:
        return kernel.whole() if keep and isinstance(kernel, LazyKernel) else kernel, skip, centre, circular

    def convolve(x: Tensor, state: tuple, gate: Tensor | None, out_gate: Tensor | None) -> Tensor:
        kernel, skip, centre, circular = state
        kernel = kernel.whole() if isinstance(kernel, LazyKernel) else kernel
        return gated(x, kernel, skip, gate, out_gate, centre, circular)

    return Backend(name, gated, _nothing, _no_reason, prepare, convolve, automatic)


def _nothing() -> None:
    return None


def _no_reason(x: Tensor, kernel: Tensor) -> None:
    return None


def _reason_not_blocked(x: Tensor, kernel: Tensor) -> str | None:
    if x.device.type != "cpu":
        return f"it is for the CPU, and x is on {x.device}"
    if x.shape[1] == 0:
        return "x has no channels"
    if is_watched(x, kernel):
        return WATCHED
    return None


# Triton and the fused kernels are imported by the first call that asks for them.
_HAS_TRITON = find_spec("triton") is not None


def _missing_for_triton() -> str | None:
    if not _HAS_TRITON:
        return "Triton is not installed"
    interpreted = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
    return None if torch.cuda.is_available() or interpreted else "there is no CUDA device"


def _reason_not_triton(x: Tensor, kernel: Tensor) -> str | None:
    from hyena_vision.ops import long_conv_triton

    return long_conv_triton.reason_not(x, kernel)


def _triton(name: str) -> Callable[..., Any]:
    """A function of the fused kernels."""

    def function(*args) -> Any:
        from hyena_vision.ops import long_conv_triton

        return getattr(long_conv_triton, name)(*args)

    return function


# In order of preference for `backend=None`.
_BACKENDS: dict[str, Backend] = {
    "cpp": Backend(
        "cpp",
        long_conv_cpp.long_conv,
        cpp_library.why_not,
        long_conv_cpp.reason_not,
        long_conv_cpp.prepare,
        long_conv_cpp.convolve_prepared,
    ),
    "blocked": Backend(
        "blocked",
        _gated(blocked.long_conv),
        _nothing,
        _reason_not_blocked,
        blocked.prepare,
        blocked.convolve_prepared,
    ),
    "fft": _backend("fft", fft.long_conv),
    # Not picked by itself: no GPU has measured yet where it is at least as fast as the others
    "triton": Backend(
        "triton",
        _triton("long_conv"),
        _missing_for_triton,
        _reason_not_triton,
        _triton("prepare"),
        _triton("convolve_prepared"),
        automatic=False,
    ),
    "reference": _backend("reference", reference.long_conv, automatic=False),
}


def available_backends() -> list[str]:
    """Names that can be passed as `backend=` on this machine, in order of preference."""
    return [name for name, backend in _BACKENDS.items() if backend.missing() is None]


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
            if backend.automatic and backend.reason(x, kernel) is None and backend.missing() is None:
                return backend
        raise RuntimeError(f"no backend can run {tuple(x.shape)} {x.dtype} on {x.device}")
    if name not in _BACKENDS:
        raise ValueError(f"unknown backend {name!r}, expected one of {list(_BACKENDS)}")
    backend = _BACKENDS[name]
    missing = backend.missing()
    if missing is not None:
        raise RuntimeError(f"backend {name!r} is not available on this machine: {missing}")
    reason = backend.reason(x, kernel)
    if reason is not None:
        raise RuntimeError(f"backend {name!r} cannot run this call: {reason}")
    return backend
