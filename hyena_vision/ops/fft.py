r"""The `fft` backend: long convolutions by `torch.fft`, anywhere torch runs.

Only L of the L + K - 1 values of a linear convolution are kept, those from index s on, where s is the kernel's centre.
Values outside may therefore wrap round in a cyclic convolution, as long as none of them lands on a kept one. With taps
that reach no signal value removed first, this needs a transform of

$$F \ge \max(L + K - 1 - s,\; s + L)$$

so 2 L - 1 both for the causal kernel (K = L, s = 0) and for the centred one (K = 2 L - 1, s = L - 1), where a careless
length would be 3 L - 2. In 2D the rows of the image are transformed before its columns are padded, and columns are
cropped before the rows are transformed back: half of the row transforms of `rfft2` would be of zeros, or thrown away.

`torch.fft` takes no bfloat16, and float16 only at powers of two on CUDA, so transforms run in float32 (float64 for
float64 input).

Eager mode and torch.export see the plain torch calls, which can be differentiated any number of times and need nothing
of this package where the exported program runs. torch.compile sees one custom operator with its own backward pass: the
compiler has nothing to fuse in an FFT, and up to torch 2.11 at least it mistakes the strides of spectra. It keeps
nothing of the transform's size for the backward pass. torch.onnx.export gets whole spectra instead of halves.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hyena_vision.ops.library import is_compiling, sum_dtype


def transform_size(length: int) -> int:
    """Smallest 2, 3, 5, 7-smooth number that is at least `length`."""
    while True:
        rest = length
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 1


class _Axis(NamedTuple):
    """How one axis is transformed."""

    first: int  # taps first .. first + taps - 1 reach a signal value
    taps: int
    start: int  # of the kept values among those of the transform
    transform: int


def convolve(x: Tensor, kernel: Tensor, skip: Tensor | None, centre: Sequence[int], circular: bool) -> Tensor:
    """The convolution in torch calls that autograd and torch.export know; `centre` is the index of displacement 0."""
    prepared = prepare(x, kernel, skip, centre, circular)
    return convolve_prepared(x, prepared, kernel.shape[-len(centre) :], centre, circular)


def prepare(
    x: Tensor, kernel: Tensor, skip: Tensor | None, centre: Sequence[int], circular: bool
) -> tuple[Tensor, ...]:
    """Spectrum of a kernel for signals like x, and the skip if there is one."""
    dtype, axes = sum_dtype(x), _plan(x, kernel.shape[-len(centre) :], centre, circular)
    spectrum = _forward(_taps(kernel.to(dtype), x, axes, centre, circular), axes)
    return (spectrum,) if skip is None else (spectrum, skip.to(dtype))


def convolve_prepared(
    x: Tensor, prepared: Sequence[Tensor], extents: Sequence[int], centre: Sequence[int], circular: bool
) -> Tensor:
    """The convolution with what `prepare` made of a kernel of these extents."""
    spectrum, skip = prepared if len(prepared) == 2 else (*prepared, None)
    xs, axes = x.to(sum_dtype(x)), _plan(x, extents, centre, circular)
    y = _inverse(_forward(xs, axes) * spectrum, axes, [axis.start for axis in axes], x.shape)
    if skip is not None:
        y = y + skip.reshape(-1, *[1] * len(axes)) * xs
    return y.to(x.dtype)


def gradients(
    grad: Tensor, x: Tensor, kernel: Tensor, skip: Tensor | None, centre: Sequence[int], circular: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `convolve`: two correlations, by the same transforms; that of no skip is empty."""
    dtype, rank = sum_dtype(x), len(centre)
    xs, axes = x.to(dtype), _plan(x, kernel.shape[-rank:], centre, circular)
    dy = grad.to(dtype)
    padding = []  # of the last axis first, as F.pad has it
    for axis in reversed(range(-rank, 0)):
        padding += [axes[axis].start, axes[axis].transform - axes[axis].start - x.shape[axis]]
    spectrum = _forward(F.pad(dy, padding), axes)
    taps = _forward(_taps(kernel.to(dtype), x, axes, centre, circular), axes)
    # Not conj(), which only marks a tensor: a compiled graph that calls this as an operator does not see the mark
    dx = _inverse(spectrum * taps.conj_physical(), axes, [0] * rank, x.shape)
    products = spectrum * _forward(xs, axes).conj_physical()
    products = products.sum(0) if kernel.ndim < x.ndim else products
    dtaps = _inverse(products, axes, [0] * rank, [a.taps for a in axes])
    for axis, a, middle in zip(range(-rank, 0), axes, centre, strict=True):
        if circular:
            index = torch.arange(kernel.shape[axis], dtype=torch.int64, device=x.device)
            dtaps = dtaps.index_select(axis, index.sub(middle).remainder(x.shape[axis]))
        else:
            rest = kernel.shape[axis] - a.first - a.taps
            dtaps = F.pad(dtaps, (0, 0) * (-axis - 1) + (a.first, rest))
    if skip is None:
        dskip = x.new_empty(0)
    else:
        dx = dx + skip.to(dtype).reshape(-1, *[1] * rank) * dy
        dskip = (dy * xs).sum([0, *range(-rank, 0)]).to(skip.dtype)
    return dx.to(x.dtype), dtaps.to(kernel.dtype), dskip


