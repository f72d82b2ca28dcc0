"""Short filters in torch's calls: anywhere torch runs, and wherever somebody has to see them."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from hyena_vision.ops.tensors import sum_dtype, without_autocast


def filter_by_torch(x: Tensor, weight: Tensor, bias: Tensor | None, signals: int, causal: bool) -> Tensor:
    """Form of `gated_short_filter` in torch calls, on checked arguments."""
    dtype, taps = sum_dtype(x), weight.shape[2:]
    with without_autocast(x.device.type):  # it would run the convolution, sums included, in its own dtype
        filtered = (F.conv1d if weight.ndim == 3 else F.conv2d)(
            x.movedim(-1, 1).to(dtype),
            weight.to(dtype),
            None if bias is None else bias.to(dtype),
            padding=taps[0] - 1 if causal else [t // 2 for t in taps],
            groups=weight.shape[0],
        )
    if causal:
        filtered = filtered[..., : x.shape[1]]
    *gates, gate, value = filtered.chunk(signals, dim=1)
    return torch.stack([*gates, gate * value], dim=1).to(x.dtype).contiguous()


def filter_sequence(x: Tensor, weight: Tensor, bias: Tensor | None, causal: bool) -> Tensor:
    """Filter images in raster order, each token with its neighbours in the sequence; no product of signals.

    On the CPU a sequence is an image of one row, which no thread can share: there the rows of the image are filtered.

    Args:
        x: (B, C, H, W), any strides.
        weight: (C, 1, T), cross-correlated.
        bias: (C,) or None.
        causal: As for `gated_short_filter`.

    Returns:
        (B, C, H * W).
    """
    taps = weight.shape[-1]
    before = taps - 1 if causal else taps // 2
    if x.device.type != "cpu" or x.shape[-1] < taps:
        return F.conv1d(x.flatten(2), weight, bias, padding=before, groups=len(weight))[..., : x.shape[2:].numel()]
    filter_rows = partial(F.conv2d, weight=weight.unsqueeze(2), bias=bias, groups=len(weight))
    if torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type):
        return filter_rows(_with_neighbours(x, before, taps - 1 - before)).flatten(2)
    # Without gradients, instead of the copy, add what crosses from one row to the next
    y = filter_rows(x, padding=(0, before))[..., : x.shape[-1]]
    for tap in range(taps):
        shift = tap - before
        # As in _with_neighbours, no slice of H - 1 rows
        if shift < 0:
            y[..., :-shift] += weight[:, 0, tap, None, None] * F.pad(x[..., shift:], (0, 0, 1, 0))[:, :, :-1]
        elif shift > 0:
            y[..., -shift:] += weight[:, 0, tap, None, None] * F.pad(x[..., :shift], (0, 0, 0, 1))[:, :, 1:]
    return y.flatten(2)


def _with_neighbours(x: Tensor, before: int, after: int) -> Tensor:
    """Rows of an image (B, C, H, W), each between the ends of those before and after it in raster order.

    Its backward pass is one concatenation, too, where slices of x would each give a whole image of zeros.
    """
    rows = x.permute(0, 2, 3, 1)
    first, middle, last = rows.split([after, rows.shape[2] - before - after, before], dim=2)
    # A row of zeros goes in and one goes out: a slice of H - 1 rows would bind a compiled graph to H > 2
    above = torch.cat([torch.zeros_like(last[:, :1]), last], dim=1)[:, :-1]
    below = torch.cat([first, torch.zeros_like(first[:, :1])], dim=1)[:, 1:]
    return torch.cat([above, first, middle, last, below], dim=2).permute(0, 3, 1, 2)
