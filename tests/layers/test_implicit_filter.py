import math
from functools import partial

import pytest
import torch

from hyena_vision.layers import ImplicitFilter1d, ImplicitFilter2d
from hyena_vision.ops import implicit_filter as operator

Filter1d = partial(ImplicitFilter1d, filter_dim=8, dtype=torch.float64)
Filter2d = partial(ImplicitFilter2d, filter_dim=8, dtype=torch.float64)


@pytest.mark.parametrize("window", ["exponential", "radial", "gaussian", "none"])
@pytest.mark.parametrize("features", ["fourier", "sinusoid", "coords"])
@pytest.mark.parametrize("coords", ["relative", "absolute"])
@pytest.mark.parametrize("learn_features", [False, True])
def test_runs_at_any_size_with_every_option(window, features, coords, learn_features):
    settings = dict(window=window, features=features, coords=coords, learn_features=learn_features, num_filters=2)
    for size in (1, 4, 6):
        kernel = Filter1d(5, base_size=6, **settings)(size)
        assert kernel.shape == (2, 5, 2 * size - 1)
        assert Filter1d(5, base_size=6, causal=True, **settings)(size).shape == (2, 5, size)
        assert kernel.isfinite().all()
    for size in ((1, 1), (4, 6), (6, 3)):
        kernel = Filter2d(5, base_size=6, **settings)(size)
        assert kernel.shape == (2, 5, 2 * size[0] - 1, 2 * size[1] - 1)
        assert kernel.isfinite().all()


def test_1d_value_by_the_formula():
    torch.manual_seed(3)
    module = Filter1d(2, filter_emb_dim=5, num_inner_layers=1, window_shift=0.25, omega_0=3.0)
    displacement, size = -2, 7
    u = displacement / size
    angles = [math.pi * 1e-4 * u, math.pi * u]
    z = torch.tensor([u, *map(math.cos, angles), *(-math.sin(a) for a in angles)], dtype=torch.float64)
    hidden = torch.sin(3.0 * (module.hidden[0].weight @ z + module.hidden[0].bias))
    hidden = torch.sin(module.hidden[1].weight @ hidden + module.hidden[1].bias)
    window = torch.exp(-module.decay * abs(u)) + 0.25
    expected = module.out.weight @ hidden * window * 14 / size
    torch.testing.assert_close(module(size)[0, :, size - 1 + displacement], expected)


@pytest.mark.parametrize("coords", ["relative", "absolute"])
@pytest.mark.parametrize("window", ["exponential", "radial", "gaussian"])
def test_2d_value_by_the_formula(coords, window):
    torch.manual_seed(3)
    size, base, displacement = (3, 5), (4, 7), (2, -1)
    settings = dict(filter_emb_dim=6, num_inner_layers=0, window=window, window_shift=0.25)
    module = Filter2d(2, coords=coords, base_size=base, **settings)
    if window == "gaussian":
        torch.nn.init.uniform_(module.log_sigma, -1, 1)
    else:
        torch.nn.init.normal_(module.decay)
    scale = size if coords == "relative" else base
    u, v = displacement[0] / scale[0], displacement[1] / scale[1]
    features = [part for c in (u, v) for part in (c, math.cos(math.pi * 1e-4 * c), -math.sin(math.pi * 1e-4 * c))]
    hidden = torch.sin(module.hidden[0](torch.tensor(features, dtype=torch.float64)))
    if window == "gaussian":
        sigma = module.log_sigma.exp()
        values = torch.exp(-0.5 * ((u / sigma[0]) ** 2 + (v / sigma[1]) ** 2))
    else:
        distance = abs(u) + abs(v) if window == "exponential" else math.hypot(u, v)
        values = torch.exp(-module.decay.abs() * distance) + 0.25
    gain = (4 / 3) * (7 / 5) if coords == "relative" else 1
    given = module(size)[0, :, 2 + displacement[0], 4 + displacement[1]]
    torch.testing.assert_close(given, module.out(hidden) * values * gain)


