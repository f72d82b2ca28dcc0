"""Kept kernels give what fresh ones would, whatever happens to the mixer between two calls."""

import copy
import gc
import pickle
import weakref
from functools import partial

import pytest
import timm
import torch
from mixers import MIXERS, small
from timm.utils import reparameterize_model

from hyena_vision.layers import Hyena2d, hyena, kept_kernels

OPTIONS = {
    "plain": dict(),
    "order-3": dict(order=3, gate_act="silu"),
    "norms": dict(gate_norm=True, value_norm=True, out_norm=True),
    "learnt-features": dict(learn_features=True),
}
close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)


def tokens(*shape, dtype=torch.float64):
    return torch.randn(shape or (2, 4, 5, 6), dtype=dtype)


def is_kept(mixer):
    return bool(mixer.kept.entries)


def kernels_of(mixer):
    (entry,) = mixer.kept.entries.values()
    return entry.kernels


def check(mixer, x):
    """Against a copy, whose calls with gradients keep nothing."""
    with torch.no_grad():
        y = mixer(x)
    close(y, copy.deepcopy(mixer)(x).detach())
    return y


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("without_gradients", [torch.no_grad, torch.inference_mode])
def test_kept_kernels_equal_fresh_ones(name, options, without_gradients):
    mixer = MIXERS[name](**OPTIONS[options]).eval()
    x = tokens()
    expected = mixer(x).detach()
    assert not is_kept(mixer)
    with without_gradients():
        first = mixer(x)
        kernels = kernels_of(mixer)
        second = mixer(x)
    assert kernels_of(mixer) is kernels and len(kernels) == mixer.order - 1
    close(first, expected)
    assert torch.equal(first, second)
    # Other values and another batch need no other kernels.
    check(mixer, tokens(3, 4, 5, 6))
    assert kernels_of(mixer) is kernels


def step(mixer):
    optimizer = torch.optim.SGD(mixer.parameters(), lr=0.1)
    mixer(tokens()).square().sum().backward()
    optimizer.step()


def through_data(mixer):
    mixer.filter.out.weight.data.mul_(1.5)


def load(mixer):
    mixer.load_state_dict({k: v + 0.1 for k, v in mixer.state_dict().items()})


def move_skip(mixer):
    mixer.skip.data[0, 0] += 1


def move_window(mixer):
    mixer.filter.decay.data.mul_(2)


def move_shift(mixer):
    mixer.filter.shift.data.add_(0.25)


def move_omega(mixer):
    mixer.filter.sine[1].omega.data.mul_(1.5)


def replace_skip(mixer):
    mixer.skip = torch.nn.Parameter(mixer.skip.detach() * 2)


def replace_weight(mixer):
    mixer.filter.out.weight = torch.nn.Parameter(mixer.filter.out.weight.detach() * 2)


def move_base(mixer):
    mixer.filter.base_size = tuple(2 * n for n in mixer.filter.base_size)


def move_by_one_bit(mixer):
    weight = mixer.filter.hidden[0].weight.data
    weight.view(-1)[3] = torch.nextafter(weight.view(-1)[3], torch.tensor(9.0, dtype=weight.dtype))


CHANGES = [step, through_data, load, move_skip, move_window, move_shift, move_omega, replace_skip, replace_weight]
CHANGES += [move_base]