def _plan(x: Tensor, extents: Sequence[int], centre: Sequence[int], circular: bool) -> list[_Axis]:
    axes = []
    for size, extent, middle in zip(x.shape[-len(centre) :], extents, centre, strict=True):
        if circular:
            axes.append(_Axis(0, size, 0, size))
            continue
        first = max(0, middle - size + 1)
        taps = min(extent, middle + size) - first
        start = middle - first
        if is_compiling():
            # Always enough, and free of a search that would tie an exported program to one size.
            transform = 2 * size
        else:
            transform = transform_size(max(size + taps - 1 - start, start + size))
        axes.append(_Axis(first, taps, start, transform))
    return axes


def _taps(kernel: Tensor, x: Tensor, axes: list[_Axis], centre: Sequence[int], circular: bool) -> Tensor:
    """The taps that matter: a window of the kernel, or the kernel folded into the period of the signal."""
    rank = len(axes)
    for axis in range(-rank, 0):
        if circular:
            kernel = fold(kernel, axis, x.shape[axis], centre[axis])
        else:
            kernel = kernel.narrow(axis, axes[axis].first, axes[axis].taps)
    return kernel


def _forward(signal: Tensor, axes: list[_Axis]) -> Tensor:
    """Real transform of the last axis, then complex ones of those before it: each pads only when its turn comes."""
    if torch.onnx.is_in_onnx_export():
        # The exporter pads no complex numbers, onnxruntime 1.24 inverts no half spectra, and 1.31 plans their memory
        # wrongly where sizes are free: pad real numbers and transform all of them.
        sizes = zip(axes, signal.shape[-len(axes) :], strict=True)
        padding = [(0, axis.transform - size) for axis, size in sizes]
        signal = F.pad(signal, sum(reversed(padding), ()))
        for axis in range(-len(axes), 0):
            signal = torch.fft.fft(signal, dim=axis)
        return signal
    spectrum = torch.fft.rfft(signal, n=axes[-1].transform, dim=-1)
    for axis in range(-len(axes), -1):
        spectrum = torch.fft.fft(spectrum, n=axes[axis].transform, dim=axis)
    return spectrum


def _inverse(spectrum: Tensor, axes: list[_Axis], starts: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """Values from `starts` on, `sizes` of them, of the inverse transform: each axis is cropped before the next."""
    for axis in range(-len(axes), -1):
        spectrum = torch.fft.ifft(spectrum, n=axes[axis].transform, dim=axis).narrow(axis, starts[axis], sizes[axis])
    if torch.onnx.is_in_onnx_export():
        return torch.fft.ifft(spectrum, dim=-1).real.narrow(-1, starts[-1], sizes[-1])
    return torch.fft.irfft(spectrum, n=axes[-1].transform, dim=-1).narrow(-1, starts[-1], sizes[-1])


def fold(kernel: Tensor, axis: int, size: int, centre: int) -> Tensor:
    """Kernel of period `size` whose tap 0 is the centre: taps a whole period apart act on the same value."""
    # Two are enough for the global kernel, and a constant keeps graphs of dynamic shapes simple.
    periods = 2 if kernel.shape[axis] <= 2 * size else (kernel.shape[axis] + size - 1) // size
    padding = periods * size - kernel.shape[axis]
    kernel = F.pad(kernel, (0, 0) * (-axis - 1) + (0, padding))
    return kernel.unflatten(axis, (periods, size)).sum(axis - 1).roll(-centre, axis)