def test_film_by_the_formula():
    torch.manual_seed(3)
    module = Filter1d(2, features="coords", cond_dim=3, num_inner_layers=1, window="none", base_size=4)
    torch.nn.init.normal_(module.film.weight)
    cond = torch.randn(1, 3, dtype=torch.float64)
    first, second = module.film(cond)[0].reshape(2, 2, 8)  # layer, then scale and shift
    hidden = torch.sin(10 * module.hidden[0](torch.tensor([0.25], dtype=torch.float64)))
    hidden = torch.sin(module.hidden[1]((1 + first[0]) * hidden + first[1]))
    expected = module.out((1 + second[0]) * hidden + second[1])
    torch.testing.assert_close(module(4, cond)[0, 0, :, 4], expected)


def test_defaults_are_the_published_ones_with_a_wider_window():
    hyena = ImplicitFilter1d(4)
    assert (hyena.filter_emb_dim, len(hyena.hidden), hyena.omega_0, hyena.window) == (33, 3, 1.0, "exponential")
    pixel = ImplicitFilter2d(4)
    assert (pixel.filter_emb_dim, len(pixel.hidden), pixel.omega_0, pixel.window) == (34, 3, 1.0, "radial")
    for decay in (hyena.decay, pixel.decay):
        torch.testing.assert_close(decay[[0, -1]], -math.log(0.01) / torch.tensor([10.0, 2.0]))
    siren = ImplicitFilter2d(4, features="coords", filter_dim=512)
    assert siren.omega_0 == 10.0 and siren.sine[0].omega[0] == 10.0 and siren.sine[1].omega[0] == 1.0
    # SIREN: uniform within pi on two raw coordinates, within sqrt(6 / width) in the layers after them.
    torch.testing.assert_close(siren.hidden[0].weight.abs().max(), torch.tensor(math.pi), rtol=0.02, atol=0)
    torch.testing.assert_close(siren.hidden[1].weight.abs().max(), torch.tensor((6 / 512) ** 0.5), rtol=0.02, atol=0)


def test_causal_angles_go_round_once_over_the_sequence():
    module = Filter1d(2, filter_emb_dim=7, causal=True, learn_features=True, base_size=8)
    torch.testing.assert_close(module.z[3], torch.cos(2 * 2 * math.pi * torch.arange(8).double() / 8))


def test_sinusoid_features_are_those_of_hyenapixel():
    module = Filter2d(2, features="sinusoid", filter_emb_dim=8, base_size=3, learn_features=True)
    row, column, rate = 3, 1, 10000 ** (-2 / 4)
    expected = []
    for index in (column, row):
        expected += [math.sin(index), math.cos(index), math.sin(index * rate), math.cos(index * rate)]
    torch.testing.assert_close(module.z[:, row, column], torch.tensor(expected, dtype=torch.float64))


def test_gaussian_widths_go_from_one_token_to_the_image():
    module, plain = (Filter2d(3, window=window, base_size=(8, 5)) for window in ("gaussian", "none"))
    plain.load_state_dict({key: value for key, value in module.state_dict().items() if key != "log_sigma"})
    window = (module((8, 5)) / plain((8, 5)))[0]
    torch.testing.assert_close(window[0, 7, 5], torch.tensor(0.1, dtype=torch.float64))
    torch.testing.assert_close(window[0, 8, 4], torch.tensor(0.1, dtype=torch.float64))
    edge = torch.exp(-0.5 * torch.exp(-2 * module.log_sigma[0, -1]))
    torch.testing.assert_close(edge, torch.tensor(0.1, dtype=torch.float64))


def test_windows_fall_to_a_hundredth_where_they_should():
    module = Filter1d(4, slow_decay=2.0, fast_decay=0.5)
    window = torch.exp(-module.decay * torch.tensor([2.0, 1, 1, 0.5]))
    torch.testing.assert_close(window[[0, 3]], torch.full((2,), 0.01, dtype=torch.float64))