@pytest.mark.parametrize("name", ["1d", "2d"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_every_change_is_seen(name, change):
    mixer = MIXERS[name](learn_window=True).eval()
    x = tokens()
    before = check(mixer, x)
    change(mixer)
    fresh = MIXERS[name](learn_window=True).eval()
    fresh.load_state_dict(mixer.state_dict())
    fresh.filter.base_size = mixer.filter.base_size
    with torch.no_grad():
        y = mixer(x)
        assert torch.equal(y, fresh(x)) and not torch.equal(y, before)


def test_the_least_change_of_a_weight_makes_new_kernels():
    mixer = MIXERS["2d"]().eval()
    check(mixer, tokens())
    kernels = kernels_of(mixer)
    move_by_one_bit(mixer)
    check(mixer, tokens())
    assert kernels_of(mixer) is not kernels


@pytest.mark.parametrize("setting", ["coords", "window_shift"])
def test_changed_setting_of_the_filter_is_seen(setting):
    mixer = Hyena2d(6, window="exponential", **small).eval()
    x = tokens()
    before = check(mixer, x)
    setattr(mixer.filter, setting, {"coords": "absolute", "window_shift": 0.5}[setting])
    assert not torch.equal(check(mixer, x), before)


@pytest.mark.parametrize("name", MIXERS)
def test_sizes_there_and_back(name):
    mixer = MIXERS[name]().eval()
    sizes = [(4, 5), (5, 4), (1, 7), (4, 5), (10, 2)]
    for size in sizes:
        check(mixer, tokens(2, *size, 6))
        assert len(mixer.kept.entries) == 1


@pytest.mark.parametrize("name", MIXERS)
def test_dtypes_there_and_back(name):
    mixer = MIXERS[name]().float().eval()
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float32):
        mixer.to(dtype)
        x = tokens(dtype=dtype)
        with torch.no_grad():
            y = mixer(x)
        assert y.dtype == dtype
        tolerance = dict(rtol=1e-10, atol=1e-12) if dtype == torch.float64 else dict(rtol=1e-4, atol=1e-5)
        if dtype == torch.bfloat16:
            # Gates are rounded at other places.
            tolerance = dict(rtol=0.05, atol=0.02 * y.float().abs().max().item())
        torch.testing.assert_close(y, mixer(x).detach(), **tolerance)


def test_autocast_keeps_filters_in_float32():
    mixer = Hyena2d(6, filter_dim=8).eval()
    x = tokens(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = mixer(x).detach()
        with torch.no_grad():
            torch.testing.assert_close(mixer(x), expected, rtol=0.05, atol=0.02 * expected.abs().max().item())


@pytest.mark.parametrize("of_copy", [False, True])
def test_copies_have_their_own_kernels(of_copy):
    mixer = MIXERS["2d"]().eval()
    x = tokens()
    before = check(mixer, x)
    twin = copy.deepcopy(mixer)
    assert torch.equal(check(twin, x), before) and kernels_of(twin) is not kernels_of(mixer)
    changed, kept = (twin, mixer) if of_copy else (mixer, twin)
    through_data(changed)
    assert not torch.equal(check(changed, x), before) and torch.equal(check(kept, x), before)


def test_pickles_without_kernels():
    mixer = MIXERS["2d"]().eval()
    x, size = tokens(), len(pickle.dumps(mixer))
    before = check(mixer, x)
    assert len(pickle.dumps(mixer)) == size
    twin = pickle.loads(pickle.dumps(mixer))
    assert not is_kept(twin) and torch.equal(check(twin, x), before)
    assert set(twin.state_dict()) == set(MIXERS["2d"]().state_dict())


def test_nothing_is_kept_in_training_or_with_gradients():
    mixer = MIXERS["2d"]().eval()
    mixer(tokens())
    mixer.train()
    mixer(tokens())
    with torch.no_grad():
        mixer(tokens())
    assert not is_kept(mixer)


@pytest.mark.parametrize("drop", [lambda m: m.eval(), lambda m: m.train().eval(), lambda m: m(tokens()), load])
def test_switches_and_calls_with_gradients_drop_kernels(drop):
    mixer = MIXERS["2d"]().eval()
    check(mixer, tokens())
    assert is_kept(mixer)
    drop(mixer)
    assert not is_kept(mixer)


@pytest.mark.parametrize("backend", [None, "fft", "reference"])
def test_kernels_go_with_their_mixer(backend):
    mixer = MIXERS["2d"](backend=backend).eval()
    check(mixer, tokens())
    kernel = weakref.ref(kernels_of(mixer)[0])
    del mixer
    gc.collect()
    assert kernel() is None


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(order=3),
        dict(backend="fft"),
        dict(backend="reference", order=3),
        dict(learn_features=True, coords="absolute", base_grid=3),
    ],
    ids=str,
)
def test_kernels_in_groups_of_channels_equal_kept_ones(name, options, monkeypatch):
    mixer = MIXERS[name](**options, dim=40, cache_limit=0).eval()
    twin = MIXERS[name](**options, dim=40).eval()
    twin.load_state_dict(mixer.state_dict())
    x = tokens(2, 4, 5, 40)
    for limit in (2**25, 1):  # all channels, then the fewest
        monkeypatch.setattr(hyena, "_GROUP_BYTES", limit)
        close(check(mixer, x), check(twin, x))
    assert not is_kept(mixer) and is_kept(twin)


