"""What holds for all backends: gates, prepared kernels, and who is shown torch's own calls."""

import pytest
import torch
from operators import convolve_in_threads, needs_cpp
from torch.autograd import forward_ad

from hyena_vision.ops import available_backends, long_conv1d, long_conv2d, prepare_kernel1d, prepare_kernel2d
from hyena_vision.ops.backends import select
from hyena_vision.testing import Problem, assert_within_tolerance

OPERATORS = {
    "causal": (long_conv1d, prepare_kernel1d, dict(causal=True)),
    "centred": (long_conv1d, prepare_kernel1d, dict(causal=False)),
    "linear": (long_conv2d, prepare_kernel2d, dict(padding="linear")),
    "circular": (long_conv2d, prepare_kernel2d, dict(padding="circular")),
}
ONE_D = ["causal", "centred"]
IN_FLOAT64 = [name for name in available_backends() if name not in ("triton", "cpp")]


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
    prepared = prepare_kernel2d(x, kernel, skip, backend="fft")
    before = long_conv2d(x, prepared)
    kernel.zero_()
    assert torch.equal(long_conv2d(x, prepared), before)


def test_function_transforms_take_fft():
    x, kernel, skip = (t.float() for t in Problem((4, 5), (7, 9)).tensors())
    tangent = torch.randn_like(x)
    truth = long_conv2d(x, kernel, skip, backend="reference")
    moved = long_conv2d(tangent, kernel, skip, backend="reference")
    (gradient,) = torch.autograd.grad(
        long_conv2d(x.requires_grad_(), kernel, skip, backend="reference").square().sum(), x
    )
    x = x.detach()
    for backend in (None, "fft", *(["cpp"] if "cpp" in available_backends() else [])):

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
            if backend == "cpp":
                with pytest.raises(RuntimeError, match="'cpp' cannot run this call: exporters, torch.func, forward"):
                    transform()
            else:
                assert_within_tolerance(transform(), expected.double(), torch.float32)


def test_tensor_subclasses_take_fft():
    class Named(torch.Tensor):
        pass

    x, kernel, _ = Problem((4, 5), (7, 9)).tensors(torch.float32)
    usual = available_backends()[0]
    assert select(None, x, kernel).name == usual
    assert select(None, x, torch.nn.Parameter(kernel)).name == usual
    assert select(None, x.as_subclass(Named), kernel).name == "fft"
    assert type(long_conv2d(x.as_subclass(Named), kernel)) is Named
    if usual == "cpp":
        with pytest.raises(RuntimeError, match="'cpp' cannot run this call: exporters"):
            long_conv2d(x.as_subclass(Named), kernel, backend="cpp")
        with pytest.raises(RuntimeError, match="it is for the CPU, and x is on meta"):
            long_conv2d(x.to("meta"), kernel.to("meta"), backend="cpp")


@pytest.mark.parametrize("backend", ["fft", pytest.param("cpp", marks=needs_cpp)])
def test_threads_and_inference_mode(backend):
    """Calls in inference mode leave memory that others can use, in other threads and later."""
    problems = [Problem((6, 5), (11, 9)), Problem((9, 14), (17, 27)), Problem((6, 5), (11, 9), per_sample=True)]
    convolve_in_threads(backend, problems)
    x, kernel, skip = (t.requires_grad_() for t in Problem((17, 3), (5, 5)).tensors(torch.float32))
    with torch.inference_mode():
        long_conv2d(x, kernel, skip, backend=backend)
    (dx,) = torch.autograd.grad(long_conv2d(x, kernel, skip, backend=backend).sum(), x)
    leaves = [t.detach().double().requires_grad_() for t in (x, kernel, skip)]
    (truth,) = torch.autograd.grad(long_conv2d(*leaves, backend="reference").sum(), leaves[0])
    assert_within_tolerance(dx, truth, torch.float32)


@pytest.mark.parametrize("name", OPERATORS)
def test_expanded_gradient(name):
    """That of a sum has no strides at all."""
    size = (13,) if name in ONE_D else (5, 4)
    op, _, kwargs = OPERATORS[name]
    gradients = []
    for backend in ("fft", "reference"):
        leaves = [t.requires_grad_() for t in Problem(size, size).tensors()]
        op(*leaves, **kwargs, backend=backend).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for value, truth in zip(*gradients, strict=True):
        assert_within_tolerance(value, truth, torch.float64)


def test_bad_numbers_stay_in_their_sample_and_channel():
    x, kernel, skip = Problem((5, 7), (9, 13), batch=3, channels=4).tensors(torch.float32)
    clean = long_conv2d(x, kernel, skip, backend="fft")
    x[1, 2, 0, 0] = float("nan")
    y = long_conv2d(x, kernel, skip, backend="fft")
    touched = (y != clean).flatten(2).any(-1)
    assert touched[1, 2] and touched.sum() == 1


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, torch.float32) for name in OPERATORS), ("linear", torch.float64)], ids=str
)
def test_first_call_in_a_compiled_graph(name, dtype):
    """Compiled graphs run operators where tensors' conjugate bits are not seen."""
    op, _, kwargs = OPERATORS[name]
    size = (8,) if name in ONE_D else (6, 5)
    problem = Problem(size, tuple(2 * n - 1 for n in size))
    leaves = [t.requires_grad_() for t in problem.tensors(dtype)]
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *tensors: op(*tensors, **kwargs, backend="fft"), fullgraph=True, backend="aot_eager"
    )
    truth_leaves = [t.detach().double().requires_grad_() for t in leaves]
    truth = op(*truth_leaves, **kwargs, backend="reference")
    gradients = torch.autograd.grad(truth.square().sum(), truth_leaves)
    y = compiled(*leaves)
    assert_within_tolerance(y, truth, dtype)
    for given, expected in zip(torch.autograd.grad(y.square().sum(), leaves), gradients, strict=True):
        assert_within_tolerance(given, expected, dtype)