@pytest.mark.parametrize(
    ("filter_cls", "window", "learnt"),
    [
        (Filter1d, "exponential", set()),
        (Filter2d, "radial", {"decay", "shift"}),
        (Filter2d, "gaussian", {"log_sigma"}),
        (Filter2d, "none", set()),
    ],
)
def test_windows_are_learnt_as_in_the_papers(filter_cls, window, learnt):
    names = {name for name, _ in filter_cls(3, window=window).named_parameters()}
    assert names & {"decay", "shift", "log_sigma"} == learnt


def test_relative_coordinates_keep_the_integral_at_every_resolution():
    """A constant image gives the same value whatever the number of tokens, as the sum approximates one integral."""
    module = Filter2d(6, coords="relative")
    sums = [module((n, n)).sum((-2, -1)) for n in (64, 128)]
    torch.testing.assert_close(sums[0], sums[1], rtol=0, atol=0.02 * sums[0].abs().max().item())


def test_absolute_coordinates_keep_each_tap_at_every_resolution():
    module = Filter2d(6, coords="absolute")
    small, large = module((5, 7)), module((9, 8))
    torch.testing.assert_close(large[..., 4:-4, 1:-1], small)


def test_coordinates_are_relative_by_default_and_agree_on_the_base_grid():
    torch.manual_seed(0)
    default = Filter2d(6, base_size=5)
    absolute = Filter2d(6, base_size=5, coords="absolute")
    absolute.load_state_dict(default.state_dict())
    assert default.coords == "relative"
    torch.testing.assert_close(absolute((5, 5)), default((5, 5)))
    assert not torch.allclose(absolute((8, 8))[..., 3:-3, 3:-3], default((8, 8))[..., 3:-3, 3:-3])


def test_learnt_features_begin_as_the_function():
    torch.manual_seed(0)
    function = Filter2d(4, base_size=14)
    table = Filter2d(4, base_size=14, learn_features=True)
    table.load_state_dict({**function.state_dict(), "z": table.z})
    torch.testing.assert_close(table((14, 14)), function((14, 14)))
    # Smooth features survive interpolation.
    interpolated, exact = table((16, 15)).flatten(), function((16, 15)).flatten()
    assert torch.cosine_similarity(interpolated, exact, dim=0) > 0.95


@pytest.mark.parametrize("causal", [True, False])
def test_1d_tables_are_read_at_the_exact_positions(causal):
    torch.manual_seed(0)
    function = Filter1d(4, base_size=100, causal=causal)
    table = Filter1d(4, base_size=100, causal=causal, learn_features=True)
    table.load_state_dict({**function.state_dict(), "z": table.z})
    for size in (25, 50, 100):  # every position of these lies on a row of the table
        torch.testing.assert_close(table(size), function(size))
    interpolated, exact = table(130).flatten(), function(130).flatten()
    assert (interpolated - exact).norm() < 0.05 * exact.norm()


def test_learnt_features_with_absolute_coordinates_stop_at_the_table():
    module = Filter1d(4, base_size=5, learn_features=True, coords="absolute")
    assert module(9).shape == (1, 4, 9)
    torch.testing.assert_close(module(3), module(5)[..., 2:-2])


