r"""The `cpp` backend: long convolutions with their gates on the CPU, in C++ that is compiled on first use.

A vector of the CPU holds 4 to 16 neighbouring channels, so tokens are read and written as they lie, channels last, and
no transform moves numbers within a vector. A block of channels of one image stays in the cache from the first gate to
the last. A sequence is read as an image: its index is split into remainder and quotient by H.

1. Along W, real numbers are transformed at odd half-frequencies of a period $2 m \ge W + r$, r the reach of the kernel:

    $$R_f = \sum_{j=0}^{m-1} (u_j + i\, u_{j+m})\, \rho^j\, e^{-2 \pi i f j / m}, \quad \rho = e^{i \pi / (2 m)},
    \quad f = 0..m-1$$

    One complex FFT of length m, which is W for a kernel as large as the image, has neither padding nor a half spectrum
    to be put together: modulo $t^{2m} + 1$, $t^m$ is i. What crosses the end of the period changes its sign.
2. Along H, complex numbers now, the period is $2 m_a$: even frequencies are an FFT of $u_a + u_{a + m_a}$, odd ones of
   $(u_a - u_{a + m_a})\, e^{-i \pi a / m_a}$. In a sequence, Cooley and Tukey's second half takes their place.

FFTs are Stockham's, with radices 2, 3, 4, 5, 7 and 8. The backward pass has the same transforms, with the conjugate
spectrum, for dx, and makes those of all gradients in one sweep; it keeps what came in and nothing else. Circular
convolutions are linear ones with a kernel that is repeated. docs/cpu.md has figures.
"""

import ctypes
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from hyena_vision.ops.cpp.library import Array, Kernel, address, library
from hyena_vision.ops.fft import fold, transform_size
from hyena_vision.ops.tensors import Gradients, Taps, empty_gated_result, empty_result, tap_at
from hyena_vision.ops.watchers import WATCHED, is_watched

# Pieces that a backward pass should have for threads to share, as long as its spectra are not larger than this.
_TASKS = 16
_PARTS_BYTES = 2**26


class _Reach(NamedTuple):
    """Taps of an axis that reach a signal: displacements -before to after - 1."""

    before: int
    after: int


