"""What is particular to the `blocked` backend: its internal limits, prepared kernels, and the memory that it reuses."""

import pytest
import torch
from operators import convolve_in_threads
from torch.autograd import forward_ad

from hyena_vision.ops import (
    available_backends,
    blocked,
    long_conv1d,
    long_conv2d,
    prepare_kernel1d,
    prepare_kernel2d,
)
from hyena_vision.ops.backends import select
from hyena_vision.testing import LAYOUTS, Problem, assert_within_tolerance

OPERATORS = {
    "causal": (long_conv1d, prepare_kernel1d, dict(causal=True)),
    "centred": (long_conv1d, prepare_kernel1d, dict(causal=False)),
    "linear": (long_conv2d, prepare_kernel2d, dict(padding="linear")),
    "circular": (long_conv2d, prepare_kernel2d, dict(padding="circular")),
}
ONE_D, TWO_D = ["causal", "centred"], ["linear", "circular"]
IN_FLOAT64 = [name for name in available_backends() if name not in ("triton", "cpp")]
# Primes have no divisor near their root, so that the last line is not full; 2 and 3 have a single row or line.
SEQUENCES = [Problem((n,), (2 * n - 1,), batch=3, channels=7) for n in (1, 2, 3, 13, 127, 251)]
IMAGES = [
    Problem(size, (2 * size[0] - 1, 2 * size[1] - 1), batch=3, channels=7)
    for size in ((1, 19), (19, 1), (5, 6), (13, 11), (33, 4))
]


@pytest.fixture(params=[0, 10**6], ids=["fft-lines", "product-lines"])
def lines(request, monkeypatch):
    """Lines of any length by FFTs, or by products; a plan does not know which, so its tables are made anew."""
    monkeypatch.setattr(blocked, "_PRODUCT_LINES", request.param)
    blocked._tables.cache_clear()
    yield
    blocked._tables.cache_clear()


def values_and_gradients(name, tensors, cotangent, backend):
    op, _, kwargs = OPERATORS[name]
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    y = op(*leaves, **kwargs, backend=backend)
    y.backward(cotangent.to(y.dtype))
    return [y, *[leaf.grad for leaf in leaves if leaf is not None]]


def check(name, problem, dtype=torch.float64):
    tensors = problem.tensors(dtype)
    cotangent = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    values = values_and_gradients(name, tensors, cotangent, "blocked")
    truths = values_and_gradients(name, [None if t is None else t.double() for t in tensors], cotangent, "reference")
    for what, value, truth in zip(("y", "dx", "dkernel", "dskip")[: len(values)], values, truths, strict=True):
        assert_within_tolerance(value, truth, dtype, f"{what} of {name}, {problem},")


@pytest.mark.parametrize("name", OPERATORS)
def test_lines_by_product_and_by_fft(name, lines):
    for problem in SEQUENCES if name in ONE_D else IMAGES:
        check(name, problem)
        check(name, Problem(problem.size, problem.kernel_size, batch=3, channels=7, per_sample=True, skip=False))


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("per_sample", [False, True])
def test_many_blocks_groups_and_samples_with_remainders(name, layout, per_sample, lines, monkeypatch):
    """Limits from one channel of one sample up to all at once; most divide neither 5 samples nor 7 channels."""
    size = (37,) if name in ONE_D else (5, 9)
    problem = Problem(
        size, tuple(2 * n + 1 for n in size), batch=5, channels=7, per_sample=per_sample, skip=True, layout=layout
    )
    plan = blocked.make_plan(size, problem.kernel_size, [n // 2 for n in problem.kernel_size], name == "circular")
    of_channel = 16 * plan.frequencies * plan.line_transform
    seen = set()
    for block, group in ((1, 1), (1, 4), (3, 5), (15, 1), (100, 100)):
        monkeypatch.setattr(blocked, "_BLOCK_BYTES", block * of_channel)
        monkeypatch.setattr(blocked, "_SPECTRA_BYTES", group * of_channel)
        work = blocked._Work(plan, 5, 7, torch.float64, blocked._SPECTRA_BYTES)
        seen.add((work.samples, work.block, work.group))
        check(name, problem)
    # Else the limits would not have been crossed.
    assert len(seen) > 3 and {samples for samples, _, _ in seen} >= {1, 2, 5}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_prime_sizes_in_other_dtypes(name, dtype, lines):
    check(name, Problem((211,), (421,)) if name in ONE_D else Problem((23, 17), (45, 33)), dtype)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 16, 36, 97, 196, 1021, 4093, 4096])
