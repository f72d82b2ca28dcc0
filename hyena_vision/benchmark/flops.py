"""Arithmetic of a forward pass per image, counted and not measured, and parameters.

A multiply-add is 2 FLOPs. Matrix products and convolutions are counted by torch's `FlopCounterMode`, which takes an FFT
for nothing; here a real transform of N values is 2.5 N log2 N and a complex one 5 N log2 N, zeros of the padding
included. Elementwise operations (gates, norms, products of spectra, sines) count as nothing, as is usual.

Mixers are counted on the composite path, `backend="fft"`: a fused operator hides what it does. Their filters are
evaluated once per batch, so in full in these figures of a batch of one.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hyena_vision.benchmark import report
from hyena_vision.benchmark.arguments import add_output_argument
from hyena_vision.benchmark.machine import describe_machine
from hyena_vision.benchmark.models import IMG_SIZES, MODELS
from hyena_vision.benchmark.step import count_tokens, create_model
from hyena_vision.training.arguments import positive_int


@dataclass(frozen=True)
class FlopsRow:
    """Arithmetic of one model at one resolution.

    Attributes:
        model: Name, of timm or `ceiling:NAME`.
        img_size: Side of the image in pixels.
        tokens: Patches of the image, None for a model without.
        gflops: 10^9 FLOPs of a forward pass of one image.
        fft_gflops: The part of FFTs.
        parameters: Number of parameters.
        machine: Versions that counted.
    """

    model: str
    img_size: int
    tokens: int | None
    gflops: float
    fft_gflops: float
    parameters: int
    machine: str


def real_fft_flops(length: int, count: int = 1) -> int:
    """FLOPs of `count` real transforms of N values each, 2.5 N log2 N, either way."""
    return round(2.5 * length * math.log2(length) * count)


def complex_fft_flops(length: int, count: int = 1) -> int:
    """FLOPs of `count` complex transforms of N values each, 5 N log2 N."""
    return round(5 * length * math.log2(length) * count)


def _shape_formula(flops, full_shape):
    """Formula of an operator: `full_shape` picks the shape whose extents along `dim` are the transform's."""

    def formula(input_shape, dim, *args, out_shape=None, **kwargs) -> int:
        shape = full_shape(input_shape, out_shape)
        length = math.prod(shape[axis] for axis in dim)
        return flops(length, math.prod(shape) // length)

    return formula


_aten = torch.ops.aten
FFT_FORMULAS = {
    _aten._fft_r2c: _shape_formula(real_fft_flops, lambda given, out: given),
    _aten._fft_c2r: _shape_formula(real_fft_flops, lambda given, out: out),
    _aten._fft_c2c: _shape_formula(complex_fft_flops, lambda given, out: given),
}


def count_flops(model: nn.Module, *inputs: torch.Tensor) -> tuple[int, int]:
    """Count the FLOPs of one forward pass.

    Args:
        model: Any module; on the meta device nothing is computed.
        *inputs: Its inputs, on the same device.

    Returns:
        All FLOPs, and those of FFTs among them.
    """
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=FFT_FORMULAS) as counter:
        model(*inputs)
    return counter.get_total_flops(), sum(counter.get_flop_counts()["Global"].get(op, 0) for op in FFT_FORMULAS)


def measure_flops(models: Sequence[str] = MODELS, img_sizes: Sequence[int] = IMG_SIZES) -> list[FlopsRow]:
    """Count FLOPs and parameters of models at several resolutions.

    Args:
        models: Names, of timm or `ceiling:NAME`.
        img_sizes: Sides of the images in pixels.

    Returns:
        One row per model and resolution.
    """
    rows = []
    for img_size in img_sizes:
        for name in models:
            with torch.device("meta"):
                model = create_model(name, img_size, backend="fft").eval()
                images = torch.empty(1, 3, img_size, img_size)
            flops, fft_flops = count_flops(model, images)
            rows.append(
                FlopsRow(
                    model=name,
                    img_size=img_size,
                    tokens=count_tokens(model, img_size),
                    gflops=flops / 1e9,
                    fft_gflops=fft_flops / 1e9,
                    parameters=sum(parameter.numel() for parameter in model.parameters()),
                    machine=describe_machine(),
                )
            )
    return rows


def add_command(commands: Any) -> None:
    """Add the sub-command `flops`."""
    parser = commands.add_parser("flops", help="FLOPs and parameters of models by resolution", description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME", help="of timm, or ceiling:NAME")
    parser.add_argument("--img-sizes", type=positive_int, nargs="+", default=IMG_SIZES, metavar="N", help="pixels")
    add_output_argument(parser, "folder for the rows as CSV")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> list[FlopsRow]:
    """Count, print the table, and write CSV.

    Args:
        args: Parsed arguments of the sub-command.

    Returns:
        The rows.
    """
    rows = measure_flops(args.models, args.img_sizes)
    print(report.table(rows))
    if args.output is not None:
        report.write_csv(rows, args.output, "flops.csv")
    return rows
