"""What each backend owes: products of gates that do not overflow, batches of none, prepared kernels that are data."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from operators import OPERATORS

from hyena_vision.ops import (
    available_backends,
    hyena_operator,
    long_conv1d,
    long_conv2d,
    prepare_kernel1d,
    prepare_kernel2d,
)
from hyena_vision.testing import Problem, assert_within_tolerance

pytestmark = pytest.mark.parametrize("backend", available_backends())
SIZES = {"causal": (9,), "centred": (9,), "linear": (4, 5), "circular": (4, 5)}


def problem(name, **kwargs):
    size = SIZES[name]
    return Problem(size, tuple(2 * n - 1 for n in size), **kwargs)


@pytest.mark.parametrize("name", OPERATORS)
def test_products_with_gates_do_not_overflow(name, backend):
    """300 * 300 is beyond float16, the result is not."""
    op, kwargs = OPERATORS[name]
    _, kernel, skip = problem(name).tensors(torch.float16)
    x = torch.full((2, 3, *SIZES[name]), 300.0, dtype=torch.float16)
    kernel, skip, out_gate = kernel * 1e-4, skip * 1e-4, torch.full_like(x, 1e-2)
    truth = op(x.double() ** 2, kernel.double(), skip.double(), **kwargs, backend="reference") * out_gate.double()
    y = op(x, kernel, skip, gate=x, out_gate=out_gate, **kwargs, backend=backend)
    assert y.dtype == torch.float16
    assert_within_tolerance(y, truth, torch.float16)
    # With gradients, and between the convolution and the last gate: 2e5 is beyond it, too
    x.requires_grad_()
    y = op(x, kernel * 100, skip * 100, gate=x.detach(), out_gate=out_gate, **kwargs, backend=backend)
    assert y.isfinite().all() and torch.autograd.grad(y.float().sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.bool])
@pytest.mark.parametrize("which", ["gate", "out_gate"])
def test_gates_of_other_kinds_are_refused(which, dtype, backend):
    x, kernel, skip = problem("linear").tensors(torch.float32)
    gate = torch.ones(x.shape, dtype=dtype)
    with pytest.raises(TypeError, match=f"{which} must be float16, .* got {dtype}"):
        long_conv2d(x, kernel, skip, **{which: gate}, backend=backend)
    with pytest.raises(TypeError, match=f"{which} must be float16, .* got {dtype}"):
        long_conv2d(x, prepare_kernel2d(x, kernel, backend=backend), **{which: gate})


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("name", OPERATORS)
def test_no_samples_and_no_channels(name, per_sample, backend):
    op, kwargs = OPERATORS[name]
    prepare = prepare_kernel1d if len(SIZES[name]) == 1 else prepare_kernel2d
    for numbers in (dict(batch=0), dict(channels=0), dict(batch=0, channels=0)):
        leaves = [t.requires_grad_() for t in problem(name, per_sample=per_sample, **numbers).tensors(torch.float32)]
        x, kernel, skip = leaves
        y = op(x, kernel, skip, gate=x, out_gate=x, **kwargs, backend=backend)
        assert y.shape == x.shape
        for leaf, gradient in zip(leaves, torch.autograd.grad(y.sum(), leaves), strict=True):
            assert gradient.shape == leaf.shape and not gradient.any()
        if numbers == dict(batch=0) and not per_sample:
            full = problem(name).tensors(torch.float32)
            prepared = prepare(full[0], kernel, skip, **kwargs, backend=backend)
            assert op(x.detach(), prepared).shape == x.shape


@pytest.mark.parametrize("name", OPERATORS)
def test_prepared_kernels_are_copied_and_pickled(name, backend):
    op, kwargs = OPERATORS[name]
    prepare = prepare_kernel1d if len(SIZES[name]) == 1 else prepare_kernel2d
    x, kernel, skip = problem(name).tensors(torch.float32)
    # A skip with a history, as a row of a parameter is
    skips = skip[None].clone().requires_grad_()
    prepared = prepare(x, kernel, skips[0], **kwargs, backend=backend)
    expected = op(x, prepared)
    for copied in (copy.copy(prepared), copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
        assert copied.backend == backend and torch.equal(op(x, copied), expected)
    with torch.no_grad():
        skips.zero_()
        kernel.zero_()
    assert torch.equal(op(x, prepared), expected)


def test_prepared_kernels_of_samples_are_for_their_batch(backend):
    x, kernel, skip = problem("linear", per_sample=True).tensors(torch.float32)
    prepared = prepare_kernel2d(x, kernel, skip, backend=backend)
    with pytest.raises(ValueError, match=r"x must have shape \(2, 3, 4, 5\) .* got \(1, 3, 4, 5\)"):
        long_conv2d(x[:1], prepared)


def test_default_dtype_and_device_have_no_part(backend):
    for name, (op, kwargs) in OPERATORS.items():
        if backend == "triton" and name != "linear":
            continue  # minutes in the interpreter, and one code for all
        channels = 1 if backend == "triton" else 5
        leaves = [t.requires_grad_() for t in problem(name, channels=channels).tensors(torch.float32)]

        def run(op=op, kwargs=kwargs, leaves=leaves):
            y = op(*leaves, gate=leaves[0], **kwargs, backend=backend)
            return [y, *torch.autograd.grad(y.square().sum(), leaves)]

        expected = run()
        for dtype in (torch.bfloat16, torch.float64):
            torch.set_default_dtype(dtype)
            try:
                given = run()
            finally:
                torch.set_default_dtype(torch.float32)
            assert all(map(torch.equal, given, expected))
        with torch.device("meta"):
            assert all(map(torch.equal, run(), expected))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(kernel=torch.ones(2, 7, 9)), ValueError, r"x has shape \(1, 3, 4, 5\), kernel \(2, 7, 9\)"),
        (dict(kernel=torch.ones(4, 7, 9)), ValueError, r"kernel \(4, 7, 9\)"),
        (dict(skip=torch.ones(1)), ValueError, r"skip must have shape \(C,\)"),
        (dict(kernel=torch.ones(3, 7, 9, device="meta")), ValueError, "x is on cpu, kernel on meta"),
        (dict(padding="Circular"), ValueError, "'linear' or 'circular', got 'Circular'"),
        (dict(kernel=torch.ones(3, 7, 9, dtype=torch.int32)), TypeError, "kernel must be .* got torch.int32"),
    ],
)
def test_the_operator_of_a_mixer_refuses_what_does_not_fit(change, error, message, backend):
    given = dict(tokens=torch.ones(1, 4, 5, 9), short_weight=torch.ones(9, 1, 3, 3), short_bias=None)
    given |= dict(kernel=torch.ones(3, 7, 9), skip=torch.ones(3), backend=backend)
    assert hyena_operator(**given).shape == (1, 3, 4, 5)
    with pytest.raises(error, match=message):
        hyena_operator(**{**given, **change})


@pytest.mark.parametrize("kernel_size", [(6,), (4, 6)])
def test_the_operator_of_a_mixer_has_the_gradients_of_its_parts(kernel_size, backend):
    """Extents that are even have no middle."""
    rank = len(kernel_size)
    tokens, weight = torch.randn(2, 3, 4, 9), torch.randn(9, 1, *[3] * rank)
    leaves = [t.requires_grad_() for t in (tokens, weight, torch.randn(3, *kernel_size), torch.randn(3))]
    tokens, weight, kernel, skip = leaves
    signals = tokens.flatten(1, 2) if rank == 1 else tokens
    filtered = (F.conv1d if rank == 1 else F.conv2d)(signals.movedim(-1, 1), weight, padding=1, groups=9)
    out_gate, gate, value = filtered.double().chunk(3, 1)
    op, settings = (long_conv1d, {}) if rank == 1 else (long_conv2d, dict(padding="circular"))
    of_kernel = kernel.double(), skip.double()
    expected = op(value, *of_kernel, gate=gate, out_gate=out_gate, **settings, backend="reference")
    given = hyena_operator(tokens, weight, None, kernel, skip, **settings, backend=backend)
    for value, truth in zip(
        [given, *torch.autograd.grad(given.square().sum(), leaves)],
        [expected, *torch.autograd.grad(expected.square().sum(), leaves)],
        strict=True,
    ):
        torch.testing.assert_close(value.double(), truth.double(), rtol=1e-4, atol=1e-4 * truth.abs().max().item())


def test_graphs_of_one_call_do_not_mix(backend):
    """Two calls with kept graphs, and one backward pass twice."""
    x, kernel, skip = (t.requires_grad_() for t in problem("centred").tensors(torch.float32))
    y = long_conv1d(x, kernel, skip, gate=x, backend=backend)
    first = torch.autograd.grad(y.sum(), x, retain_graph=True)
    long_conv1d(x, 2 * kernel, skip, backend=backend)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], first[0])
