"""What is particular to the `cpp` backend: gates and blocks of channels in compiled code, and how it is compiled."""

import dataclasses
import itertools
import tempfile

import pytest
import torch
from operators import OPERATORS, convolve_in_threads, needs_cpp

from hyena_vision.ops import (
    available_backends,
    long_conv1d,
    long_conv2d,
    prepare_kernel1d,
    prepare_kernel2d,
)
from hyena_vision.ops.backends import select
from hyena_vision.ops.cpp import library as cpp_library
from hyena_vision.ops.cpp import long_conv as long_conv_cpp
from hyena_vision.testing import LAYOUTS, TOLERANCES, Problem, assert_within_tolerance, lay_out

pytestmark = needs_cpp
ONE_D = ("causal", "centred")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def gated_values(name, tensors, gates, dtype, backend):
    """Output, and gradients of x, kernel, skip and the gates that there are."""
    op, kwargs = OPERATORS[name]
    leaves = [None if t is None else t.detach().to(dtype).requires_grad_() for t in (*tensors, *gates)]
    x, kernel, skip, gate, out_gate = leaves
    y = op(x, kernel, skip, gate=gate, out_gate=out_gate, **kwargs, backend=backend)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    y.backward(cotangent.to(y.dtype))
    return [y, *(leaf.grad for leaf in leaves if leaf is not None)]


def assert_rounded_once(value, truth, dtype, what):
    """Products of gates have a long tail: each number may be off by its own rounding and the errors of float32 sums."""
    relative, worst = TOLERANCES[torch.float32]
    error, rms = (value.double() - truth).abs(), truth.square().mean().sqrt()
    own = 0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2 * 1.01 * truth.abs()
    assert (error <= own + worst * rms + torch.finfo(dtype).smallest_normal).all(), (
        f"{what}: {(error - own).max() / rms}"
    )
    assert (error - own).clamp_min(0).square().mean().sqrt() <= relative * rms, what


def check(name, problem, dtype=torch.float32, which=(True, True)):
    tensors = problem.tensors(dtype)
    gates = [dataclasses.replace(problem, skip=False).tensors(dtype, seed=seed)[0] for seed in (1, 2)]
    gates = [gate if wanted else None for gate, wanted in zip(gates, which, strict=True)]
    values = gated_values(name, tensors, gates, dtype, "cpp")
    truths = gated_values(name, tensors, gates, torch.float64, "reference")
    for value, truth in zip(values, truths, strict=True):
        assert value.dtype == dtype
        assert_rounded_once(value.detach(), truth.detach(), dtype, (name, problem, dtype, which))


def problem_for(name, *, image=(5, 9), sequence=(37,), taps=None, **kwargs):
    size = sequence if name in ONE_D else image
    return Problem(size, taps or tuple(2 * n - 1 for n in size), **kwargs)


@pytest.mark.parametrize("name", OPERATORS)
def test_channels_of_any_number(name, nan_filled_empties):
    # One block that is not full, a full one, one more channel, several that are read together
    for channels in (1, 7, 16, 17, 83):
        for layout in LAYOUTS:
            check(name, problem_for(name, channels=channels, layout=layout, batch=3))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_gates_in_every_dtype(name, dtype, nan_filled_empties):
    for which in itertools.product((True, False), repeat=2):
        for per_sample in (False, True):
            check(name, problem_for(name, channels=18, batch=3, per_sample=per_sample), dtype, which)


@pytest.mark.parametrize("name", OPERATORS)
def test_sizes(name):
    # Each radix alone and joined, lengths that are not smooth, a single line or row
    for n in (1, 2, 3, 4, 5, 7, 8, 11, 14, 16, 25, 31, 32, 35, 49, 61, 64):
        for image in [(n, 3)] if name in ONE_D else [(n, 3), (2, n)]:
            check(name, problem_for(name, image=image, sequence=(n,), channels=3, batch=1))


@pytest.mark.parametrize("name", OPERATORS)
def test_kernels_of_any_extent(name):
    # Lines and rows shorter than the signal, which are folded; taps that reach nothing
    for taps in (1, 2, 3, 9, 10, 40, 57):
        axes = 1 if name in ONE_D else 2
        check(name, problem_for(name, image=(12, 15), sequence=(29,), taps=(taps,) * axes, channels=3))