def test_plan_covers_the_sequence_with_little_to_spare(length):
    plan = blocked.make_plan((length,), (2 * length - 1,), (length - 1,), circular=False)
    assert length <= plan.lines * plan.rows < length + max(plan.lines, plan.rows)
    assert plan.periods[0] >= 2 * length - 1


@pytest.mark.parametrize("name", OPERATORS)
def test_expanded_gradient(name, lines):
    """That of a sum has no strides at all."""
    size = (13,) if name in ONE_D else (5, 4)
    op, _, kwargs = OPERATORS[name]
    gradients = []
    for backend in ("blocked", "reference"):
        leaves = [t.requires_grad_() for t in Problem(size, size).tensors()]
        op(*leaves, **kwargs, backend=backend).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for value, truth in zip(*gradients, strict=True):
        assert_within_tolerance(value, truth, torch.float64)


@pytest.mark.parametrize("name", OPERATORS)
def test_batch_of_none(name, lines):
    size = (13,) if name in ONE_D else (5, 4)
    op, prepare, kwargs = OPERATORS[name]
    x, kernel, skip = (t.requires_grad_() for t in Problem(size, size).tensors())
    y = op(x[:0], kernel, skip, **kwargs, backend="blocked")
    assert y.shape == x[:0].shape
    assert all((grad == 0).all() for grad in torch.autograd.grad(y.sum(), (kernel, skip)))
    assert op(x[:0].detach(), prepare(x[:0], kernel, skip, **kwargs, backend="blocked")).shape == x[:0].shape


@pytest.mark.parametrize("name", OPERATORS)
def test_bad_numbers_do_not_outlive_their_call(name, lines):
    """The padded buffer is used again without being cleared."""
    op, prepare, kwargs = OPERATORS[name]
    size = (23,) if name in ONE_D else (5, 7)
    x, kernel, skip = Problem(size, tuple(2 * n - 1 for n in size)).tensors(torch.float32)
    cotangent = torch.randn(x.shape).double()
    clean = values_and_gradients(name, [x, kernel, skip], cotangent, "blocked")
    prepared = prepare(x, kernel, skip, **kwargs, backend="blocked")
    for bad in (float("nan"), float("inf")):
        values_and_gradients(name, [torch.full_like(x, bad), kernel, skip], cotangent * bad, "blocked")
        again = values_and_gradients(name, [x, kernel, skip], cotangent, "blocked")
        for value, expected in zip(again, clean, strict=True):
            assert torch.equal(value, expected)
        op(torch.full_like(x, bad), prepared)
        assert torch.equal(op(x, prepared), clean[0])


def test_bad_numbers_stay_in_their_sample_and_channel(lines):
    x, kernel, skip = Problem((5, 7), (9, 13), batch=3, channels=4).tensors(torch.float32)
    clean = long_conv2d(x, kernel, skip, backend="blocked")
    x[1, 2, 0, 0] = float("nan")
    y = long_conv2d(x, kernel, skip, backend="blocked")
    touched = (y != clean).flatten(2).any(-1)
    assert touched[1, 2] and y[1, 2].isnan().all()
    if blocked._PRODUCT_LINES == 0:
        assert touched.sum() == 1


def gated(name, backend, x, kernel, skip, gate, out_gate):
    op, _, kwargs = OPERATORS[name]
    return op(x, kernel, skip, gate=gate, out_gate=out_gate, **kwargs, backend=backend)


