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
from hyena_vision.ops.gated_op import gated_gradients, gated_op
from hyena_vision.ops.library import WATCHED, is_watched, sum_dtype
from hyena_vision.ops.table import can_have_table, picks_triton


@dataclass(frozen=True)
class Backend:
    """One implementation of the long convolutions.

    Attributes:
        name: What callers pass as `backend=`.
        long_conv: `(x, kernel, skip, gate, out_gate, centre, circular) -> y` on checked arguments; `centre` is the
            index of displacement 0 on each axis.
        missing: None if the machine can run it at all, else a phrase that says what it lacks.
        reason: `(x, kernel) -> None` when it can run these arguments, else a phrase that says why not.
        gradients: `(dy, x, kernel, skip, gate, out_gate, centre, circular)` to those of x, kernel, skip, gate and
            out_gate (anything where they are None); None where autograd has to find them.
        prepare: `(x, kernel, skip, centre, circular) -> tensors`: what can be done before x is known.
        convolve_prepared: `(x, tensors, gate, out_gate, extents, centre, circular) -> y`, without gradients; `extents`
            are those of the kernel.
        automatic: Whether `backend=None` may pick it where no table does.
    """

    name: str
    long_conv: Callable[[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Sequence[int], bool], Tensor]
    missing: Callable[[], str | None]
    reason: Callable[[Tensor, Tensor], str | None]
    gradients: Callable[..., Sequence[Tensor | None]] | None
    prepare: Callable[[Tensor, Tensor, Tensor | None, Sequence[int], bool], tuple[Tensor, ...]]
    convolve_prepared: Callable[..., Tensor]
    automatic: bool = True


def _between_gates(convolve: Callable[[Tensor], Tensor], x: Tensor, gate: Tensor | None, out_gate: Tensor | None):
    """out_gate * convolve(gate * x), with products in the dtype of the sums: half precision would overflow."""
    if gate is None and out_gate is None:
        return convolve(x)
    dtype, result = sum_dtype(x, gate, out_gate), x.dtype
    y = convolve(x.to(dtype) if gate is None else x.to(dtype) * gate.to(dtype))
    y = y if out_gate is None else y * out_gate.to(dtype)
    for tensor in (gate, out_gate):
        result = result if tensor is None else torch.promote_types(result, tensor.dtype)
    return y.to(result)


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
        return _between_gates(lambda u: long_conv(u, kernel, skip, centre, circular), x, gate, out_gate)

    return gated


_fft_gradients = gated_gradients(fft.convolve, fft.gradients)
_blocked_gradients = gated_gradients(blocked.forward, blocked.gradients)
_blocked_op = gated_op("blocked_conv", _gated(blocked.forward), _blocked_gradients)
# For torch.compile, which has nothing to fuse in an FFT and up to 2.11 at least mistakes the strides of spectra
_fft_op = gated_op(
    "fft_conv",
    lambda *args: _gated(fft.convolve)(*args).contiguous(),
    lambda *args: [None if t is None else t.contiguous() for t in _fft_gradients(*args)],
    keep_layout=False,
)


def _blocked_conv(x: Tensor, kernel: Tensor, skip: Tensor | None, centre: Sequence[int], circular: bool) -> Tensor:
    return _blocked_op(x, kernel, skip, None, None, centre, circular)


def _fft_conv(x: Tensor, kernel: Tensor, skip: Tensor | None, centre: Sequence[int], circular: bool) -> Tensor:
    if torch.compiler.is_dynamo_compiling():
        return _fft_op(x, kernel, skip, None, None, centre, circular)
    return fft.convolve(x, kernel, skip, centre, circular)


def _fft_prepared(
    x: Tensor,
    tensors: Sequence[Tensor],
    gate: Tensor | None,
    out_gate: Tensor | None,
    extents: Sequence[int],
    centre: Sequence[int],
    circular: bool,
) -> Tensor:
    return _between_gates(lambda u: fft.convolve_prepared(u, tensors, extents, centre, circular), x, gate, out_gate)


def _kernel_and_skip(
    x: Tensor, kernel: Tensor, skip: Tensor | None, centre: Sequence[int], circular: bool
) -> tuple[Tensor, ...]:
    """For a backend that prepares nothing."""
    return (kernel,) if skip is None else (kernel, skip)


def _reference_prepared(
    x: Tensor,
    tensors: Sequence[Tensor],
    gate: Tensor | None,
    out_gate: Tensor | None,
    extents: Sequence[int],
    centre: Sequence[int],
    circular: bool,
) -> Tensor:
    kernel, skip = tensors if len(tensors) == 2 else (*tensors, None)
    return _gated(reference.long_conv)(x, kernel, skip, gate, out_gate, centre, circular)


def _nothing() -> None:
    return None


def _no_reason(x: Tensor, kernel: Tensor) -> None:
    return None


def _reason_not_blocked(x: Tensor, kernel: Tensor) -> str | None:
    if x.device.type != "cpu":
        return f"it is for the CPU, and x is on {x.device}"
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
BACKENDS: dict[str, Backend] = {
    "cpp": Backend(
        "cpp",
        long_conv_cpp.long_conv,
        cpp_library.why_not,
        long_conv_cpp.reason_not,
        long_conv_cpp.gradients,
        long_conv_cpp.prepare,
        long_conv_cpp.convolve_prepared,
    ),
    "blocked": Backend(
        "blocked",
        _gated(_blocked_conv),
        _nothing,
        _reason_not_blocked,
        _blocked_gradients,
        blocked.prepare,
        blocked.convolve_prepared,
    ),
    "fft": Backend(
        "fft",
        _gated(_fft_conv),
        _nothing,
        _no_reason,
        _fft_gradients,
        fft.prepare,
        _fft_prepared,
    ),
    "triton": Backend(
        "triton",
        _triton("long_conv"),
        _missing_for_triton,
        _reason_not_triton,
        _triton("gradients"),
        _triton("prepare"),
        _triton("convolve_prepared"),
        automatic=False,
    ),
    "reference": Backend(
        "reference",
        _gated(reference.long_conv),
        _nothing,
        _no_reason,
        None,
        _kernel_and_skip,
        _reference_prepared,
        automatic=False,
    ),
}


def available_backends(reasons: bool = False) -> list[str] | dict[str, str | None]:
    """Names that can be passed as `backend=` on this machine, in order of preference.

    Args:
        reasons: Whether to return all names, each with None or a phrase that says what the machine lacks for it.
    """
    missing = {name: backend.missing() for name, backend in BACKENDS.items()}
    return missing if reasons else [name for name, phrase in missing.items() if phrase is None]


def select(name: str | None, x: Tensor, kernel: Tensor, *, use: str | None = None, circular: bool = False) -> Backend:
    """Choose the implementation of one call.

    Args:
        name: A backend's name, or None: `triton` if the table of the device takes it, else the first automatic one that
            can run these arguments.
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
        listed = can_have_table(x.device) and use is not None and kernel.ndim < x.ndim and not circular
        if listed and not is_watched(x, kernel) and picks_triton(x.device, x.shape[2:], x.dtype, use):
            backend = BACKENDS["triton"]
            if backend.missing() is None and backend.reason(x, kernel) is None:
                return backend
        for backend in BACKENDS.values():
            if backend.automatic and backend.reason(x, kernel) is None and backend.missing() is None:
                return backend
        raise RuntimeError(f"no backend can run {tuple(x.shape)} {x.dtype} on {x.device}")
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