class _Plan:
    """Transforms of signals of one size, with their tables, which live as long as this."""

    def __init__(self, size: tuple[int, ...], reaches: tuple[_Reach, ...]) -> None:
        self.library = library()
        self.reaches = reaches
        least = [-(-(n + max(before, after - 1)) // 2) for n, (before, after) in zip(size, reaches, strict=True)]
        if len(size) == 2:
            self.size_h, self.size_w = (transform_size(m) for m in least)
        else:
            total = transform_size(least[0])
            self.size_h = max(n for n in range(1, math.isqrt(total) + 1) if total % n == 0)
            self.size_w = total // self.size_h
        self.lanes = self.library.hyena_lanes()
        self.handle = self.library.hyena_new_plan(len(size) == 2, size[0], size[-1], self.size_h, self.size_w)

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            self.library.hyena_free_plan(self.handle)

    def spectrum_shape(self, samples: int, channels: int) -> tuple[int, int, int]:
        """Of the spectra of so many samples: real and imaginary parts of vectors of channels."""
        return samples, -(-channels // self.lanes), 2 * self.lanes * len(self.reaches) * self.size_h * self.size_w


@lru_cache(maxsize=64)
def _plan(size: tuple[int, ...], reaches: tuple[_Reach, ...]) -> _Plan:
    return _Plan(size, reaches)


@lru_cache(maxsize=256)
def _plan_for(size: tuple[int, ...], taps: Taps) -> _Plan:
    """The plan of signals of a size and kernels with these taps."""
    taps = _linear_taps(size, taps)
    return _plan(size, _reaches(size, taps))


def forget_plans() -> None:
    """After the library was made anew."""
    _plan.cache_clear()
    _plan_for.cache_clear()


def _reaches(size: Sequence[int], taps: Taps) -> tuple[_Reach, ...]:
    return tuple(
        _Reach(min(middle, n - 1), min(extent - middle, n))
        for n, extent, middle in zip(size, taps.extents, taps.centre, strict=True)
    )


def _linear_taps(size: Sequence[int], taps: Taps) -> Taps:
    """Taps of the linear convolution that equals this one: if circular, displacements 1 - n to n - 1 of each axis."""
    if not taps.circular:
        return taps
    return Taps(tuple(2 * n - 1 for n in size), tuple(n - 1 for n in size), False)


def _resolved(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """As it is in memory: a view may have its sign beside it."""
    return tensor.detach().resolve_neg().to(dtype)


def _kernel(kernel: Tensor, batch_channels: tuple[int, int], taps: Taps, reaches: Sequence[_Reach]) -> Kernel:
    """As C++ takes a kernel ([B,] C, *K) for signals of B samples and C channels, float32."""
    rank, centre = len(taps.centre), taps.centre
    shape = batch_channels[2 + rank - kernel.ndim :] if kernel.ndim in (rank + 1, rank + 2) else batch_channels
    first = address(kernel, torch.float32, (*shape, *kernel.shape[-rank:]), "strided")
    if not all(0 <= middle < extent for middle, extent in zip(centre, kernel.shape[-rank:], strict=True)):
        raise RuntimeError(
            f"displacement 0 must be in the kernel of extents {tuple(kernel.shape[-rank:])}, got {centre}"
        )
    strides = kernel.stride()[-rank:]
    offset = sum(stride * middle for stride, middle in zip(strides, centre, strict=True))
    sample = kernel.stride(0) if kernel.ndim > rank + 1 else 0
    stride_h = strides[0] if rank == 2 else 0
    before_after = reaches if rank == 2 else (_Reach(0, 1), *reaches)
    return Kernel(
        first + 4 * offset,
        (sample, kernel.stride(-rank - 1), stride_h, strides[-1]),
        *(n for reach in before_after for n in reach),
    )


def _linear_kernel(kernel: Tensor, size: Sequence[int], taps: Taps) -> Tensor:
    """The kernel with `_linear_taps`, float32."""
    kernel = _resolved(kernel, torch.float32)
    if taps.circular:
        for axis, n, middle in zip(range(-len(size), 0), size, taps.centre, strict=True):
            kernel = fold(kernel, axis, n, middle)
            kernel = torch.cat([kernel.narrow(axis, 1, n - 1), kernel], axis)
    return kernel


def _circular_gradient(grad: Tensor, size: Sequence[int], taps: Taps) -> Tensor:
    """That of a circular kernel from that of its linear one."""
    for axis, extent, n, middle in zip(range(-len(size), 0), taps.extents, size, taps.centre, strict=True):
        folded = grad.narrow(axis, n - 1, n).clone()
        folded.narrow(axis, 1, n - 1).add_(grad.narrow(axis, 0, n - 1))
        index = torch.arange(extent, dtype=torch.int64, device="cpu")
        grad = folded.index_select(axis, index.sub(middle).remainder(n))
    return grad


def prepare(x: Tensor, kernel: Tensor, skip: Tensor | None, taps: Taps) -> tuple[Tensor, ...]:
    """Spectrum of a kernel for signals like x: (B or 1, blocks of channels, 2 * lanes * numbers), float32."""
    (batch, channels), size = x.shape[:2], tuple(x.shape[2:])
    samples = batch if kernel.ndim == x.ndim else 1
    plan, linear_taps, kernel = _plan_for(size, taps), _linear_taps(size, taps), _linear_kernel(kernel, size, taps)
    spectrum = torch.empty(plan.spectrum_shape(samples, channels), dtype=torch.float32, device="cpu")
    skip = None if skip is None else _resolved(skip, torch.float32).contiguous()
    plan.library.hyena_spectrum(
        plan.handle,
        samples,
        channels,
        ctypes.byref(_kernel(kernel, (batch, channels), linear_taps, plan.reaches)),
        None if skip is None else address(skip, torch.float32, (channels,)),
        address(spectrum, torch.float32, spectrum.shape),
        torch.get_num_threads(),
    )
    return (spectrum,)


def _arrays(plan: _Plan, dtype: torch.dtype, shape: tuple[int, ...], *signals: Tensor | None) -> ctypes.Array:
    """As C++ takes signals of this dtype and shape, channels last."""
    result = (Array * len(signals))()
    for array, signal in zip(result, signals, strict=True):
        if signal is not None:
            strides = signal.stride()
            stride_h, stride_w = strides[2:] if len(strides) == 4 else (strides[2], plan.size_h * strides[2])
            array.data, array.strides = address(signal, dtype, shape, "channels_last"), (strides[0], stride_h, stride_w)
    return result


def _channels_last(dtype: torch.dtype, *signals: Tensor | None) -> list[Tensor | None]:
    """Signals of a dtype, with neighbouring channels."""
    result: list[Tensor | None] = []
    for signal in signals:
        if signal is not None:
            signal = _resolved(signal, dtype)
            if signal.stride(1) != 1 and signal.shape[1] > 1:
                signal = signal.movedim(1, -1).contiguous().movedim(-1, 1)
        result.append(signal)
    return result


def _read_dtype(*signals: Tensor | None) -> torch.dtype:
    """What C++ reads: bfloat16 if all are, else float32."""
    for signal in signals:
        if signal is not None and signal.dtype != torch.bfloat16:
            return torch.float32
    return torch.bfloat16


def _empty_channels_last(signal: Tensor, dtype: torch.dtype) -> Tensor:
    """Memory for a result that C++ writes."""
    shape = signal.shape[0], *signal.shape[2:], signal.shape[1]
    return torch.empty(shape, dtype=dtype, device="cpu").movedim(-1, 1)


def _in_layout_of(out: Tensor, result: Tensor) -> Tensor:
    """What C++ wrote, in the layout and dtype of `out`."""
    return result if result.dtype == out.dtype and result.stride() == out.stride() else out.copy_(result)


def convolve(x: Tensor, prepared: Sequence[Tensor], gate: Tensor | None, out_gate: Tensor | None, taps: Taps) -> Tensor:
    """The convolution with what `prepare` made."""
    plan, (spectrum,) = _plan_for(x.shape[2:], taps), prepared
    expected = plan.spectrum_shape(spectrum.shape[0], x.shape[1])
    if spectrum.shape != expected:
        raise RuntimeError(
            f"the kernel was prepared for vectors of another length: spectrum {tuple(spectrum.shape)}, here {expected}"
        )
    out, dtype = empty_gated_result(x, gate, out_gate), _read_dtype(x, gate, out_gate)
    y, (samples, channels) = _empty_channels_last(x, dtype), x.shape[:2]
    per_sample = spectrum.shape[0] > 1
    signals = _channels_last(dtype, x, gate, out_gate)
    plan.library.hyena_convolve(
        plan.handle,
        dtype == torch.bfloat16,
        samples,
        channels,
        _arrays(plan, dtype, x.shape, *signals, y),
        address(spectrum, torch.float32, (samples if per_sample else 1, *expected[1:])),
        per_sample,
        torch.get_num_threads(),
    )
    return _in_layout_of(out, y)


def gradients(
    dy: Tensor,
    x: Tensor,
    kernel: Tensor,
    skip: Tensor | None,
    gate: Tensor | None,
    out_gate: Tensor | None,
    taps: Taps,
) -> Gradients:
    """Gradients of x, kernel, skip, gate and out_gate, None for None."""
    size, (samples, channels) = tuple(x.shape[2:]), x.shape[:2]
    plan, linear_taps, (spectrum,) = _plan_for(size, taps), _linear_taps(size, taps), prepare(x, kernel, skip, taps)
    per_sample = kernel.ndim == x.ndim
    inputs = x, gate, out_gate
    dtype = _read_dtype(dy, *inputs)
    signals = _channels_last(dtype, dy, *inputs)
    results = [None if signal is None else _empty_channels_last(signal, dtype) for signal in signals[1:]]
    threads, blocks = torch.get_num_threads(), spectrum.shape[1]
    # A shared kernel's gradient is summed in parts where there are few blocks of channels, whatever the threads
    most = min(samples, -(-_TASKS // blocks), _PARTS_BYTES // spectrum.nbytes)
    parts = samples if per_sample else max(1, most)
    dspectrum = torch.empty(plan.spectrum_shape(parts, channels), dtype=torch.float32, device="cpu")
    plan.library.hyena_gradients(
        plan.handle,
        dtype == torch.bfloat16,
        samples,
        channels,
        _arrays(plan, dtype, x.shape, *signals, *results),
        address(spectrum, torch.float32, plan.spectrum_shape(samples if per_sample else 1, channels)),
        per_sample,
        address(dspectrum, torch.float32, plan.spectrum_shape(parts, channels)),
        parts,
        threads,
    )
    dspectrum = dspectrum if per_sample or parts == 1 else dspectrum.sum(0, keepdim=True)
    dkernel = torch.zeros_like(_linear_kernel(kernel, size, taps))
    plan.library.hyena_kernel_gradient(
        plan.handle,
        len(dspectrum),
        channels,
        ctypes.byref(_kernel(dkernel, (samples, channels), linear_taps, plan.reaches)),
        address(dspectrum, torch.float32, plan.spectrum_shape(len(dspectrum), channels)),
        threads,
    )
    dskip = None
    if skip is not None:
        dskip = tap_at(dkernel, linear_taps.centre)
        dskip = (dskip.sum(0) if per_sample else dskip).to(skip.dtype, copy=True)
    if taps.circular:
        dkernel = _circular_gradient(dkernel, size, taps)
    dx, dgate, dout_gate = (
        None if signal is None or result is None else _in_layout_of(empty_result(signal), result)
        for signal, result in zip(inputs, results, strict=True)
    )
    assert dx is not None
    return dx, dkernel.to(kernel.dtype), dskip, dgate, dout_gate


def reason_not(x: Tensor, kernel: Tensor) -> str | None:
    """Why the library cannot run these arguments, or None."""
    if x.device.type != "cpu":
        return f"it is for the CPU, and x is on {x.device}"
    if x.dtype == torch.float64:
        return "its sums are float32, and x is float64"
    if is_watched(x, kernel):
        return WATCHED
    return None
