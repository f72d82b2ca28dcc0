r"""The `fft` backend: long convolutions by `torch.fft`, anywhere torch runs.

Only L of the L + K - 1 values of a linear convolution are kept, those from index s on, where s is the kernel's centre.
Values outside may therefore wrap round in a cyclic convolution, as long as none of them lands on a kept one. With taps
that reach no signal value removed first, this needs a transform of

$$F \ge \max(L + K - 1 - s,\; s + L)$$

so 2 L - 1 both for the causal kernel (K = L, s = 0) and for the centred one (K = 2 L - 1, s = L - 1), where a careless
length would be 3 L - 2. In 2D the last axis of the image is transformed before the other one is padded, and cropped
after it was: half of the transforms of `rfft2` would be of zeros, or thrown away.

On the CPU a few channels are convolved at a time, from the first gate to the last, so that what one step writes the
next finds in the cache.

`torch.fft` takes no bfloat16, and float16 only at powers of two on CUDA, so transforms run in float32 (float64 for
float64 input).

There are two forms. `convolve` and `gradients` are the inside of an operator, which keeps nothing of the transform's
size for the backward pass; compilers have nothing to fuse in an FFT, and up to torch 2.11 at least they mistake the
strides of spectra. `convolve_openly` and `gradients_openly` are torch's own calls, which exporters, transforms and
second derivatives see through; exported programs need nothing of this package where they run. torch.onnx.export gets
whole spectra instead of halves.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hyena_vision.ops.tensors import Gradients, Taps, empty_gated_result, empty_result, result_dtype, sum_dtype, tap_at
from hyena_vision.ops.watchers import is_compiling

# Numbers that are transformed at a time on the CPU, as long as that is not less than so many channels: less would read
# a part of each cache line of tokens that lie channels last.
BLOCK_NUMBERS = 2**19
BLOCK_CHANNELS = 16


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

    size: int  # of the signal
    first: int  # taps first .. first + taps - 1 reach a signal value
    taps: int
    start: int  # of the kept values among those of the transform
    transform: int


def convolve_openly(
    x: Tensor, kernel: Tensor, skip: Tensor | None, gate: Tensor | None, out_gate: Tensor | None, taps: Taps
) -> Tensor:
    """The gated convolution in torch's calls, which autograd and torch.export know."""
    # Products in the dtype of the sums: half precision would overflow
    axes, dtype = _plan(x, taps), sum_dtype(x, gate, out_gate)
    u = x.to(dtype) if gate is None else x.to(dtype) * gate.to(dtype)
    product = _forward(u, axes) * _forward(_reaching_taps(kernel.to(dtype), axes, taps), axes)
    y = _inverse(product, axes, [axis.start for axis in axes], [axis.size for axis in axes])
    y = _with_skip(y, skip, u)
    return (y if out_gate is None else y * out_gate.to(dtype)).to(result_dtype(x, gate, out_gate))


def gradients_openly(
    dy: Tensor,
    x: Tensor,
    kernel: Tensor,
    skip: Tensor | None,
    gate: Tensor | None,
    out_gate: Tensor | None,
    taps: Taps,
) -> Gradients:
    """Gradients of x, kernel, skip, gate and out_gate, None for none, in torch's calls, which autograd knows."""
    dtype, axes = sum_dtype(x, gate, out_gate), _plan(x, taps)
    u, du = (t.to(dtype) if g is None else t.to(dtype) * g.to(dtype) for t, g in ((x, gate), (dy, out_gate)))
    of_kernel, of_u = _forward(_reaching_taps(kernel.to(dtype), axes, taps), axes), _forward(u, axes)
    padding: list[int] = []  # of the last axis first, as F.pad has it
    for axis in reversed(axes):
        padding += [axis.start, axis.transform - axis.start - axis.size]
    of_du = _forward(F.pad(du, padding), axes)
    sizes, starts = [axis.size for axis in axes], [0] * len(axes)
    dout_gate = dgate = dskip = None
    if out_gate is not None:
        y = _inverse(of_u * of_kernel, axes, [axis.start for axis in axes], sizes)
        dout_gate = (dy.to(dtype) * _with_skip(y, skip, u)).to(out_gate.dtype)
    # Not conj(), which only marks a tensor: a compiled graph that calls this as an operator does not see the mark
    products = of_du * of_u.conj_physical()
    products = products.sum(0) if kernel.ndim < x.ndim else products
    dkernel = _kernel_gradient(_inverse(products, axes, starts, [axis.taps for axis in axes]), axes, taps)
    if skip is not None:
        dskip = (du * u).sum([0, *range(2, x.ndim)]).to(skip.dtype)
    dx = _with_skip(_inverse(of_du * of_kernel.conj_physical(), axes, starts, sizes), skip, du)
    if gate is not None:
        dgate, dx = (dx * x).to(gate.dtype), dx * gate
    return dx.to(x.dtype), dkernel.to(kernel.dtype), dskip, dgate, dout_gate


