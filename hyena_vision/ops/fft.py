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
"""

import torch
from torch import Tensor


def long_conv1d(x: Tensor, kernel: Tensor, skip: Tensor | None, causal: bool) -> Tensor:
    """FFT form of `hyena_vision.ops.long_conv1d`."""
    return _fft_conv(x, kernel, skip, (0 if causal else kernel.shape[-1] // 2,), circular=False)


def long_conv2d(x: Tensor, kernel: Tensor, skip: Tensor | None, padding: str) -> Tensor:
    """FFT form of `hyena_vision.ops.long_conv2d`."""
    centre = (kernel.shape[-2] // 2, kernel.shape[-1] // 2)
    return _fft_conv(x, kernel, skip, centre, circular=padding == "circular")


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


def _fft_conv(x: Tensor, kernel: Tensor, skip: Tensor | None, centre: tuple[int, ...], circular: bool) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    xs, kernel = x.to(dtype), kernel.to(dtype)
    rank = len(centre)
    starts, transforms = [], []
    for axis, middle in zip(range(-rank, 0), centre, strict=True):
        size = x.shape[axis]
        if circular:
            kernel = _fold(kernel, axis, size, middle)
            starts.append(0)
            transforms.append(size)
        else:
            first = max(0, middle - size + 1)
            kernel = kernel.narrow(axis, first, min(kernel.shape[axis], middle + size) - first)
            middle = middle - first
            starts.append(middle)
            if torch.compiler.is_compiling():
                # Always enough, and free of a search that would tie a graph of dynamic shapes to one size.
                transforms.append(2 * size)
            else:
                transforms.append(transform_size(max(size + kernel.shape[axis] - 1 - middle, middle + size)))
    spectrum = _forward(xs, transforms) * _forward(kernel, transforms)
    for axis in range(-rank, -1):
        spectrum = torch.fft.ifft(spectrum, n=transforms[axis], dim=axis).narrow(axis, starts[axis], x.shape[axis])
    y = torch.fft.irfft(spectrum, n=transforms[-1], dim=-1).narrow(-1, starts[-1], x.shape[-1])
    if skip is not None:
        y = y + skip.to(dtype).reshape(-1, *[1] * rank) * xs
    return y.to(x.dtype)


def _forward(signal: Tensor, transforms: list[int]) -> Tensor:
    """Real transform of the last axis, then complex ones of those before it: each pads only when its turn comes."""
    spectrum = torch.fft.rfft(signal, n=transforms[-1], dim=-1)
    for axis in range(-len(transforms), -1):
        spectrum = torch.fft.fft(spectrum, n=transforms[axis], dim=axis)
    return spectrum


def _fold(kernel: Tensor, axis: int, size: int, centre: int) -> Tensor:
    """Kernel of period `size` whose tap 0 is the centre: taps a whole period apart act on the same value."""
    # Two are enough for the global kernel, and a constant keeps graphs of dynamic shapes simple.
    periods = 2 if kernel.shape[axis] <= 2 * size else (kernel.shape[axis] + size - 1) // size
    padding = periods * size - kernel.shape[axis]
    kernel = torch.nn.functional.pad(kernel, (0, 0) * (-axis - 1) + (0, padding))
    return kernel.unflatten(axis, (periods, size)).sum(axis - 1).roll(-centre, axis)
