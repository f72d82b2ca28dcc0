"""Fast paths take the weights of layers that are as they were made, and compute what calls of the layers do."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from mixers import MIXERS
from torch import nn

from hyena_vision.layers import Hyena1d, Hyena2d, hyena
from hyena_vision.layers.mlp import PartMlp
from hyena_vision.ops import hyena_operator, long_conv2d

close = torch.testing.assert_close


def tokens(*shape):
    return torch.randn(shape or (2, 4, 5, 6), dtype=torch.float64)


def results(mixer, x, hooked):
    """Output without gradients, output, and all gradients; with hooks that do nothing no fast path runs."""
    mixer = copy.deepcopy(mixer)
    for module in mixer.modules() if hooked else ():
        module.register_forward_hook(lambda *_: None)
    with torch.no_grad():
        inferred = mixer.eval()(x)
    x = x.clone().requires_grad_()
    y = mixer.train()(x)
    y.square().sum().backward()
    return [inferred, y.detach(), x.grad, *(p.grad for p in mixer.parameters())]


OPTIONS = {
    "plain": dict(),
    "order-3": dict(order=3),
    "film": dict(film=True),
    "norms": dict(gate_norm=True, value_norm=True, out_norm=True, gate_act="silu", out_gate_act="sigmoid"),
    "table": dict(learn_features=True),
    "gaussian": dict(window="gaussian"),
    "no-window": dict(window="none"),
    "wide": dict(short_kernel_size=7, qkv_bias=False, short_bias=False),
}


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize(
    ("options", "backend"),
    [
        *((options, None) for options in OPTIONS),
        *itertools.product(("plain", "order-3", "film", "norms"), ("fft", "reference")),
    ],
)
def test_all_results_are_those_of_calls(name, options, backend):
    mixer = MIXERS[name](backend=backend, **OPTIONS[options])
    for shape in ((2, 4, 5, 6), (1, 1, 1, 6), (2, 1, 7, 6)):
        x = tokens(*shape)
        for fast, plain in zip(results(mixer, x, False), results(mixer, x, True), strict=True):
            close(fast, plain, rtol=1e-9, atol=1e-11)


SHORT_FILTERS = {
    "dilated": dict(kernel_size=3, dilation=2, padding=2, groups=18),
    "dilated, of a smaller image": dict(kernel_size=3, dilation=2, padding=1, groups=18),
    "circular": dict(kernel_size=3, padding=1, padding_mode="circular", groups=18),
    "dense": dict(kernel_size=3, padding=1),
    "groups of two": dict(kernel_size=3, padding=1, groups=9),
}


@pytest.mark.parametrize("name", ["1d", "2d"])
@pytest.mark.parametrize("settings", SHORT_FILTERS)
def test_short_filters_of_other_settings(name, settings):
    if name == "1d" and "smaller" in settings:
        return  # no grid has so many tokens
    mixer = MIXERS[name]()
    layer = nn.Conv1d if name == "1d" else nn.Conv2d
    mixer.short_filter = layer(18, 18, **SHORT_FILTERS[settings], dtype=torch.float64)
    x = tokens()
    for fast, plain in zip(results(mixer, x, False), results(mixer, x, True), strict=True):
        close(fast, plain, rtol=1e-9, atol=1e-11)
    triton = MIXERS[name](backend="triton")
    triton.short_filter = mixer.short_filter
    assert not triton._fuses_first_gate(triton.qkv(x), None) and not triton._is_one_operator(triton.qkv(x))


def test_filters_with_other_biases():
    mixer, x = MIXERS["2d"](), tokens()
    mixer.filter.hidden[1] = type(mixer.filter.out)(8, 8, bias=False, dtype=torch.float64)
    for with_bias in (False, True):
        if with_bias:
            mixer.filter.out = type(mixer.filter.out)(8, 6, dtype=torch.float64)
        for fast, plain in zip(results(mixer, x, False), results(mixer, x, True), strict=True):
            close(fast, plain, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", [Hyena1d, Hyena2d])
def test_operators_keep_what_came_in(kind):
    """Between the projections nothing is kept but the projected tokens, kernels and weights."""
    mixer = kind(16, filter_dim=8)
    signals = torch.randn(2, 12, 12, 48, requires_grad=True)
    y = mixer.mix(signals)
    node = y.grad_fn
    while "Hyena" not in type(node).__name__:
        (node,) = [next_node for next_node, _ in node.next_functions]
    kernel = mixer.filter((12, 12) if kind is Hyena2d else (144,))
    kept = {t.shape: t.numel() for t in node.saved_tensors if t is not None}
    weights = mixer.short_filter.weight.numel() + mixer.short_filter.bias.numel() + mixer.skip.numel()
    assert sum(kept.values()) == signals.numel() + kernel.numel() + weights


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("backend", [None, "fft", "reference"])
def test_second_derivatives(name, backend):
    mixer = MIXERS[name](backend=backend, base_grid=2)
    x = tokens(1, 2, 2, 6).requires_grad_()
    assert torch.autograd.gradgradcheck(mixer, x, fast_mode=True)
    # The same of weights, and where one follows from another
    penalties = []
    for hooked in (False, True):
        twin = copy.deepcopy(mixer)
        if hooked:
            twin.filter.register_forward_hook(lambda *_: None)
            twin.short_filter.register_forward_hook(lambda *_: None)
        weights = dict(twin.named_parameters())
        weights["filter.hidden.2.weight"] = 0.5 * weights["filter.hidden.1.weight"]
        weights["skip"] = weights["filter.out.weight"][:, :1].T.reshape(1, 6)
        y = torch.func.functional_call(twin, weights, (x,))
        first = torch.autograd.grad(y.square().sum(), list(twin.parameters()), create_graph=True, allow_unused=True)
        penalty = sum(g.square().sum() for g in first if g is not None)
        penalties.append([penalty, *torch.autograd.grad(penalty, twin.filter.hidden[1].weight)])
    for fast, plain in zip(*penalties, strict=True):
        close(fast, plain, rtol=1e-8, atol=1e-10)


def test_second_derivatives_where_a_kernel_follows_from_the_tokens():
    tokens_, weight = tokens(1, 2, 3, 6).requires_grad_(), torch.randn(6, 1, 3, 3, dtype=torch.float64)
    penalties = []
    for plain in (False, True):
        kernel = tokens_.mean() * torch.ones(2, 3, 5, dtype=torch.float64) + 1
        skip = kernel.sum((1, 2))
        if plain:
            signals = F.conv2d(tokens_.permute(0, 3, 1, 2), weight, padding=1, groups=6)
            last, gate, value = signals.chunk(3, 1)
            y = long_conv2d(value, kernel, skip, gate=gate, out_gate=last, backend="fft")
        else:
            y = hyena_operator(tokens_, weight, None, kernel, skip)
        (first,) = torch.autograd.grad(y.square().sum(), tokens_, create_graph=True)
        penalties.append(torch.autograd.grad(first.square().sum(), tokens_)[0])
    close(*penalties, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["1d", "2d"])
@pytest.mark.parametrize("backend", [None, "fft"])
def test_batched_gradients(name, backend):
    mixer = MIXERS[name](backend=backend)
    x = tokens(1, 2, 3, 6).requires_grad_()
    y = mixer(x)
    cotangents, wanted = torch.randn(3, *y.shape, dtype=torch.float64), [x, *mixer.parameters()]
    batched = torch.autograd.grad(y, wanted, cotangents, is_grads_batched=True, retain_graph=True)
    for index, cotangent in enumerate(cotangents):
        for given, expected in zip(batched, torch.autograd.grad(y, wanted, cotangent, retain_graph=True), strict=True):
            close(given[index], expected)


def test_backward_passes_in_autocast_and_out_of_it():
    mixer = Hyena2d(16, filter_dim=8)
    x = torch.randn(2, 6, 6, 16)
    found = []
    for inside in (True, False):
        mixer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            y = mixer(x).float().square().sum()
            if inside:
                y.backward()
        if not inside:
            y.backward()
        found.append([p.grad.clone() for p in mixer.parameters()])
    for inside, outside in zip(*found, strict=True):
        close(inside, outside, rtol=0.02, atol=0.02 * outside.abs().max().item())


def test_reparameterized_mixers_keep_kernels_through_calls_with_gradients():
    mixer = MIXERS["2d"]().eval()
    mixer.reparameterize()
    with torch.no_grad():
        mixer(tokens())
    entries = mixer.kept.entries
    mixer(tokens()).sum().backward()
    assert mixer.kept.entries is entries and entries


def test_compiled_and_reparameterized_sees_other_tensors_and_settings():
    torch._dynamo.reset()
    mixer, x = Hyena2d(6, filter_dim=8, base_grid=4).eval(), torch.randn(1, 4, 5, 6)
    mixer.reparameterize()
    compiled = torch.compile(mixer, backend="eager", fullgraph=True)

    def other_skip():
        mixer.skip = nn.Parameter(mixer.skip.detach() + 1)

    def other_filter():
        mixer.filter = copy.deepcopy(Hyena2d(6, filter_dim=8, base_grid=4).filter)

    def other_coords():
        mixer.filter.coords = "absolute"

    def other_padding():
        mixer.padding = "circular"

    def parametrized():
        nn.utils.parametrizations.weight_norm(mixer.filter.out)
        mixer.filter.out.parametrizations.weight.original0.data.mul_(3)

    with torch.no_grad():
        before = compiled(x)
        for change in (other_skip, other_filter, other_coords, other_padding, parametrized):
            change()
            after = compiled(x)
            close(after, copy.deepcopy(mixer)(x), rtol=1e-4, atol=1e-5)
            assert not torch.allclose(after, before), change.__name__
            before = after


def test_dropout_of_an_mlp_draws_for_all_tokens_at_once():
    mlp, x = PartMlp(4, 8, drop=0.5), torch.randn(1, 3000, 4)
    hooked = copy.deepcopy(mlp)
    hooked.fc1.register_forward_hook(lambda *_: None)
    given = []
    for module in (mlp, hooked):
        torch.manual_seed(0)
        with torch.no_grad():
            given.append(module(x))
    assert torch.equal(*given)


def test_groups_of_channels_hold_no_more_than_their_share(monkeypatch):
    monkeypatch.setattr(hyena, "_GROUP_BYTES", 1)
    mixer = Hyena2d(40, filter_dim=4, cache_limit=0).eval()
    asked, evaluate = [], type(mixer.filter).channels_in_turn

    def watched(self, size, groups, *args):
        asked.extend(groups)
        return evaluate(self, size, groups, *args)

    monkeypatch.setattr(type(mixer.filter), "channels_in_turn", watched)
    with torch.no_grad():
        mixer(torch.randn(1, 5, 5, 40))
    assert asked == [slice(0, 16), slice(16, 32), slice(32, 40)]
