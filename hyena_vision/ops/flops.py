"""FLOPs of FFTs, which torch's `FlopCounterMode` takes for nothing; for its argument `custom_mapping`.

A real transform of N values is 2.5 N log2 N and a complex one 5 N log2 N, zeros of the padding included. A fused
operator hides what it does: count with `backend="fft"`, of which torch sees all.
"""

import math
from collections.abc import Callable, Sequence

import torch


def _formula(factor: float, of_result: bool = False) -> Callable[..., int]:
    """A factor times N log2 N for each transform of N values, as many as the input has, or the result."""

    def formula(shape: Sequence[int], dim: Sequence[int], *args, out_shape: Sequence[int], **kwargs) -> int:
        shape = out_shape if of_result else shape
        return round(factor * math.prod(shape) * math.log2(math.prod(shape[axis] for axis in dim)))

    return formula


_aten = torch.ops.aten
FFT_FORMULAS = {
    _aten._fft_r2c: _formula(2.5),
    _aten._fft_c2r: _formula(2.5, of_result=True),
    _aten._fft_c2c: _formula(5),
}
