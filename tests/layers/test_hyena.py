import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from mixers import MIXERS

from hyena_vision.layers import Hyena1d, Hyena2d
from hyena_vision.ops import long_conv1d, long_conv2d


def tokens(*shape):
    return torch.randn(shape, dtype=torch.float64)


def over_channels(norm, x):
    return F.rms_norm(x.movedim(1, -1), (6,), norm.weight, norm.eps).movedim(-1, 1)


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("order", [2, 3, 4])
def test_recurrence_step_by_step(name, order):
    norms = dict(value_norm=True, gate_norm=True, out_norm=True)
    mixer = MIXERS[name](order=order, gate_act="silu", out_gate_act="sigmoid", **norms)
    norms = [mixer.value_norm, *mixer.gate_norms, mixer.out_norm]
    for norm in norms:
        torch.nn.init.normal_(norm.weight)
    x = tokens(2, 3, 5, 6)
    signals = mixer.qkv(x).permute(0, 3, 1, 2)
    # Weight, bias, stride, padding, dilation, groups.
    short = (mixer.short_filter.weight, mixer.short_filter.bias, 1, 0, 1, signals.shape[1])
    one_d = name.startswith("1d")
    if one_d:
        signals = signals.flatten(2)
        kernels, conv = mixer.filter(15), partial(long_conv1d, causal=mixer.causal)
        pad = (2, 0) if mixer.causal else (1, 1)
        signals = F.conv1d(F.pad(signals, pad), *short)
    else:
        kernels, conv = mixer.filter((3, 5)), partial(long_conv2d, padding=mixer.padding)
        signals = F.conv2d(F.pad(signals, (1, 1, 1, 1)), *short)
    *gates, v = signals.split(6, dim=1)
    v = over_channels(norms[0], v)
    for step, gate in enumerate(reversed(gates[1:])):
        v = over_channels(norms[1 + step], v * F.silu(gate))
        v = conv(v, kernels[step], mixer.skip[step], backend="reference")
    y = over_channels(norms[-1], v * torch.sigmoid(gates[0]))
    y = y.unflatten(2, (3, 5)) if one_d else y
    torch.testing.assert_close(mixer(x), mixer.proj(y.permute(0, 2, 3, 1)))


def test_biases_can_be_left_out():
    mixer = Hyena2d(6, qkv_bias=False, short_bias=False, proj_bias=False)
    assert mixer.qkv.bias is None and mixer.short_filter.bias is None and mixer.proj.bias is None


def test_projections_begin_at_unit_scale():
    mixer = Hyena2d(64)
    torch.testing.assert_close(mixer.qkv.weight.std(), torch.tensor(0.125), rtol=0.05, atol=0)
    torch.testing.assert_close(mixer.proj.weight.std(), torch.tensor(0.02), rtol=0.05, atol=0)
    assert not mixer.qkv.bias.any() and not mixer.proj.bias.any()


def test_dilated_short_filter_sees_the_same_of_an_image_that_is_drawn_larger():
    mixer, dilated = Hyena2d(6, filter_dim=8, base_grid=4), Hyena2d(6, filter_dim=8, base_grid=4, short_dilation=(2, 3))
    dilated.load_state_dict(mixer.state_dict())
    x = torch.randn(2, 18, 4, 5)
    small, large = mixer.short_filter(x), dilated.short_filter(x.repeat_interleave(2, 2).repeat_interleave(3, 3))
    torch.testing.assert_close(large, small.repeat_interleave(2, 2).repeat_interleave(3, 3))


@pytest.mark.parametrize(
    ("kind", "dilation", "error", "text"),
    [
        (Hyena1d, 2, TypeError, "short_dilation is for Hyena2d, got short_dilation=2"),
        (Hyena2d, 0, ValueError, "one or two integers of at least 1, got 0"),
        (Hyena2d, (1, 2, 3), ValueError, "one or two integers of at least 1, got (1, 2, 3)"),
        (Hyena2d, 1.5, ValueError, "one or two integers of at least 1, got 1.5"),
    ],
)
def test_other_dilations_are_refused(kind, dilation, error, text):
    with pytest.raises(error, match=re.escape(text)):
        kind(6, short_dilation=dilation)


@pytest.mark.parametrize("name", ["1d", "2d", "2d-circular"])
def test_every_output_depends_on_every_input(name):
    mixer = MIXERS[name]()
    x = tokens(1, 4, 5, 6).requires_grad_()
    y = mixer(x)
    for row, column in ((0, 0), (1, 3), (3, 4)):
        (gradient,) = torch.autograd.grad(y[0, row, column].sum(), x, retain_graph=True)
        assert (gradient.abs().sum(-1) > 0).all()


def test_causal_mixer_sees_nothing_ahead():
    mixer = MIXERS["1d-causal"](order=3)
    x = tokens(1, 3, 4, 6).requires_grad_()
    (gradient,) = torch.autograd.grad(mixer(x)[0, 1, 2].sum(), x)
    seen = gradient.abs().sum(-1).flatten() > 0
    assert seen[:7].all()
    # The transform leaves rounding errors where the sum has zeros.
    assert gradient.flatten(1, 2)[0, 7:].abs().max() < 1e-12 * gradient.abs().max()