@pytest.mark.parametrize("backend", IN_FLOAT64)
@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("which", [(True, True), (True, False), (False, True)], ids=["both", "gate", "out_gate"])
def test_gates_are_products_before_and_after(name, backend, which):
    op, prepare, kwargs = OPERATORS[name]
    size = (13,) if name in ONE_D else (5, 4)
    x, kernel, skip = Problem(size, tuple(2 * n - 1 for n in size), layout="channels_last").tensors()
    gate, out_gate = (torch.randn_like(x) if wanted else None for wanted in which)
    leaves = [t.requires_grad_() for t in (x, kernel, skip, gate, out_gate) if t is not None]
    expected = op(x if gate is None else x * gate, kernel, skip, **kwargs, backend="reference")
    expected = expected if out_gate is None else expected * out_gate
    y = gated(name, backend, x, kernel, skip, gate, out_gate)
    assert_within_tolerance(y, expected, torch.float64)
    cotangent = torch.randn_like(y)
    for given, truth in zip(*(torch.autograd.grad(t, leaves, cotangent) for t in (y, expected)), strict=True):
        assert_within_tolerance(given, truth, torch.float64)
    with torch.no_grad():
        prepared = prepare(x, kernel, skip, **kwargs, backend=backend)
        assert_within_tolerance(op(x, prepared, gate=gate, out_gate=out_gate), expected, torch.float64)


@pytest.mark.parametrize("backend", IN_FLOAT64)
@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("per_sample", [False, True])
def test_prepared_kernel_gives_the_same(name, backend, per_sample):
    op, prepare, kwargs = OPERATORS[name]
    for size in ((13,), (1,)) if name in ONE_D else ((5, 4), (1, 1), (1, 6)):
        # One tap, less than the signal, and beyond it.
        for taps in (size, [1] * len(size), [2 * n + 3 for n in size], [2 * n - 1 for n in size]):
            x, kernel, skip = Problem(size, tuple(taps), per_sample=per_sample).tensors()
            truth = op(x, kernel, skip, **kwargs, backend="reference")
            prepared = prepare(x, kernel.requires_grad_(), skip, **kwargs, backend=backend)
            assert_within_tolerance(op(x, prepared), truth, torch.float64)
            if not per_sample:
                # Another batch.
                assert_within_tolerance(op(x[:1], prepared), truth[:1], torch.float64)


@pytest.mark.parametrize("backend", available_backends())
@pytest.mark.parametrize("which", ["gate", "out_gate"])
def test_wider_gate_gives_the_promoted_dtype(backend, which):
    x, kernel, skip = Problem((6, 5), (11, 9)).tensors(torch.float32)
    x = x.bfloat16()
    gate = torch.randn(x.shape)
    prepared = prepare_kernel2d(x, kernel, skip, backend=backend)
    composed = long_conv2d(x, kernel, skip, **{which: gate}, backend=backend)
    y = long_conv2d(x, prepared, **{which: gate})
    assert y.dtype == composed.dtype == torch.float32
    assert_within_tolerance(y, composed.double(), torch.float32)