@pytest.mark.parametrize("name", OPERATORS)
def test_long_signals(name):
    size = (4100,) if name in ONE_D else (130, 66)
    problem = Problem(size, tuple(2 * n - 1 for n in size), channels=2, batch=1)
    op, kwargs = OPERATORS[name]
    results = []
    for dtype, backend in ((torch.float32, "cpp"), (torch.float64, "fft")):
        leaves = [t.to(dtype).requires_grad_() for t in problem.tensors(torch.float32)]
        y = op(*leaves, **kwargs, backend=backend)
        y.backward(problem.tensors(torch.float32, seed=3)[0].to(dtype))
        results.append([y, *(leaf.grad for leaf in leaves)])
    for value, truth in zip(*results, strict=True):
        assert_within_tolerance(value, truth, torch.float32)


def test_gate_of_another_dtype():
    x, kernel, skip = Problem((6, 5), (11, 9)).tensors(torch.float32)
    gate = torch.randn(x.shape)
    for x_dtype, gate_dtype in ((torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)):
        leaves = [x.to(x_dtype).requires_grad_(), gate.to(gate_dtype).requires_grad_()]
        y = long_conv2d(leaves[0], kernel, skip, out_gate=leaves[1], backend="cpp")
        assert y.dtype == torch.float32
        truth = (
            long_conv2d(leaves[0].double(), kernel.double(), skip.double(), backend="reference") * leaves[1].double()
        )
        assert_within_tolerance(y, truth, torch.float32)
        for grad, leaf, expected in zip(
            torch.autograd.grad(y.sum(), leaves), leaves, torch.autograd.grad(truth.sum(), leaves), strict=True
        ):
            assert grad.dtype == leaf.dtype
            assert_within_tolerance(grad, expected.double(), leaf.dtype)
    # Sums in double precision are another backend's
    assert long_conv2d(x, kernel, skip, gate=gate.double()).dtype == torch.float64
    with pytest.raises(RuntimeError, match="'cpp' cannot run this call: its sums are float32, and x is float64"):
        long_conv2d(x, kernel, skip, gate=gate.double(), backend="cpp")
    assert select(None, x, kernel).name == "cpp"
    assert select(None, x.double(), kernel).name == "fft"


