import pytest
import torch
from torch import nn

from hyena_vision.layers import Hyena1d, Hyena2d, HyenaAttention2d
from hyena_vision.layers.softcap import Softcap


def test_is_rms_norm_with_a_large_eps():
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64) * torch.logspace(-3, 3, 4, dtype=torch.float64)[:, None]
    torch.testing.assert_close(Softcap(5.0)(x), 5 * torch.nn.functional.rms_norm(x, (6,), eps=25.0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_small_tokens_keep_their_size_and_large_ones_are_bounded(dtype):
    size = torch.tensor([[1e-3], [0.0], [6e4]], dtype=dtype)
    x = size * torch.tensor([1.0, -1.0, 1.0, 1.0], dtype=dtype)
    y = Softcap(10.0)(x)
    assert y.dtype == dtype
    rms = y.double().square().mean(-1).sqrt()
    torch.testing.assert_close(rms, torch.tensor([1e-3, 0.0, 10.0], dtype=torch.float64), rtol=5e-3, atol=0)
    assert (y.sign() == x.sign()).all()


def test_gradients():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Softcap(0.7), x) and torch.autograd.gradgradcheck(Softcap(0.7), x)
    nothing = torch.zeros(1, 4, requires_grad=True)
    Softcap(0.7)(nothing).sum().backward()
    assert (nothing.grad == 1).all()


@pytest.mark.parametrize("cap", [-1.0, float("nan")])
def test_refuses_other_caps(cap):
    with pytest.raises(ValueError, match=f"cap must be above 0, got {cap}"):
        Hyena2d(4, softcap=cap)
    with pytest.raises(ValueError, match="cap must be above 0, got 0"):
        Softcap(0.0)


@pytest.mark.parametrize("kind", [Hyena1d, Hyena2d])
def test_mixers_have_it_unless_told(kind):
    mixers = kind(4), kind(4, softcap=0.0), kind(4, out_norm=True)
    assert [type(mixer.out_norm).__name__ for mixer in mixers] == ["Softcap", "Identity", "RmsNorm"]
    assert isinstance(HyenaAttention2d(4, 1, grid_size=2).out_norm, nn.Identity)  # attention has none


@pytest.mark.parametrize("kind", [Hyena1d, Hyena2d])
def test_gates_cannot_make_what_is_projected_grow(kind):
    """Their products grow with the third power of the projections, and beyond float16 after some hundred updates."""
    mixer, seen = kind(8, filter_dim=8, base_grid=4), []
    mixer.proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        mixer.qkv.weight *= 30
    mixer(torch.randn(2, 4, 4, 8))
    assert 9 < seen[0].square().mean(-1).sqrt().max() <= 10