@pytest.mark.parametrize("backend", available_backends())
def test_prepared_kernel_refuses_what_it_was_not_made_for(backend):
    x, kernel, skip = Problem((6, 5), (11, 9)).tensors(torch.float32)
    prepared = prepare_kernel2d(x, kernel, skip, backend=backend)
    of_sample = prepare_kernel2d(x, kernel.expand(2, 3, 11, 9), backend=backend)
    for call, error, message in (
        (lambda: long_conv2d(x[..., :4], prepared), ValueError, r"shape \(B, 3, 6, 5\).*got \(2, 3, 6, 4\)"),
        (lambda: long_conv2d(x[:, :2], prepared), ValueError, r"shape \(B, 3, 6, 5\).*got \(2, 2, 6, 5\)"),
        (lambda: long_conv2d(x[0], prepared), ValueError, r"shape \(B, 3, 6, 5\).*got \(3, 6, 5\)"),
        (lambda: long_conv1d(x.flatten(2), prepared), ValueError, r"got \(2, 3, 30\)"),
        (lambda: long_conv2d(x[:1], of_sample), ValueError, r"shape \(2, 3, 6, 5\).*got \(1, 3, 6, 5\)"),
        (
            lambda: long_conv2d(x.double(), prepared),
            TypeError,
            "sums in torch.float32, got x and gates in torch.float64",
        ),
        # A product in double precision would be rounded without a word
        (lambda: long_conv2d(x, prepared, gate=x.double()), TypeError, "got x and gates in torch.float64"),
        (lambda: long_conv2d(x, prepared, out_gate=x.double()), TypeError, "got x and gates in torch.float64"),
        (lambda: long_conv2d(x, prepared, skip), ValueError, "has its skip already"),
        (lambda: long_conv2d(x, prepared, gate=x[..., :1]), ValueError, r"gate must have the shape.*\(2, 3, 6, 1\)"),
        (lambda: long_conv2d(x, prepared, out_gate=x[:1]), ValueError, r"out_gate must have .*\(1, 3, 6, 5\)"),
        (lambda: long_conv2d(x, kernel, gate=x[..., :1]), ValueError, r"gate must have the shape.*\(2, 3, 6, 1\)"),
        (
            lambda: long_conv2d(x, kernel, out_gate=x.to("meta")),
            ValueError,
            "out_gate must be on the device of x: .* on meta",
        ),
    ):
        with pytest.raises(error, match=message):
            call()
    wanted = x.clone().requires_grad_()
    for kwargs in (dict(x=wanted), dict(x=x, gate=wanted), dict(x=x, out_gate=wanted)):
        with pytest.raises(RuntimeError, match="no gradients: give the kernel itself, or use torch.no_grad"):
            long_conv2d(kernel=prepared, **kwargs)
        with torch.no_grad():
            long_conv2d(kernel=prepared, **kwargs)


def test_prepared_kernel_stays_as_it_was():
    x, kernel, skip = Problem((6, 5), (11, 9)).tensors(torch.float32)
    prepared = prepare_kernel2d(x, kernel, skip, backend="blocked")
    before = long_conv2d(x, prepared)
    kernel.zero_()
    assert torch.equal(long_conv2d(x, prepared), before)


@pytest.mark.parametrize("name", OPERATORS)
def test_precision_settings_change_nothing_and_are_restored(name, lines, monkeypatch):
    size = (23,) if name in ONE_D else (5, 7)
    op, prepare, kwargs = OPERATORS[name]
    x, kernel, skip = Problem(size, size).tensors(torch.float32)
    cotangent = torch.randn(x.shape).double()
    expected = values_and_gradients(name, [x, kernel, skip], cotangent, "blocked")
    prepared = prepare(x, kernel, skip, **kwargs, backend="blocked")
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            values = values_and_gradients(name, [x, kernel, skip], cotangent, "blocked")
            again = op(x, prepare(x, kernel, skip, **kwargs, backend="blocked"))
            assert torch.is_autocast_enabled("cpu")
        for value, truth in zip([*values, again, op(x, prepared)], [*expected, expected[0], expected[0]], strict=True):
            assert torch.equal(value, truth)
        assert torch.get_float32_matmul_precision() == "medium"

        def fail(*args):
            raise MemoryError

        monkeypatch.setattr(blocked._Work, "rows", fail)
        with pytest.raises(MemoryError):
            op(x, kernel, skip, **kwargs, backend="blocked")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("name", OPERATORS)
