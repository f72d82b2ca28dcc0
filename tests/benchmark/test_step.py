"""Models that are measured: which they are, what a step does, and the FLOPs of a pass."""

import math

import pytest
import torch
from torch import nn

from hyena_vision.benchmark.step import count_flops, create_model, make_step, on_meta

VIT, HYENA = "vit_tiny_patch16_224", "hyena2d_vit_tiny"


def test_vit_has_position_embeddings_of_the_size_and_fused_attention():
    vit = on_meta(VIT, 64)
    assert vit.pos_embed.shape == (1, 17, 192)
    assert all(block.attn.fused_attn for block in vit.blocks)


def test_arguments_of_the_mixer_are_for_hyena_models_alone():
    with torch.device("meta"):
        assert create_model(HYENA, 32, backend="fft").blocks[0].mixer.backend == "fft"
        assert create_model(VIT, 32, backend="fft").blocks[0].attn.fused_attn
        assert create_model(f"triton:{HYENA}", 32).blocks[0].mixer.backend == "triton"
        former = create_model("triton:c_hpx_former_s18", 64)
    assert former.stages[2].blocks[0].token_mixer.backend == "triton" and former.img_size == (64, 64)
    assert on_meta(f"triton:{HYENA}", 32).blocks[0].mixer.backend == "fft"  # of which torch sees all


def test_windows_know_the_size():
    assert on_meta("swin_tiny_patch4_window7_224", 448).patch_embed.img_size == (448, 448)


def test_training_step_learns_and_inference_does_not():
    step = make_step(VIT, 32, 2, "train", "float32", "no", "cpu")
    losses = [step().item() for _ in range(4)]
    assert losses[-1] < losses[0]
    infer = make_step(VIT, 32, 2, "infer", "float32", "no", "cpu")
    assert infer().shape == (2, 1000) and not infer().requires_grad
    assert torch.equal(infer(), infer())


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_a_compiled_step_has_compiled_once_it_is_made(mode, monkeypatch):
    events = []

    def compile(model, mode, dynamic):
        model.register_forward_pre_hook(lambda *args: events.append("called"))
        return model

    monkeypatch.setattr(torch, "compile", compile)
    step = make_step(HYENA, 32, 1, mode, "float32", "default", "cpu")
    assert events == ["called"]
    step()
    assert events == ["called"] * 2


def test_what_is_kept_is_made_before_a_graph_is_captured(monkeypatch):
    before = []

    def compile(model, mode, dynamic):
        before.append([len(block.mixer.kept.entries) for block in model.blocks])
        return model

    monkeypatch.setattr(torch, "compile", compile)
    make_step(HYENA, 32, 1, "infer", "float32", "default", "cpu", reparam=True)
    assert before == [[1] * 12]


def test_dtype_is_that_of_autocast():
    assert make_step(HYENA, 32, 1, "infer", "bfloat16", "no", "cpu")().dtype == torch.bfloat16
    loss = make_step(HYENA, 32, 1, "train", "bfloat16", "no", "cpu")()
    assert loss.dtype == torch.float32 and loss.isfinite()


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
    assert count_flops(Function(function), torch.zeros(shape, dtype=dtype, device=device)) == pytest.approx(
        flops, abs=1
    )


def test_products_of_attention_are_counted():
    images = torch.empty(1, 3, 64, 64, device="meta")
    tokens, dim, hidden, classes = 4 * 4 + 1, 192, 768, 1000
    block = 2 * tokens**2 * dim + tokens * (4 * dim**2 + 2 * dim * hidden)
    assert count_flops(on_meta(VIT, 64), images) == 2 * (16 * 768 * dim + 12 * block + dim * classes)


@pytest.mark.parametrize("name", [HYENA, f"triton:{HYENA}"])
def test_ffts_of_a_hyena_model_are_counted(name, monkeypatch):
    model, images = on_meta(name, 64), torch.empty(1, 3, 64, 64, device="meta")
    whole = count_flops(model, images)
    real, complex = (factor * 8 * math.log2(8) for factor in (2.5, 5))
    # Rows of 4 x 4 tokens, then 5 half spectra; the kernel has 7 rows; then back
    signal, kernel = 4 * real + 5 * complex, 7 * real + 5 * complex
    monkeypatch.setattr("hyena_vision.benchmark.step.FFT_FORMULAS", {})
    assert whole - count_flops(model, images) == pytest.approx(12 * 192 * (2 * signal + kernel), rel=1e-4)