@pytest.mark.parametrize("filter_type", [Filter1d, Filter2d])
def test_tables_may_end_before_the_base_grid_or_behind_it(filter_type):
    torch.manual_seed(0)
    exact = filter_type(4, base_size=12, learn_features=True)
    rank = exact.rank
    for table_size, taps in ((7, 13), (17, 23)):
        module = filter_type(4, base_size=12, table_size=table_size, learn_features=True)
        module.load_state_dict({**exact.state_dict(), "z": module.z})
        assert module.z.shape[1:] == (2 * table_size - 1,) * rank and module.extents(12) == (taps,) * rank
        middle = (..., *[slice(12 - (taps + 1) // 2, 11 + (taps + 1) // 2)] * rank)
        torch.testing.assert_close(module(12), exact(12)[middle])
        # Elsewhere it covers the same part of the image
        assert module.extents(24) == (min(2 * 2 * table_size - 1, 47),) * rank
        assert module.extents(6) == (min(2 * round(table_size / 2 + 0.01) - 1, 11),) * rank
        larger, truth = module(24), exact(24)
        cut = (..., *[slice(24 - (n + 1) // 2, 23 + (n + 1) // 2) for n in module.extents(24)])
        assert torch.cosine_similarity(larger.flatten(), truth[cut].flatten(), dim=0) > 0.95


def test_a_table_can_be_given_another_size():
    module = Filter2d(4, base_size=4, learn_features=True).requires_grad_(False)
    module.set_table_size(6)
    assert module.z.shape[1:] == (11, 11) and not module.z.requires_grad and module.table_size == (6, 6)
    module.load_state_dict(Filter2d(4, base_size=4, table_size=6, learn_features=True).state_dict())
    assert module.extents(4) == (7, 7) and module.settings != Filter2d(4, base_size=4, learn_features=True).settings
    for make in (lambda: Filter2d(4, table_size=3), lambda: Filter2d(4).set_table_size(3)):
        with pytest.raises(ValueError, match="table_size is for learn_features=True, got 3 without"):
            make()


def test_kernels_begin_with_unit_energy():
    for module in (Filter1d(256, base_size=196, filter_dim=32), Filter2d(256, filter_dim=32)):
        energy = module(module.base_size).square().flatten(2).sum(-1)
        assert 0.5 < energy.mean() < 2


def test_film_gives_each_sample_its_own_filter():
    module = Filter2d(4, cond_dim=3, num_filters=2)
    cond = torch.randn(5, 3, dtype=torch.float64)
    kernels = module((4, 6), cond)
    assert kernels.shape == (2, 5, 4, 7, 11)
    assert not torch.allclose(kernels[:, 0], kernels[:, 1])
    torch.testing.assert_close(module((4, 6), cond[1:2])[:, 0], kernels[:, 1])


@pytest.mark.parametrize("device_dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_evaluated_in_float32(device_dtype):
    module = ImplicitFilter2d(4, filter_dim=8).to(device_dtype)
    kernel = module((32, 32))
    assert kernel.dtype == torch.float32
    torch.testing.assert_close(kernel, module.float()((32, 32)))


def test_autocast_does_not_reach_the_filter():
    module = ImplicitFilter2d(4, filter_dim=8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kernel = module((8, 8))
    assert torch.equal(kernel, module((8, 8)))


def test_every_parameter_gets_a_gradient():
    for features in ("fourier", "sinusoid", "coords"):
        module = Filter2d(4, features=features, learn_features=True, cond_dim=3, base_size=4)
        module((4, 4), torch.randn(2, 3, dtype=torch.float64)).square().sum().backward()
        for name, parameter in module.named_parameters():
            assert parameter.grad.abs().sum() > 0, name


def test_parameters_do_not_depend_on_the_base_grid():
    assert [p.shape for p in Filter2d(4, base_size=7).parameters()] == [p.shape for p in Filter2d(4).parameters()]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(filter_dim=0), "filter_dim must be at least 1, got 0"),
        (dict(filter_dim=-3), "filter_dim must be at least 1, got -3"),
        (dict(num_filters=0), "num_filters must be at least 1, got 0"),
        (dict(num_inner_layers=-1), "num_inner_layers must be at least 0, got -1"),
        (dict(filter_emb_dim=33), r"must be 2 \* \(1 \+ 2 \* bands\), got 33"),
        (dict(filter_emb_dim=6, features="sinusoid"), "must be a multiple of 4, got 6"),
        (dict(filter_emb_dim=3, features="coords"), "must be 2, got 3"),
        (dict(features="rff"), "features must be one of .*, got 'rff'"),
        (dict(window="hann"), "window must be one of .*, got 'hann'"),
        (dict(coords="pixels"), "coords must be one of .*, got 'pixels'"),
        (dict(base_size=0), r"at least 1 token, got \(0, 0\)"),
        (dict(base_size=(1, 2, 3)), r"size must have 2 axes, got \(1, 2, 3\)"),
        (dict(slow_decay=0.0), "must be positive, got 0.0 and 2.0"),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ImplicitFilter2d(4, **kwargs)


def test_bad_sizes_and_conditions_are_refused():
    with pytest.raises(ValueError, match=r"size must have 2 axes, got \(4,\)"):
        Filter2d(4)((4,))
    with pytest.raises(ValueError, match=r"at least 1 token, got \(4, 0\)"):
        Filter2d(4)((4, 0))
    with pytest.raises(ValueError, match=r"cond must have shape \(B, 3\), got \(2, 5\)"):
        Filter2d(4, cond_dim=3)((4, 4), torch.zeros(2, 5))
    with pytest.raises(ValueError, match="if and only if cond_dim"):
        Filter2d(4)((4, 4), torch.zeros(2, 5))


def kernel_and_gradients(module, hooked, size):
    """The kernel and all gradients, on the fast path or, with a hook that does nothing, by calls of the layers."""
    handle = module.out.register_forward_hook(lambda *_: None) if hooked else None
    module.zero_grad()
    kernel = module(size)
    kernel.square().sum().backward()
    if hooked:
        handle.remove()
    return [kernel.detach(), *(p.grad.clone() for p in module.parameters())]


@pytest.mark.parametrize("window", ["exponential", "radial", "gaussian", "none"])
@pytest.mark.parametrize("options", [dict(), dict(features="sinusoid", learn_features=True), dict(coords="absolute")])
@pytest.mark.parametrize("block", [2**18, 40])
@pytest.mark.parametrize(
    ("make", "size"), [(Filter1d, (7,)), (partial(Filter1d, causal=True), (5,)), (Filter2d, (3, 4))], ids=str
)
def test_fast_path_equals_calls_of_the_layers(make, size, window, options, block, monkeypatch):
    monkeypatch.setattr(operator, "_BLOCK", block)
    module = make(5, num_filters=2, base_size=6, window=window, learn_window=True, window_shift=0.25, **options)
    for sine in module.sine:
        torch.nn.init.uniform_(sine.omega, 0.5, 1.5)
    if module.decay is not None:
        module.decay.data[::2].neg_()  # as training may, for what counts is the magnitude
    for fast, plain in zip(*(kernel_and_gradients(module, hooked, size) for hooked in (False, True)), strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-11, atol=1e-13)
    # Some channels at a time
    whole = module(size).detach()
    for index in range(2):
        for group, kernel in module.channels_in_turn(size, [slice(0, 2), slice(2, 5)], index):
            torch.testing.assert_close(kernel, whole[index, group], rtol=1e-12, atol=1e-14)


def test_fast_path_has_second_derivatives():
    module = Filter2d(3, base_size=3)
    weights = dict(module.named_parameters())
    names = ["out.weight", "hidden.1.weight", "sine.0.omega", "decay", "shift"]

    def kernel(*values):
        with torch.no_grad():
            return torch.func.functional_call(module, dict(zip(names, values, strict=True)), ((2, 3),))

    def with_gradients(*values):
        for name, value in zip(names, values, strict=True):
            module.get_submodule(name.rpartition(".")[0])._parameters[name.rpartition(".")[2]] = value
        return module((2, 3))

    values = [weights[name].detach().requires_grad_() for name in names]
    torch.testing.assert_close(with_gradients(*values), kernel(*values))
    assert torch.autograd.gradgradcheck(with_gradients, values)


def test_fast_path_keeps_its_arguments_alone():
    """For the backward pass: nothing of the size of the network's hidden layers or of the window."""
    kernel = ImplicitFilter2d(16)((20, 20))
    node = kernel.grad_fn
    while "ImplicitKernel" not in type(node).__name__:
        node = node.next_functions[0][0]
    kept = sum(t.numel() for t in node.saved_tensors if t is not None)
    assert kept < 39 * 39 * 36 + 20000


@pytest.mark.parametrize("options", [dict(), dict(learn_features=True, coords="absolute", base_size=3)], ids=str)
@pytest.mark.parametrize(
    ("make", "size"), [(Filter1d, (4,)), (partial(Filter1d, causal=True), (4,)), (Filter2d, (2, 5))], ids=str
)
def test_extents_are_those_of_the_kernels(make, size, options):
    assert make(5, **options).extents(size) == tuple(make(5, **options)(size).shape[2:])
