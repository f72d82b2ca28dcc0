import math

import pytest
import torch
from torch import nn

from hyena_vision.benchmark.__main__ import main
from hyena_vision.benchmark.flops import FlopsRow, count_flops, measure_flops
from hyena_vision.benchmark.report import read_csv
from hyena_vision.benchmark.step import create_model


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "shape", "dtype", "flops"),
    [
        (torch.fft.rfft, (3, 16), torch.float32, 3 * 2.5 * 16 * 4),
        (lambda x: torch.fft.rfft(x, n=32), (3, 16), torch.float32, 3 * 2.5 * 32 * 5),
        (lambda x: torch.fft.irfft(x, n=15), (3, 8), torch.complex64, 3 * 2.5 * 15 * math.log2(15)),
        (torch.fft.fft, (3, 16), torch.complex64, 3 * 5 * 16 * 4),
        (lambda x: torch.fft.ifft(x, dim=0), (8, 5), torch.complex64, 5 * 5 * 8 * 3),
        (torch.fft.rfft2, (2, 8, 16), torch.float32, 2 * 2.5 * 128 * 7),
        (lambda x: torch.fft.irfft2(x, s=(8, 16)), (2, 8, 9), torch.complex64, 2 * 2.5 * 128 * 7),
    ],
)
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_flops_of_an_fft_follow_the_formula(function, shape, dtype, flops, device):
    counted, of_fft = count_flops(Function(function), torch.zeros(shape, dtype=dtype, device=device))
    assert counted == of_fft == pytest.approx(flops, abs=1)


def test_ceiling_lacks_exactly_the_products_of_attention():
    vit, ceiling = measure_flops(["vit_tiny_patch16_224", "ceiling:vit_tiny_patch16_224"], [64])
    tokens, dim, depth = 4 * 4 + 1, 192, 12
    assert round(1e9 * (vit.gflops - ceiling.gflops)) == depth * 2 * (2 * tokens**2 * dim)
    assert vit.parameters == ceiling.parameters and vit.tokens == 16


def test_ffts_of_a_hyena_model_are_counted_on_the_composite_path():
    (row,) = measure_flops(["hyena2d_vit_tiny"], [64])
    real, complex = (factor * 8 * math.log2(8) for factor in (2.5, 5))
    # Rows of 4 x 4 tokens, then 5 half spectra; the kernel has 7 rows; then back
    signal, kernel = 4 * real + 5 * complex, 7 * real + 5 * complex
    assert 1e9 * row.fft_gflops == pytest.approx(12 * 192 * (2 * signal + kernel), rel=1e-4)
    assert row.gflops > row.fft_gflops
    assert row.parameters == sum(p.numel() for p in create_model("hyena2d_vit_tiny", 64).parameters())


def test_command_prints_a_table_and_writes_csv(tmp_path, capsys):
    main(["flops", "--models", "vit_tiny_patch16_224", "--img-sizes", "32", "64", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    rows = read_csv(tmp_path / "flops.csv", FlopsRow)
    assert [(row.img_size, row.tokens) for row in rows] == [(32, 4), (64, 16)]
    assert rows == measure_flops(["vit_tiny_patch16_224"], [32, 64])
    assert all(f"{row.gflops:.4g}" in printed for row in rows)