def test_double_backward(name, lines):
    """With a kernel per sample in 2D; shared ones are in test_fft.py."""
    op, _, kwargs = OPERATORS[name]
    size = (3,) if name in ONE_D else (2, 2)
    problem = Problem(size, tuple(2 * n - 1 for n in size), channels=2, per_sample=name in TWO_D)
    tensors = [t.requires_grad_() for t in problem.tensors()]
    assert torch.autograd.gradcheck(lambda *t: op(*t, **kwargs, backend="blocked"), tensors)
    assert torch.autograd.gradgradcheck(lambda *t: op(*t, **kwargs, backend="blocked"), tensors)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_first_call_in_a_compiled_graph(name, dtype, lines):
    """Compiled graphs run operators where tensors' conjugate bits are not seen, and tables made there are kept."""
    op, _, kwargs = OPERATORS[name]
    size = (8,) if name in ONE_D else (6, 5)
    problem = Problem(size, tuple(2 * n - 1 for n in size))
    leaves = [t.requires_grad_() for t in problem.tensors(dtype)]
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *tensors: op(*tensors, **kwargs, backend="blocked"), fullgraph=True, backend="aot_eager"
    )
    truth_leaves = [t.detach().double().requires_grad_() for t in leaves]
    truth = op(*truth_leaves, **kwargs, backend="reference")
    gradients = torch.autograd.grad(truth.square().sum(), truth_leaves)
    y = compiled(*leaves)
    assert_within_tolerance(y, truth, dtype)
    for given, expected in zip(torch.autograd.grad(y.square().sum(), leaves), gradients, strict=True):
        assert_within_tolerance(given, expected, dtype)
    assert_within_tolerance(op(*leaves, **kwargs, backend="blocked"), truth, dtype)


REASON = "'blocked' cannot run this call: exporters, torch.func, forward derivatives and tensor subclasses"


def test_function_transforms_take_the_next_backend():
    x, kernel, skip = Problem((4, 5), (7, 9)).tensors()
    tangent = torch.randn_like(x)
    truth = long_conv2d(x, kernel, skip, backend="reference")
    moved = long_conv2d(tangent, kernel, skip, backend="reference")
    (gradient,) = torch.autograd.grad(
        long_conv2d(x.requires_grad_(), kernel, skip, backend="reference").square().sum(), x
    )
    x = x.detach()
    for backend in (None, "blocked", "cpp"):

        def conv(x, backend=backend):
            return long_conv2d(x, kernel, skip, backend=backend)

        def forward_mode(conv=conv):
            with forward_ad.dual_level():
                return forward_ad.unpack_dual(conv(forward_ad.make_dual(x, tangent))).tangent

        def jvp(conv=conv):
            return torch.func.jvp(conv, (x,), (tangent,))[1]

        transforms = [
            (lambda conv=conv: torch.func.vmap(conv)(x[:, None])[:, 0], truth),
            (jvp, moved),
            (lambda conv=conv: torch.func.grad(lambda x: conv(x).square().sum())(x), gradient),
            (forward_mode, moved),
        ]
        for transform, expected in transforms:
            if backend is None:
                assert_within_tolerance(transform(), expected, torch.float64)
            else:
                with pytest.raises(RuntimeError, match=REASON if backend == "blocked" else "backend 'cpp'"):
                    transform()


def test_tensor_subclasses_take_the_next_backend():
    class Named(torch.Tensor):
        pass

    x, kernel, _ = Problem((4, 5), (7, 9)).tensors()
    assert select(None, x, kernel).name == "blocked"
    assert select(None, x, torch.nn.Parameter(kernel)).name == "blocked"
    assert select(None, x.as_subclass(Named), kernel).name == "fft"
    with pytest.raises(RuntimeError, match=REASON):
        long_conv2d(x.as_subclass(Named), kernel, backend="blocked")
    with pytest.raises(RuntimeError, match="it is for the CPU, and x is on meta"):
        long_conv2d(x.to("meta"), kernel.to("meta"), backend="blocked")


def test_threads_have_their_own_memory(lines):
    """And calls in inference mode leave memory that others can use."""
    problems = [Problem((6, 5), (11, 9)), Problem((9, 14), (17, 27)), Problem((6, 5), (11, 9), per_sample=True)]
    convolve_in_threads("blocked", problems)


def test_gradients_after_inference_mode(lines):
    """Tables and buffers that were made in inference mode may be saved by autograd later."""
    problem = Problem((17, 3), (5, 5))
    with torch.inference_mode():
        long_conv2d(*problem.tensors(), backend="blocked")
    check("linear", problem)