@pytest.mark.parametrize("name", MIXERS)
def test_runs_on_any_grid_with_the_same_parameters(name):
    mixer = MIXERS[name]()
    for height, width in ((1, 1), (1, 7), (4, 4), (9, 2)):
        assert mixer(tokens(2, height, width, 6)).shape == (2, height, width, 6)
    count = sum(p.numel() for p in mixer.parameters())
    assert sum(p.numel() for p in MIXERS[name](base_grid=(31, 17)).parameters()) == count


@pytest.mark.parametrize("name", MIXERS)
def test_gradcheck(name):
    mixer = MIXERS[name](gate_norm=True, out_norm=True, value_norm=True)
    assert torch.autograd.gradcheck(mixer, tokens(1, 2, 3, 6).requires_grad_())


@pytest.mark.parametrize("name", MIXERS)
def test_gradients_of_parameters_match_finite_differences(name):
    mixer = MIXERS[name](film=True)
    x, cotangent, step = tokens(2, 3, 3, 6), tokens(2, 3, 3, 6), 1e-6
    (mixer(x) * cotangent).sum().backward()
    for key, parameter in mixer.named_parameters():
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            parameter.add_(step * direction)
            above = (mixer(x) * cotangent).sum()
            parameter.sub_(2 * step * direction)
            below = (mixer(x) * cotangent).sum()
            parameter.add_(step * direction)
        slope = (above - below) / (2 * step)
        torch.testing.assert_close((parameter.grad * direction).sum(), slope, rtol=1e-5, atol=1e-7, msg=key)


def test_film_filters_depend_on_the_sample():
    mixer = MIXERS["2d"](film=True)
    x = tokens(2, 4, 4, 6)
    torch.testing.assert_close(mixer(x)[1:], mixer(x[1:]))
    with pytest.raises(ValueError, match="cond"):
        mixer.mix(mixer.qkv(x))


def test_circular_mixer_commutes_with_shifts():
    mixer = MIXERS["2d-circular"](short_kernel_size=1)
    x = tokens(1, 4, 5, 6)
    torch.testing.assert_close(mixer(x.roll((1, 2), (1, 2))), mixer(x).roll((1, 2), (1, 2)))


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_module_gives_half_precision(name, dtype):
    mixer = MIXERS[name]().to(dtype)
    y = mixer(tokens(1, 4, 4, 6).to(dtype))
    assert y.dtype == dtype
    exact = mixer.double()(tokens(1, 4, 4, 6)).std()
    assert y.isfinite().all() and y.float().std() < 100 * exact


def test_autocast_stays_near_float32():
    torch.manual_seed(0)
    mixer = Hyena2d(32, filter_dim=8)
    x = torch.randn(2, 8, 8, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = mixer(x)
    exact = mixer(x)
    assert y.dtype == torch.bfloat16
    assert (y.float() - exact).norm() < 0.02 * exact.norm()


def test_projections_have_the_shapes_of_attention():
    from timm.layers import Attention

    expected = {k: v.shape for k, v in Attention(8, num_heads=2, qkv_bias=True).state_dict().items()}
    for mixer in (Hyena1d(8, filter_dim=4), Hyena2d(8, filter_dim=4)):
        assert {k: v.shape for k, v in mixer.state_dict().items() if k in expected} == expected


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Hyena2d(4, order=1), "order must be at least 2, got 1"),
        (lambda: Hyena2d(0), "dim must be at least 1, got 0"),
        (lambda: Hyena2d(4, short_kernel_size=4), "short_kernel_size must be odd and at least 1, got 4"),
        (lambda: Hyena1d(4, short_kernel_size=0, causal=True), "short_kernel_size must be at least 1, got 0"),
        (lambda: Hyena2d(4, filter_dim=0), "filter_dim must be at least 1, got 0"),
        (lambda: Hyena2d(4, padding="same"), "'linear' or 'circular', got 'same'"),
        (lambda: Hyena2d(4, gate_act="nope"), "gate_act must be a class or the name of a layer of timm, got 'nope'"),
        (lambda: Hyena2d(4, norm_layer="nope"), "norm_layer must be .* got 'nope'"),
        (lambda: Hyena2d(4)(torch.zeros(1, 3, 3, 5)), r"x must have shape \(B, H, W, 4\), got \(1, 3, 3, 5\)"),
        (lambda: Hyena1d(4)(torch.zeros(1, 9, 4)), r"x must have shape \(B, H, W, 4\), got \(1, 9, 4\)"),
        (lambda: Hyena2d(4, backend="nope")(torch.zeros(1, 3, 3, 4)), "unknown backend 'nope'"),
    ],
)
def test_bad_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_unknown_arguments_are_type_errors():
    with pytest.raises(TypeError, match="filter_width"):
        Hyena2d(4, filter_width=3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("1d", dict()),
        ("1d-causal", dict(order=3, out_gate_act="silu")),
        ("2d", dict(order=3)),
        ("2d-circular", dict(gate_act="silu", gate_norm=True)),
        ("2d", dict(short_kernel_size=9)),
    ],
)
def test_fused_backend_gives_the_same(name, options):
    pytest.importorskip("triton")
    mixer, x = MIXERS[name](**options).float(), torch.randn(1, 3, 5, 6)
    fused = MIXERS[name](backend="triton", **options).float()
    fused.load_state_dict(mixer.state_dict())
    results = []
    for module in (mixer, fused):
        y = module(x)
        y.square().sum().backward()
        results.append([y, *(p.grad for p in module.parameters())])
    for given, expected in zip(*reversed(results), strict=True):
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)
