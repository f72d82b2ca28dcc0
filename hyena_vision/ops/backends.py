"""Which implementation of the long convolutions runs: a short table, and one rule to choose from it.

A backend that was named either runs or says why it cannot; nothing is replaced behind the caller's back.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, overload

import torch
from torch import Tensor

from hyena_vision.ops import fft, reference
from hyena_vision.ops.cpp import library as cpp_library
from hyena_vision.ops.cpp import long_conv as cpp
from hyena_vision.ops.table import can_have_table, picks_triton
from hyena_vision.ops.tensors import Gradients, Taps, result_dtype, sum_dtype
from hyena_vision.ops.watchers import is_watched


@dataclass(frozen=True)
class Backend:
    """One implementation of the long convolutions, for checked arguments.

    Attributes:
        name: What callers pass as `backend=`.
        missing: None if the machine can run it at all, else a phrase that says what it lacks.
        reason: `(x, kernel) -> None` when it can run these arguments, else a phrase that says why not.
        prepare: `(x, kernel, skip, taps) -> tensors`: what can be done before the numbers of x are known.
        convolve: `(x, tensors, gate, out_gate, taps) -> y`, with what `prepare` made.
        gradients: `(dy, x, kernel, skip, gate, out_gate, taps)` to those of x, kernel, skip, gate and out_gate, None
            for None. The function itself is None where `prepare` and `convolve` are made of what autograd knows.
    """

    name: str
    missing: Callable[[], str | None]
    reason: Callable[[Tensor, Tensor], str | None]
    prepare: Callable[[Tensor, Tensor, Tensor | None, Taps], tuple[Tensor, ...]]
    convolve: Callable[[Tensor, Sequence[Tensor], Tensor | None, Tensor | None, Taps], Tensor]
    gradients: Callable[..., Gradients] | None


def _kernel_and_skip(x: Tensor, kernel: Tensor, skip: Tensor | None, taps: Taps) -> tuple[Tensor, ...]:
    return (kernel,) if skip is None else (kernel, skip)


def _direct_sum(
    x: Tensor, prepared: Sequence[Tensor], gate: Tensor | None, out_gate: Tensor | None, taps: Taps
) -> Tensor:
    """The reference between two gates, with products in the dtype of the sums: half precision would overflow."""
    kernel, skip = prepared[0], prepared[1] if len(prepared) == 2 else None
    if gate is None and out_gate is None:
        return reference.long_conv(x, kernel, skip, taps.centre, taps.circular)
    dtype = sum_dtype(x, gate, out_gate)
    u = x.to(dtype) if gate is None else x.to(dtype) * gate.to(dtype)
    y = reference.long_conv(u, kernel, skip, taps.centre, taps.circular)
    return (y if out_gate is None else y * out_gate.to(dtype)).to(result_dtype(x, gate, out_gate))


# Triton and the fused kernels are imported by the first call that asks for them.
_HAS_TRITON = find_spec("triton") is not None


def _missing_for_triton() -> str | None:
    if not _HAS_TRITON:
        return "Triton is not installed"
    interpreted = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
    return None if torch.cuda.is_available() or interpreted else "there is no CUDA device"


def _triton(name: str) -> Callable[..., Any]:
    """A function of the fused kernels."""

    def function(*args) -> Any:
        from hyena_vision.ops.triton import long_conv

        return getattr(long_conv, name)(*args)

    return function


# In the order in which `backend=None` tries them; the last two are taken by name, `triton` also by a table.
BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("cpp", cpp_library.why_not, cpp.reason_not, cpp.prepare, cpp.convolve, cpp.gradients),
        Backend("fft", lambda: None, lambda x, kernel: None, fft.prepare, fft.convolve, fft.gradients),
        Backend("triton", _missing_for_triton, *map(_triton, ("reason_not", "prepare", "convolve", "gradients"))),
        Backend("reference", lambda: None, lambda x, kernel: None, _kernel_and_skip, _direct_sum, None),
    )
}


@overload
def available_backends(reasons: Literal[False] = False) -> list[str]: ...


@overload
def available_backends(reasons: Literal[True]) -> dict[str, str | None]: ...


def available_backends(reasons: bool = False) -> list[str] | dict[str, str | None]:
    """Names that can be passed as `backend=` on this machine, in order of preference.

    Args:
        reasons: Whether to return all names, each with None or a phrase that says what the machine lacks for it.

    Example:
        >>> "fft" in available_backends()
        True
    """
    missing = {name: backend.missing() for name, backend in BACKENDS.items()}
    return missing if reasons else [name for name, phrase in missing.items() if phrase is None]


def select(name: str | None, x: Tensor, kernel: Tensor, *, use: str | None = None, circular: bool = False) -> Backend:
    """Choose the implementation of one call.

    Args:
        name: A backend's name, or None: `triton` if the table of the device takes it, else `cpp` if it can run these
            arguments, else `fft`.
        x: Input of the operator.
        kernel: Kernel of the operator.
        use: One of `table.USES`, None for a call that no table is for.
        circular: Whether displacements are taken modulo the size.

    Returns:
        The backend to call.

    Raises:
        ValueError: No backend has that name; the message lists the known ones.
        RuntimeError: The named backend cannot run here; the message says why.
    """
    if name is None:
        # What a table has was proven for shared kernels and zeros outside the signal
        listed = can_have_table(x.device) and kernel.ndim < x.ndim and not circular and not is_watched(x, kernel)
        if listed and use is not None and picks_triton(x.device, x.shape[2:], x.dtype, use):
            backend = BACKENDS["triton"]
            if backend.missing() is None and backend.reason(x, kernel) is None:
                return backend
        backend = BACKENDS["cpp"]
        return backend if backend.reason(x, kernel) is None and backend.missing() is None else BACKENDS["fft"]
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}, expected one of {list(BACKENDS)}")
    backend = BACKENDS[name]
    missing = backend.missing()
    if missing is not None:
        raise RuntimeError(f"backend {name!r} is not available on this machine: {missing}")
    reason = backend.reason(x, kernel)
    if reason is not None:
        raise RuntimeError(f"backend {name!r} cannot run this call: {reason}")
    return backend