def prepare(x: Tensor, kernel: Tensor, skip: Tensor | None, taps: Taps) -> tuple[Tensor, ...]:
    """Spectrum of a kernel for signals like x, its skip included."""
    dtype, axes, axis = sum_dtype(x), _plan(x, taps), -len(taps.centre) - 1
    blocks = []
    for block in _channel_blocks(x, axes):
        reaching = _reaching_taps(_narrow(kernel, block, axis).to(dtype), axes, taps)
        if skip is not None:
            reaching = reaching.clone()
            middle = [0 if taps.circular else a.start for a in axes]  # displacement 0
            tap_at(reaching, middle).add_(skip[block].to(dtype))
        blocks.append(_forward(reaching, axes))
    return (torch.cat(blocks, axis) if len(blocks) > 1 else blocks[0],)


def convolve(x: Tensor, prepared: Sequence[Tensor], gate: Tensor | None, out_gate: Tensor | None, taps: Taps) -> Tensor:
    """The gated convolution with what `prepare` made, without gradients."""
    (spectrum,), y, axes = prepared, empty_gated_result(x, gate, out_gate), _plan(x, taps)
    dtype, starts, sizes = sum_dtype(x, gate, out_gate), [axis.start for axis in axes], [axis.size for axis in axes]
    blocks = _channel_blocks(x, axes)
    # Padding stays zero from block to block
    padded = x.new_zeros(x.shape[0], blocks[0].stop, *sizes[:-1], axes[-1].transform, dtype=dtype)
    for block in blocks:
        u = padded[:, : block.stop - block.start]
        if gate is None:
            u[..., : sizes[-1]] = x[:, block]
        else:
            torch.mul(x[:, block].to(dtype), gate[:, block].to(dtype), out=u[..., : sizes[-1]])
        product = _forward(u, axes).mul_(_narrow(spectrum, block, -len(axes) - 1))
        result = _inverse(product, axes, starts, sizes)
        if out_gate is None:
            y[:, block] = result
        else:
            torch.mul(result, out_gate[:, block].to(dtype), out=y[:, block])
    return y


def gradients(
    dy: Tensor,
    x: Tensor,
    kernel: Tensor,
    skip: Tensor | None,
    gate: Tensor | None,
    out_gate: Tensor | None,
    taps: Taps,
) -> Gradients:
    """Gradients of x, kernel, skip, gate and out_gate, None for none."""
    dx, dkernel, channel = empty_result(x), torch.empty_like(kernel), -len(taps.centre) - 1
    dskip = None if skip is None else torch.empty_like(skip)
    dgate, dout_gate = (None if t is None else empty_result(t) for t in (gate, out_gate))
    for block in _channel_blocks(x, _plan(x, taps)):
        found = gradients_openly(
            dy[:, block],
            x[:, block],
            _narrow(kernel, block, channel),
            None if skip is None else skip[block],
            None if gate is None else gate[:, block],
            None if out_gate is None else out_gate[:, block],
            taps,
        )
        results = (dx, 1), (dkernel, channel), (dskip, 0), (dgate, 1), (dout_gate, 1)
        for (result, axis), value in zip(results, found, strict=True):
            if result is not None and value is not None:
                _narrow(result, block, axis).copy_(value)
    return dx, dkernel, dskip, dgate, dout_gate