def test_kernels_that_grow_over_the_limit_are_dropped():
    # Complex numbers of twice the extent on each axis, half of them by symmetry.
    mixer = MIXERS["2d"](cache_limit=6 * 20 * 4 * 8).eval()
    check(mixer, tokens())
    assert is_kept(mixer)
    check(mixer, tokens(2, 5, 5, 6))
    assert not is_kept(mixer)
    check(mixer, tokens())
    assert is_kept(mixer)


@pytest.mark.parametrize("name", MIXERS)
def test_kept_kernels_take_about_the_memory_of_the_limit(name):
    """The limit is on bytes, so the spectra must not be larger than what it counts, up to the padding of transforms."""
    mixer = MIXERS[name](order=3).eval()
    check(mixer, tokens(1, 16, 16, 6))
    held = sum(t.untyped_storage().nbytes() for kernel in kernels_of(mixer) for t in kernel.tensors)
    counted = 6 * 256 * (2 if name.startswith("1d") else 4) * 2 * 8
    assert held <= 1.3 * counted


def test_kernels_of_samples_are_never_kept():
    mixer = MIXERS["2d"](film=True).eval()
    check(mixer, tokens())
    assert not is_kept(mixer)


@pytest.mark.parametrize("backend", ["fft", "reference"])
def test_named_backend_makes_the_kernels(backend):
    mixer = MIXERS["2d"](backend=backend).eval()
    check(mixer, tokens())
    assert [kernel.backend for kernel in kernels_of(mixer)] == [backend]


@pytest.mark.parametrize("name", ["1d", "2d"])
def test_functional_call_gets_the_result_of_its_weights(name):
    mixer, other = MIXERS[name]().eval(), MIXERS[name]().eval()
    x = tokens()
    before = check(mixer, x)
    with torch.no_grad():
        y = torch.func.functional_call(mixer, dict(other.named_parameters()), (x,))
        buffers_too = torch.func.functional_call(mixer, other.state_dict(), (x,))
        assert torch.equal(y, other(x)) and torch.equal(buffers_too, other(x))
        assert torch.equal(mixer(x), before) and not torch.equal(y, before)


@pytest.mark.parametrize(("name", "cache_limit", "compiler"), [("1d", 2**25, "eager"), ("2d", 0, "aot_eager")])
def test_compiled_mixer_sees_changes(name, cache_limit, compiler):
    torch._dynamo.reset()
    mixer = MIXERS[name](order=3, cache_limit=cache_limit).eval()
    compiled = torch.compile(mixer, fullgraph=True, backend=compiler)
    x = tokens()
    for _ in range(2):
        with torch.no_grad():
            close(compiled(x), mixer(x))
            close(compiled(x), mixer(x))
        through_data(mixer)
    # With gradients it takes the other path, and nothing stays of the first.
    close(compiled(x), mixer(x))


def test_compiled_by_inductor():
    """Transforms and all; test_hyena_vit.py has the default backend, which is one operator to the compiler."""
    torch._dynamo.reset()
    mixer = MIXERS["2d"](backend="fft").eval()
    with torch.no_grad():
        x = tokens()
        close(torch.compile(mixer, fullgraph=True)(x), mixer(x))


