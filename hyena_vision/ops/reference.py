"""Direct sums, tap by tap: slow, exact, and the truth that every backend is compared with."""

from collections.abc import Sequence

import torch
from torch import Tensor


def long_conv(x: Tensor, kernel: Tensor, skip: Tensor | None, centre: Sequence[int], circular: bool) -> Tensor:
    """The direct sum; `centre` is the index of displacement 0."""
    if len(centre) == 2:
        return _direct_sum(x, kernel, skip, centre, circular)
    return _direct_sum(x.unsqueeze(-2), kernel.unsqueeze(-2), skip, (0, *centre), circular).squeeze(-2)


def _direct_sum(x: Tensor, kernel: Tensor, skip: Tensor | None, centre: Sequence[int], circular: bool) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    xs, kernel = x.to(dtype), kernel.to(dtype)
    y = torch.zeros_like(xs) if skip is None else skip.to(dtype)[:, None, None] * xs
    size_h, size_w = x.shape[-2:]
    for i in range(kernel.shape[-2]):
        for j in range(kernel.shape[-1]):
            tap = kernel[..., i : i + 1, j : j + 1]
            shift_h, shift_w = i - centre[0], j - centre[1]
            if circular:
                y = y + tap * torch.roll(xs, (shift_h, shift_w), dims=(-2, -1))
            elif abs(shift_h) < size_h and abs(shift_w) < size_w:
                top, left = max(shift_h, 0), max(shift_w, 0)
                bottom, right = min(size_h, size_h + shift_h), min(size_w, size_w + shift_w)
                source = xs[..., top - shift_h : bottom - shift_h, left - shift_w : right - shift_w]
                y[..., top:bottom, left:right] += tap * source
    return y.to(x.dtype)
