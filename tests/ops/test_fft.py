"""The backends of transforms against the direct sum: every dtype, every gradient, every shape."""

import itertools
import math
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import OPERATORS, needs_cpp

from hyena_vision.ops import fft, long_conv1d, long_conv2d, prepare_kernel1d, prepare_kernel2d
from hyena_vision.ops.fft import transform_size
from hyena_vision.ops.tensors import Taps
from hyena_vision.testing import LAYOUTS, TOLERANCES, Problem, assert_within_tolerance, problems_1d, problems_2d

PROBLEMS = {name: problems_1d() if name in ("causal", "centred") else problems_2d() for name in OPERATORS}
BACKENDS = ["fft", pytest.param("cpp", marks=needs_cpp)]
# And what exporters, transforms and second derivatives see
PATHS = ["fft", "openly", *([] if needs_cpp.args[0] else ["cpp"])]
random_problems = settings(max_examples=100, deadline=None, derandomize=True)


def values_and_gradients(name, tensors, path=None):
    """Output, and gradients with respect to x, kernel and skip, for a cotangent that half precision can hold."""
    op, kwargs = OPERATORS[name]
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    if path == "openly":
        extents = tuple(tensors[1].shape[2 - tensors[0].ndim :])
        centre = tuple(0 if name == "causal" else extent // 2 for extent in extents)
        y = fft.convolve_openly(*leaves, None, None, Taps(extents, centre, name == "circular"))
    else:
        y = op(*leaves, **kwargs, backend=path)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    y.backward(cotangent.to(y.dtype))
    return [y, *[leaf.grad for leaf in leaves if leaf is not None]]


@cache
def truths_of(name, problem, dtype):
    return values_and_gradients(name, [None if t is None else t.double() for t in problem.tensors(dtype)], "reference")


def check(name, problem, dtype, path):
    if path == "cpp" and dtype == torch.float64:
        dtype = torch.float32
    values = values_and_gradients(name, problem.tensors(dtype), path)
    truths = truths_of(name, problem, dtype)
    for what, value, truth in zip(("y", "dx", "dkernel", "dskip")[: len(values)], values, truths, strict=True):
        assert value.dtype == dtype
        assert_within_tolerance(value, truth, dtype, f"{what} of {path} of {name}, {problem},")


@pytest.mark.parametrize(
    ("path", "dtype"),
    [
        *itertools.product(("fft", "openly"), TOLERANCES),
        *(pytest.param("cpp", dtype, marks=needs_cpp) for dtype in TOLERANCES if dtype != torch.float64),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", OPERATORS)
def test_matches_direct_sum(name, path, dtype):
    for problem in PROBLEMS[name]:
        check(name, problem, dtype, path)


@pytest.mark.parametrize(
    ("problem", "circular"),
    [
        (Problem((6, 5), (11, 9)), False),
        (Problem((6, 5), (11, 9)), True),
        (Problem((6, 5), (11, 9), layout="channels_last"), False),
        (Problem((6, 5), (11, 9), layout="channels_last"), True),
        (Problem((7,), (9,), per_sample=True, skip=False), False),
    ],
)
def test_operator_is_registered_as_torch_asks(problem, circular):
    x, kernel, skip = (None if t is None else t.requires_grad_() for t in problem.tensors(torch.float32))
    centre = [extent // 2 for extent in problem.kernel_size]
    for gates in ((None, None), (x.detach().clone().requires_grad_(), x.detach().clone().requires_grad_())):
        torch.library.opcheck(torch.ops.hyena_vision.long_conv, (x, kernel, skip, *gates, centre, circular, "fft"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_operator_keeps_no_spectra(backend):
    """What is saved for the backward pass is what came in."""
    x, kernel, skip = (t.requires_grad_() for t in Problem((16, 16), (31, 31)).tensors(torch.float32))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        long_conv2d(x, kernel, skip, backend=backend)
    assert {t.data_ptr() for t in saved} <= {t.data_ptr() for t in (x, kernel, skip)}


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("name", OPERATORS)
def test_blocks_of_channels_with_remainders(name, per_sample, monkeypatch):
    """Most steps do not divide 7 channels; the last is all at once."""
    size = (37,) if name in ("causal", "centred") else (5, 9)
    problem = Problem(size, tuple(2 * n + 1 for n in size), channels=7, per_sample=per_sample, layout="channels_last")
    op, kwargs = OPERATORS[name]
    prepare = prepare_kernel1d if len(size) == 1 else prepare_kernel2d
    monkeypatch.setattr(fft, "BLOCK_NUMBERS", 1)
    for channels in (1, 2, 4, 7):
        monkeypatch.setattr(fft, "BLOCK_CHANNELS", channels)
        check(name, problem, torch.float64, "fft")
        x, kernel, skip = problem.tensors()
        y = op(x, prepare(x, kernel, skip, **kwargs, backend="fft"), gate=x, out_gate=x)
        truth = op(x * x, kernel, skip, **kwargs, backend="reference") * x
        assert_within_tolerance(y, truth, torch.float64)


@random_problems
@given(
    name=st.sampled_from(["causal", "centred"]),
    length=st.integers(1, 20),
    taps=st.integers(1, 43),
    per_sample=st.booleans(),
    skip=st.booleans(),
    layout=st.sampled_from(LAYOUTS),
)
def test_random_sequences(name, length, taps, per_sample, skip, layout):
    problem = Problem((length,), (taps,), per_sample=per_sample, skip=skip, layout=layout)
    for path in PATHS:
        check(name, problem, torch.float64, path)


@random_problems
@given(
    name=st.sampled_from(["linear", "circular"]),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    taps=st.tuples(st.integers(1, 27), st.integers(1, 27)),
    per_sample=st.booleans(),
    skip=st.booleans(),
    layout=st.sampled_from(LAYOUTS),
)
def test_random_images(name, size, taps, per_sample, skip, layout):
    problem = Problem(size, taps, per_sample=per_sample, skip=skip, layout=layout)
    for path in PATHS:
        check(name, problem, torch.float64, path)


@pytest.mark.parametrize("name", OPERATORS)
def test_gradcheck(name, backend="fft"):
    op, kwargs = OPERATORS[name]
    size, taps = ((4,), (9,)) if op is long_conv1d else ((2, 3), (5, 2))
    tensors = [t.requires_grad_() for t in Problem(size, taps).tensors()]
    assert torch.autograd.gradcheck(lambda *t: op(*t, **kwargs, backend=backend), tensors)
    assert torch.autograd.gradgradcheck(lambda *t: op(*t, **kwargs, backend=backend), tensors, fast_mode=True)


@pytest.mark.parametrize("length", [1, 2, 27, 97, 1021, 65537])
def test_transform_size_is_smooth_and_near(length):
    size = rest = transform_size(length)
    for prime in (2, 3, 5, 7):
        while rest % prime == 0:
            rest //= prime
    assert rest == 1
    assert length <= size <= 1.2 * length + 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_do_not_depend_on_repetition_or_threads(nan_filled_empties, backend):
    x, kernel, skip = Problem((13, 11), (25, 21), channels=8).tensors(torch.float32)
    expected = values_and_gradients("linear", [x, kernel, skip], backend)
    for threads in [1, 2] * 5:
        torch.set_num_threads(threads)
        for value, first in zip(values_and_gradients("linear", [x, kernel, skip], backend), expected, strict=True):
            assert torch.equal(value, first)


@pytest.mark.parametrize("backend", BACKENDS)
def test_kernel_in_float32_under_half_precision_input(backend):
    """As under autocast, where filters stay in float32."""
    x, kernel, skip = Problem((9, 9), (17, 17)).tensors(torch.float32)
    y = long_conv2d(x.bfloat16(), kernel, skip, backend=backend)
    assert y.dtype == torch.bfloat16
    truth = long_conv2d(x.bfloat16().double(), kernel.double(), skip.double(), backend="reference")
    assert_within_tolerance(y, truth, torch.bfloat16)
    # Rounded to bfloat16 the tap would be 1, and the product 192.
    x = torch.full((1, 1, 1, 1), 192.0, dtype=torch.bfloat16)
    assert long_conv2d(x, torch.full((1, 1, 1), 1 + 2**-8 - 2**-10), backend=backend).item() == 193


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_leaves_the_sums_in_float32(backend):
    x, kernel, skip = Problem((9, 9), (17, 17)).tensors(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = long_conv2d(x, kernel, skip, backend=backend)
    assert torch.equal(y, long_conv2d(x, kernel, skip, backend=backend))


class GlobalConv(torch.nn.Module):
    """A long convolution whose kernel covers whatever grid comes, as those of the mixers do."""

    def __init__(self, name, backend=None):
        super().__init__()
        self.op, self.kwargs = OPERATORS[name]
        self.backend = backend

    def forward(self, x):
        extents = [n if self.kwargs.get("causal") else 2 * n - 1 for n in x.shape[2:]]
        ramp = torch.arange(math.prod(extents), dtype=x.dtype).reshape(1, *extents) / math.prod(extents)
        return self.op(x, ramp.expand(x.shape[1], *extents), **self.kwargs, backend=self.backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_to_one_graph_for_all_sizes(backend):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    conv = GlobalConv("linear", backend)
    compiled = torch.compile(conv, fullgraph=True, backend="aot_eager")
    for n in (6, 9, 13):
        x = torch.randn(2, 3, n, n + 1)
        torch.testing.assert_close(compiled(x), conv(x), rtol=0, atol=1e-4)
    # One for the first size, one for all others.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


@pytest.mark.parametrize("name", OPERATORS)
def test_exports_with_a_dynamic_size(name):
    conv = GlobalConv(name)
    rank = 1 if conv.op is long_conv1d else 2
    length = torch.export.Dim("length", min=4, max=512)
    program = torch.export.export(conv, (torch.randn(2, 3, *[8] * rank),), dynamic_shapes=({2: length},)).module()
    x = torch.randn(2, 3, 21, *[8] * (rank - 1))
    torch.testing.assert_close(program(x), conv(x), rtol=0, atol=1e-4)