def test_weights_are_compared_as_numbers_wherever_they_are():
    def is_made_anew(weight, other):
        kept, calls = kept_kernels.KeptKernels(), []
        for given in (weight, other):
            kept.of(torch.ones(1, 3, 2), (), [given], True, lambda: calls.append(1) or [])
        return len(calls) == 2

    ones = torch.ones(3)
    assert not is_made_anew(ones, ones.clone())
    assert not is_made_anew(ones[::2], torch.ones(4)[::2])
    for other in (torch.full((3,), 2.0), torch.ones(1, 3), ones.double(), ones.to("meta"), torch._neg_view(ones)):
        assert is_made_anew(ones, other)


# ---- reparameterized


@pytest.mark.parametrize("name", MIXERS)
def test_reparameterized_mixers_keep_kernels_of_any_size(name):
    mixer = MIXERS[name](order=3, cache_limit=0).eval()
    mixer.reparameterize()
    x = tokens()
    first = check(mixer, x)
    kernels = kernels_of(mixer)
    assert torch.equal(check(mixer, x), first) and kernels_of(mixer) is kernels
    check(mixer, tokens(2, 5, 5, 6))
    assert len(mixer.kept.entries) == 2


def step_in_place(mixer):
    with torch.no_grad():
        mixer.filter.out.weight.mul_(1.5)


@pytest.mark.parametrize("change", [step, step_in_place, load, replace_skip, replace_weight, move_base])
def test_reparameterized_mixers_see_changes_in_place(change):
    mixer = MIXERS["2d"]().eval()
    mixer.reparameterize()
    x = tokens()
    before = check(mixer, x)
    change(mixer)
    assert not torch.equal(check(mixer, x), before)


def test_a_weight_at_the_address_of_another_is_seen():
    mixer = MIXERS["2d"]().eval()
    mixer.reparameterize()
    x = tokens()
    for _ in range(5):
        check(mixer, x)
        shape = mixer.filter.out.weight.shape
        mixer.filter.out.weight.data = torch.empty(0)
        mixer.filter.out.weight.data = torch.randn(shape, dtype=x.dtype)


@pytest.mark.parametrize("again", ["reparameterize", "train"])
def test_changes_through_data_need_another_call(again):
    mixer = MIXERS["2d"]().eval()
    mixer.reparameterize()
    x = tokens()
    before = check(mixer, x)
    through_data(mixer)
    with torch.no_grad():
        assert torch.equal(mixer(x), before)
    getattr(mixer, again)()
    assert not is_kept(mixer)
    mixer.eval()
    assert not torch.equal(check(mixer, x), before)


def test_reparameterized_weights_of_inference_mode():
    with torch.inference_mode():
        mixer = MIXERS["2d"]().eval()
        mixer.reparameterize()
        x = tokens()
        first = mixer(x)
        kernels = kernels_of(mixer)
        assert torch.equal(mixer(x), first) and kernels_of(mixer) is kernels


def test_on_other_devices_reparameterized_mixers_alone_keep_kernels():
    mixer = MIXERS["2d"](backend="fft").eval().to("meta")
    x = tokens().to("meta")
    with torch.no_grad():
        mixer(x)
        assert not is_kept(mixer)
        mixer.reparameterize()
        mixer(x)
        assert is_kept(mixer)
        mixer.train()
        mixer.eval()(x)
        assert not is_kept(mixer)


def test_timm_reparameterizes_a_copy_of_a_model():
    model = timm.create_model("hyena2d_vit_tiny", img_size=64, depth=2, num_classes=3).eval()
    inference = reparameterize_model(model)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(inference(x), model(x))
    reparameterized = [
        [m.reparameterized for m in net.modules() if isinstance(m, Hyena2d)] for net in (model, inference)
    ]
    assert reparameterized == [[False, False], [True, True]]