def _channel_blocks(x: Tensor, axes: list[_Axis]) -> list[slice]:
    """Channels that are convolved at a time: all of them but on the CPU. Results do not depend on threads."""
    batch, channels = x.shape[:2]
    step = channels
    if x.device.type == "cpu":
        numbers = batch * math.prod(axis.transform for axis in axes)
        step = max(BLOCK_CHANNELS, BLOCK_NUMBERS // max(numbers, 1))
    return [slice(first, min(first + step, channels)) for first in range(0, channels, step)]


def _narrow(tensor: Tensor, block: slice, axis: int) -> Tensor:
    return tensor.narrow(axis, block.start, block.stop - block.start)


def _with_skip(y: Tensor, skip: Tensor | None, u: Tensor) -> Tensor:
    return y if skip is None else torch.addcmul(y, skip.to(y.dtype).reshape(-1, *[1] * (u.ndim - 2)), u)


def _kernel_gradient(dtaps: Tensor, axes: list[_Axis], taps: Taps) -> Tensor:
    """Of all taps, from that of those that reach a signal value."""
    for axis, a, extent, middle in zip(range(-len(axes), 0), axes, taps.extents, taps.centre, strict=True):
        if taps.circular:
            index = torch.arange(extent, dtype=torch.int64, device=dtaps.device)
            dtaps = dtaps.index_select(axis, index.sub(middle).remainder(a.size))
        else:
            dtaps = F.pad(dtaps, (0, 0) * (-axis - 1) + (a.first, extent - a.first - a.taps))
    return dtaps


def _plan(x: Tensor, taps: Taps) -> list[_Axis]:
    axes = []
    for size, extent, middle in zip(x.shape[2:], taps.extents, taps.centre, strict=True):
        if taps.circular:
            axes.append(_Axis(size, 0, size, 0, size))
            continue
        first = max(0, middle - size + 1)
        reaching = min(extent, middle + size) - first
        start = middle - first
        if is_compiling():
            # Always enough, and free of a search that would tie an exported program to one size.
            transform = 2 * size
        else:
            # A multiple of 4: a transform of 63 numbers takes longer than one of 64
            transform = 4 * transform_size(-(-max(size + reaching - 1 - start, start + size) // 4))
        axes.append(_Axis(size, first, reaching, start, transform))
    return axes


def _reaching_taps(kernel: Tensor, axes: list[_Axis], taps: Taps) -> Tensor:
    """The taps that matter: a window of the kernel, or the kernel folded into the period of the signal."""
    for axis, a, middle in zip(range(-len(axes), 0), axes, taps.centre, strict=True):
        kernel = fold(kernel, axis, a.size, middle) if taps.circular else kernel.narrow(axis, a.first, a.taps)
    return kernel


def _forward(signal: Tensor, axes: list[_Axis]) -> Tensor:
    """Spectrum (..., F) of sequences, (..., Fw // 2 + 1, Fh) of images: numbers of a transform are neighbours."""
    if torch.onnx.is_in_onnx_export():
        # The exporter pads no complex numbers, onnxruntime 1.24 inverts no half spectra, and 1.31 plans their memory
        # wrongly where sizes are free: pad real numbers and transform all of them.
        sizes = zip(axes, signal.shape[-len(axes) :], strict=True)
        padding = [(0, axis.transform - size) for axis, size in sizes]
        signal = F.pad(signal, sum(reversed(padding), ()))
        for axis in range(-len(axes), 0):
            signal = torch.fft.fft(signal, dim=axis)
        return signal
    spectrum = torch.fft.rfft(signal, n=axes[-1].transform)
    return spectrum if len(axes) == 1 else torch.fft.fft(spectrum.transpose(-2, -1), n=axes[0].transform)


def _inverse(spectrum: Tensor, axes: list[_Axis], starts: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """Values from `starts` on, `sizes` of them, of the inverse transform: each axis is cropped before the next."""
    if torch.onnx.is_in_onnx_export():
        for axis in range(-len(axes), 0):
            spectrum = torch.fft.ifft(spectrum, dim=axis).narrow(axis, starts[axis], sizes[axis])
        return spectrum.real
    if len(axes) == 2:
        spectrum = torch.fft.ifft(spectrum).narrow(-1, starts[0], sizes[0]).transpose(-2, -1)
    return torch.fft.irfft(spectrum, n=axes[-1].transform).narrow(-1, starts[-1], sizes[-1])


def fold(kernel: Tensor, axis: int, size: int, centre: int) -> Tensor:
    """Kernel of period `size` whose tap 0 is the centre: taps a whole period apart act on the same value."""
    # Two are enough for the global kernel, and a constant keeps graphs of dynamic shapes simple.
    periods = 2 if kernel.shape[axis] <= 2 * size else (kernel.shape[axis] + size - 1) // size
    padding = periods * size - kernel.shape[axis]
    kernel = F.pad(kernel, (0, 0) * (-axis - 1) + (0, padding))
    return kernel.unflatten(axis, (periods, size)).sum(axis - 1).roll(-centre, axis)
