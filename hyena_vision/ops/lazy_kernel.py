"""Kernels that are computed while they are used."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LazyKernel:
    """A kernel that is computed while it is used, without gradients, so that all of it need never be in memory.

    Attributes:
        shape: (C, *K).
        dtype: Of the values.
        device: Of the values.
        at: Takes taps (P,), int64, positions in a flattened kernel or -1 for a value of 0, and gives
            `(channels, part) -> (c, p)`, a new tensor with the values of some channels at `taps[part]`.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    at: Callable[[Tensor], Callable[[slice, slice], Tensor]]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def whole(self) -> Tensor:
        """All of it, (C, *K)."""
        taps = torch.arange(math.prod(self.shape[1:]), device=self.device)
        return self.at(taps)(slice(None), slice(None)).view(self.shape)