@pytest.mark.parametrize(("name", "backend", "compiler"), [("1d", "fft", "eager"), ("2d", None, "aot_eager")])
def test_compiled_reparameterized_mixer(name, backend, compiler):
    torch._dynamo.reset()
    mixer = MIXERS[name](order=3, cache_limit=0, backend=backend).eval()
    compiled = torch.compile(mixer, fullgraph=True, backend=compiler)
    x, other = tokens(), tokens(2, 3, 7, 6)
    with torch.no_grad():
        close(compiled(x), mixer(x))
        mixer.reparameterize()
        for _ in range(2):
            close(compiled(x), mixer(x))
            close(compiled(other), mixer(other))
        entries = mixer.kept.entries
        assert len(entries) == 2
        compiled(x)
        assert mixer.kept.entries is entries
        for change in (load, lambda m: m.to(torch.float32).to(torch.float64), replace_and_say):
            before = compiled(x)
            change(mixer)
            close(compiled(x), mixer(x))
            assert not torch.equal(compiled(x), before)
        mixer.train()
        mixer.eval()
        move_skip(mixer)
        close(compiled(x), mixer(x))


def replace_and_say(mixer):
    replace_weight(mixer)
    mixer.reparameterize()


def test_graphs_read_kernels_that_are_kept():
    """And do not compute them: nothing of the filter is in the graph."""
    # torch 2.8 says that it exports where it compiles: what a program reads elsewhere is all in its graph
    exports = torch.compile(lambda x: x + torch.compiler.is_exporting(), backend="eager", fullgraph=True)(
        torch.zeros(1)
    )
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    for reparameterized in (False, True):
        torch._dynamo.reset()
        mixer = MIXERS["2d"]().eval()
        if reparameterized:
            mixer.reparameterize()
        with torch.no_grad():
            close(
                torch.compile(mixer, fullgraph=True, backend=backend)(tokens()), mixer(tokens()) * 0, rtol=0, atol=1e9
            )
    counts = [sum("sin" in str(node.target) for node in graph.graph.nodes) for graph in graphs]
    assert counts[0] >= 3 and counts[1] == (counts[0] if exports else 0)


def test_captured_graphs_keep_their_kernels(monkeypatch):
    """By a stream that only says that it captures."""
    mixer = MIXERS["2d"](backend="fft").eval()
    mixer.reparameterize()
    capturing = []
    monkeypatch.setattr(kept_kernels, "is_capturing", lambda value: bool(capturing))
    x, other = tokens(), tokens(2, 6, 7, 6)
    first = check(mixer, x)
    kernels = kernels_of(mixer)
    capturing.append(True)
    for _ in range(2):
        assert torch.equal(check(mixer, x), first)
    check(mixer, other)
    assert kernels_of(mixer) is kernels
    capturing.clear()
    check(mixer, other)
    mixer.reparameterize()
    assert not is_kept(mixer) and [entry.kernels for entry in mixer.kept.captured] == [kernels]


def test_a_weight_that_is_turned_is_seen():
    mixer = MIXERS["2d"]().eval()
    mixer.reparameterize()
    x = tokens()
    weight = mixer.filter.hidden[1].weight
    before = check(mixer, x)
    weight.data = weight.data.t()
    assert not torch.equal(check(mixer, x), before)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", [None, "triton"])
def test_reparameterized_mixer_on_a_gpu_where_there_is_one(backend):
    if backend == "triton":
        pytest.importorskip("triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mixer = MIXERS["2d"](backend=backend).float().eval().to(device)
    x = tokens(dtype=torch.float32).to(device)
    with torch.no_grad():
        expected = mixer(x)
        mixer.reparameterize()
        torch.testing.assert_close(mixer(x), expected)
        assert is_kept(mixer)
        if device == "cuda":
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                y = mixer(x)
            x.copy_(torch.randn_like(x))
            graph.replay()
            torch.testing.assert_close(y, mixer(x))