@pytest.mark.parametrize("value", [float("nan"), 3.4e38, 1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8), 1e-40])
def test_bfloat16_is_rounded_as_torch_does(value):
    x = torch.full((1, 1, 1), 1.0, dtype=torch.bfloat16)
    y = long_conv1d(x, torch.tensor([[value]]), causal=True, backend="cpp")
    torch.testing.assert_close(y.flatten(), torch.tensor([value]).bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_bad_numbers_stay_in_their_sample_and_channel():
    x, kernel, skip = Problem((5, 7), (9, 13), batch=3, channels=18).tensors(torch.float32)
    clean = long_conv2d(x, kernel, skip, backend="cpp")
    for bad in (float("nan"), float("inf")):
        dirty = x.clone()
        dirty[1, 2, 0, 0] = bad
        y = long_conv2d(dirty, kernel, skip, backend="cpp")
        touched = (y != clean).flatten(2).any(-1)
        assert touched.sum() == 1 and touched[1, 2] and not y[1, 2].isfinite().any()
        assert torch.equal(long_conv2d(x, kernel, skip, backend="cpp"), clean)


@pytest.mark.parametrize("name", OPERATORS)
def test_expanded_gradient_and_batch_of_none(name):
    op, kwargs = OPERATORS[name]
    prepare = prepare_kernel1d if name in ONE_D else prepare_kernel2d
    leaves = [t.requires_grad_() for t in problem_for(name).tensors(torch.float32)]
    y = op(*leaves, **kwargs, backend="cpp")
    truth = op(*(t.double() for t in leaves), **kwargs, backend="reference")
    for value, expected in zip(*(torch.autograd.grad(t.sum(), leaves) for t in (y, truth)), strict=True):
        assert_within_tolerance(value, expected.double(), torch.float32)
    x, kernel, skip = leaves
    y = op(x[:0], kernel, skip, **kwargs, backend="cpp")
    assert y.shape == x[:0].shape
    assert all((grad == 0).all() for grad in torch.autograd.grad(y.sum(), (kernel, skip)))
    assert op(x[:0].detach(), prepare(x[:0], kernel, skip, **kwargs, backend="cpp")).shape == x[:0].shape


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("name", OPERATORS)
def test_prepared_kernels(name, per_sample):
    op, kwargs = OPERATORS[name]
    prepare = prepare_kernel1d if name in ONE_D else prepare_kernel2d
    x, kernel, skip = problem_for(name, channels=37, per_sample=per_sample, layout="channels_last").tensors(
        torch.float32
    )
    gate, out_gate = torch.randn_like(x), torch.randn_like(x)
    truth = op(*(t.double() for t in (x * gate, kernel, skip)), **kwargs, backend="reference") * out_gate
    for given in (kernel, kernel.movedim(-1, 0).contiguous().movedim(0, -1), lay_out(kernel, "channels_last")):
        prepared = prepare(x, given, skip, **kwargs, backend="cpp")
        assert_within_tolerance(op(x, prepared, gate=gate, out_gate=out_gate), truth, torch.float32)


@pytest.mark.parametrize("name", OPERATORS)
def test_registered_as_torch_asks(name):
    for gated, options in ((True, {}), (False, dict(layout="channels_last", per_sample=True, skip=False))):
        problem = problem_for(name, **options)
        x, kernel, skip = (None if t is None else t.requires_grad_() for t in problem.tensors(torch.float32))
        gates = [torch.randn_like(x).requires_grad_() if gated else None for _ in range(2)]
        centre = [0 if name == "causal" else taps // 2 for taps in problem.kernel_size]
        arguments = (x, kernel, skip, *gates, centre, name == "circular")
        torch.library.opcheck(torch.ops.hyena_vision.long_conv, (*arguments, "cpp"))


def test_keeps_what_came_in_and_no_spectra():
    x, kernel, skip = (t.requires_grad_() for t in Problem((16, 16), (31, 31)).tensors(torch.float32))
    gate = torch.randn_like(x)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        long_conv2d(x, kernel, skip, gate=gate, out_gate=gate, backend="cpp")
    assert {t.data_ptr() for t in saved} <= {t.data_ptr() for t in (x, kernel, skip, gate)}


@pytest.mark.parametrize("which", range(3))
def test_signs_that_are_not_in_memory(which):
    """A negative view is its base with a mark, which only torch's own calls see."""
    tensors = Problem((6, 5), (11, 9), layout="channels_last").tensors(torch.float32)
    tensors[which] = torch._neg_view(tensors[which])
    x, kernel, skip = tensors
    truth = long_conv2d(x.double(), kernel.double(), skip.double(), backend="reference")
    assert_within_tolerance(long_conv2d(x, kernel, skip, backend="cpp"), truth, torch.float32)
    prepared = prepare_kernel2d(x, kernel, skip, backend="cpp")
    assert_within_tolerance(long_conv2d(x, prepared), truth, torch.float32)
    gated = long_conv2d(x, prepared, out_gate=torch._neg_view(torch.ones_like(x)))
    assert_within_tolerance(gated, -truth, torch.float32)


@pytest.mark.parametrize("tasks", [1, 2, 100])
@pytest.mark.parametrize("name", OPERATORS)
def test_gradients_summed_in_parts_of_the_batch(name, tasks, monkeypatch):
    monkeypatch.setattr(long_conv_cpp, "_TASKS", tasks)
    check(name, problem_for(name, batch=5, channels=18))


def test_prepared_kernel_of_another_machine_is_refused():
    x, kernel, skip = Problem((6, 5), (11, 9)).tensors(torch.float32)
    prepared = prepare_kernel2d(x, kernel, skip, backend="cpp")
    with pytest.raises(ValueError, match="device that the kernel was prepared for: cpu, got meta"):
        long_conv2d(x.to("meta"), prepared)
    (values,) = prepared.tensors
    other = dataclasses.replace(prepared, tensors=(torch.cat([values, values], -1),))
    with pytest.raises(RuntimeError, match="prepared for vectors of another length"):
        long_conv2d(x, other)


@pytest.mark.parametrize("name", OPERATORS)
def test_compiled_training(name):
    op, kwargs = OPERATORS[name]
    tensors = problem_for(name, layout="channels_last").tensors(torch.float32)
    gate = torch.randn_like(tensors[0])

    def step(op, dtype, backend):
        leaves = [t.detach().to(dtype).requires_grad_() for t in (*tensors, gate)]
        y = op(*leaves[:3], gate=leaves[3], out_gate=leaves[3], **kwargs, backend=backend)
        return [y, *torch.autograd.grad(y.square().sum(), leaves)]

    torch._dynamo.reset()
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    for backend in ("cpp", None):
        for value, truth in zip(
            step(compiled, torch.float32, backend), step(op, torch.float64, "reference"), strict=True
        ):
            assert_within_tolerance(value.detach(), truth.detach(), torch.float32)


def test_double_backward():
    x, kernel, skip = (t.requires_grad_() for t in Problem((3, 4), (5, 7)).tensors(torch.float32))
    gate = torch.randn_like(x).requires_grad_()
    leaves, results = (x, kernel, skip, gate), []
    for dtype, backend in ((torch.float32, "cpp"), (torch.float64, "reference")):
        u, k, d, g = (leaf.to(dtype) for leaf in leaves)
        y = long_conv2d(u, k, d, gate=g, out_gate=g, backend=backend)
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        results.append(torch.autograd.grad(sum(t.square().sum() for t in first), leaves))
    for value, truth in zip(*results, strict=True):
        assert_within_tolerance(value, truth.double(), torch.float32)


def test_threads_of_callers_and_of_its_own():
    problems = [
        Problem((6, 5), (11, 9), channels=40),
        Problem((9, 14), (17, 27)),
        Problem((20, 5), (3, 9), channels=20),
    ]
    convolve_in_threads("cpp", problems, threads_of_each=3)


# ---- how it is compiled


def files(tmp_path):
    return sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file())


@pytest.mark.parametrize(("capability", "lanes"), [("AVX2", 8), ("DEFAULT", 4)])
def test_other_instructions(load, monkeypatch, capability, lanes):
    if torch.backends.cpu.get_cpu_capability() not in ("AVX512", "AVX2"):
        pytest.skip("this CPU has neither")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    quick = ["-O1" if flag == "-O3" else flag for flag in cpp_library._FLAGS]
    monkeypatch.setattr(cpp_library, "_FLAGS", quick)
    library, missing = load(CXX="")
    assert missing is None and library.hyena_lanes() == lanes
    monkeypatch.setattr(long_conv_cpp, "library", lambda: library)
    long_conv_cpp.forget_plans()
    try:
        for name in OPERATORS:
            for dtype in DTYPES:
                check(name, problem_for(name, image=(14, 11), sequence=(50,), channels=21), dtype)
    finally:
        long_conv_cpp.forget_plans()


def test_made_once_and_again_if_empty(load, compiler, tmp_path):
    counting = tmp_path / "compiler"
    counting.write_text(f'#!/bin/sh\necho >> {tmp_path}/calls\nexec {compiler} "$@"\n')
    counting.chmod(0o755)

    def calls(folder="cache"):
        assert load(CXX=str(counting), HYENA_VISION_CACHE=str(tmp_path / folder))[1] is None
        return len((tmp_path / "calls").read_text().splitlines())

    assert calls() == calls() == 1
    (made,) = files(tmp_path)
    empty = tmp_path / "other" / made.relative_to(tmp_path / "cache")
    empty.parent.mkdir(0o700, parents=True)
    empty.write_bytes(b"")  # as after a loss of power
    assert calls("other") == 2
    assert list(empty.parent.iterdir()) == [empty] and empty.stat().st_size == made.stat().st_size


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"PATH": "/nowhere", "CXX": ""}, "there is no C++ compiler: neither c++, g++ nor clang++ is in PATH, and CXX"),
        ({"CXX": "/no/such/compiler --fast"}, "No such file or directory: '/no/such/compiler'"),
        ({"CXX": "false"}, "false -std=c++17"),
        ({"CXX": "c++ --no-such-option"}, "no-such-option"),
        ({"CXX": 'c++ "'}, "reading CXX failed: No closing quotation"),
        ({"CXX": " ", "PATH": "/nowhere"}, "there is no C++ compiler"),
        ({"CXX": "sh -c 'printf \"\\377 error\" >&2; exit 1'"}, "failed: \ufffd error"),
        ({"CXX": "sh -c 'echo >&2; exit 1'"}, "returned non-zero exit status 1"),
        ({"HYENA_VISION_CPP": "0"}, "HYENA_VISION_CPP is 0"),
    ],
)
def test_says_what_is_missing(load, tmp_path, environment, reason):
    library, missing = load(**environment)
    assert library is None and reason in missing and "\n" not in missing
    assert not (tmp_path / "cache").exists() or files(tmp_path) == []


def test_without_it_the_next_backend_runs(monkeypatch):
    x, kernel, _ = Problem((4, 5), (7, 9)).tensors(torch.float32)
    monkeypatch.setattr(cpp_library, "load", lambda: (None, "there is no C++ compiler"))
    with pytest.raises(RuntimeError, match="'cpp' is not available on this machine: there is no C\\+\\+ compiler"):
        long_conv2d(x, kernel, backend="cpp")
    assert select(None, x, kernel).name == "fft"
    assert "cpp" not in available_backends()


def test_folder_that_cannot_be_written(load, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    library, missing = load(HYENA_VISION_CACHE=str(tmp_path / "file" / "folder"))
    assert missing is None and library.hyena_lanes() > 0
    assert list(temporary.iterdir()) == []
