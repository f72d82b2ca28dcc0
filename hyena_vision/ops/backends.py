"""Which implementation of an operator runs: a short table, and one rule to choose from it.

A backend that was named either runs or says why it cannot; nothing is replaced behind the caller's back.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from hyena_vision.ops import fft, reference


@dataclass(frozen=True)
class Backend:
    """One implementation of the long convolutions.

    Attributes:
        name: What callers pass as `backend=`.
        long_conv1d: `(x, kernel, skip, causal) -> y` on checked arguments.
        long_conv2d: `(x, kernel, skip, padding) -> y` on checked arguments.
        available: Whether the machine can run it at all.
        reason: `(x, kernel) -> None` when it can run these arguments, else a phrase that says why not.
        automatic: Whether `backend=None` may pick it.
    """

    name: str
    long_conv1d: Callable[[Tensor, Tensor, Tensor | None, bool], Tensor]
    long_conv2d: Callable[[Tensor, Tensor, Tensor | None, str], Tensor]
    available: Callable[[], bool]
    reason: Callable[[Tensor, Tensor], str | None]
    automatic: bool = True


def _always() -> bool:
    return True


def _no_reason(x: Tensor, kernel: Tensor) -> None:
    return None


# In order of preference for `backend=None`.
_BACKENDS: dict[str, Backend] = {
    "fft": Backend("fft", fft.long_conv1d, fft.long_conv2d, _always, _no_reason),
    "reference": Backend(
        "reference", reference.long_conv1d, reference.long_conv2d, _always, _no_reason, automatic=False
    ),
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
