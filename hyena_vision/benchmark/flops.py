"""Arithmetic of a forward pass, counted and not measured: torch's `FlopCounterMode`, and a formula for its FFTs.

A multiply-add is 2 FLOPs. torch takes an FFT for nothing; here a real transform of N values is 2.5 N log2 N and a
complex one 5 N log2 N, zeros of the padding included. Elementwise operations count as nothing, as is usual.
"""

import math

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def fft_flops(length: int, count: int = 1, real: bool = True) -> int:
    """FLOPs of `count` transforms of N values each, 2.5 N log2 N if the values are real, else 5 N log2 N."""
    return round((2.5 if real else 5) * length * math.log2(length) * count)


def _formula(real: bool, back: bool = False):
    def formula(input_shape, dim, *args, out_shape=None, **kwargs) -> int:
        shape = out_shape if back else input_shape  # that which has the extents of the transform
        length = math.prod(shape[axis] for axis in dim)
        return fft_flops(length, math.prod(shape) // length, real)

    return formula


_aten = torch.ops.aten
FFT_FORMULAS = {
    _aten._fft_r2c: _formula(real=True),
    _aten._fft_c2r: _formula(real=True, back=True),
    _aten._fft_c2c: _formula(real=False),
}


def count_flops(model: nn.Module, *inputs: torch.Tensor) -> tuple[int, int]:
    """Count the FLOPs of one forward pass, all of them and those of FFTs; on the meta device nothing is computed.

    Mixers count with `backend="fft"`: other operators do not show what is in them.
    """
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=FFT_FORMULAS) as counter:
        model(*inputs)
    return counter.get_total_flops(), sum(counter.get_flop_counts()["Global"].get(op, 0) for op in FFT_FORMULAS)
