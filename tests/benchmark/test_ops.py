import importlib.util
import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from hyena_vision.benchmark import measure, ops
from hyena_vision.benchmark.__main__ import main
from hyena_vision.benchmark.check import check_ops, find_errors
from hyena_vision.benchmark.contenders import CPU_CONTENDERS, Setting, plain_fft, sdpa
from hyena_vision.benchmark.measure import SpeedRow
from hyena_vision.benchmark.ops import CONTENDERS, make_call
from hyena_vision.benchmark.tables import read_csv
from hyena_vision.ops import long_conv1d, long_conv2d
from hyena_vision.testing import Problem, assert_within_tolerance
from hyena_vision.training.errors import UserError

TINY = Setting(grid=5, dim=8, heads=2, batch_size=2)
SMALL = dict(dim=8, heads=2, batch_size=2, memory=False)


@pytest.fixture
def register(monkeypatch):
    """Return a function that replaces attributes of an entry of the registry."""

    def register(name: str, **changes) -> None:
        monkeypatch.setitem(CONTENDERS, name, replace(CONTENDERS[name], **changes))

    return register


@pytest.fixture
def no_timing(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("something was timed")

    monkeypatch.setattr(ops, "measure", fail)


def measure_ops(*args, **kwargs):
    return list(ops.measure_ops(*args, **kwargs))


def test_plain_ffts_are_the_direct_sums():
    for direct, size in ((long_conv2d, (4, 7)), (long_conv1d, (9,))):
        x, kernel, _ = Problem(size, tuple(2 * n - 1 for n in size), skip=False).tensors()
        assert_within_tolerance(plain_fft(x, kernel), direct(x, kernel, backend="reference"), torch.float64)


def test_sdpa_is_attention_between_its_projections():
    qkv = torch.randn(2, 5, 12, dtype=torch.float64)
    q, k, v = (qkv[..., start : start + 4].reshape(2, 5, 2, 2) for start in (0, 4, 8))
    weights = torch.einsum("bnhd,bmhd->bhnm", q / 2**0.5, k).softmax(-1)
    torch.testing.assert_close(sdpa(qkv, 2), torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_check_passes_what_is_right(dtype):
    check_ops(CPU_CONTENDERS, [replace(TINY, dtype=dtype, backward=True), replace(TINY, dtype=dtype, grid=12)])


def test_check_refuses_a_wrong_operator_before_anything_is_timed(register, no_timing, capsys):
    register("long_conv2d", function=lambda x, kernel: long_conv2d(x, kernel * 1.001))
    argv = ["ops", "--device", "cpu", "--grids", "4", "5", "--dim", "8", "--heads", "2", "--check"]
    with pytest.raises(SystemExit) as stopped:
        main([*argv, "--only", "sdpa", "rfft2", "long_conv2d"])
    error = capsys.readouterr().err
    assert stopped.value.code == 1
    assert "long_conv2d at grid 4" in error and "long_conv2d at grid 5" in error and "RMS 1.00e-03" in error
    assert "rfft2 at" not in error


def check(name, setting):
    check_ops({name: CONTENDERS[name]}, [setting])


def test_check_refuses_a_wrong_gradient_and_a_wrong_shape(register):
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return 2 * grad

    register("rfft", function=lambda x, kernel: plain_fft(x, Doubled.apply(kernel)))
    check("rfft", TINY)
    with pytest.raises(UserError, match="nothing was timed: rfft at grid 5: gradient of kernel"):
        check("rfft", replace(TINY, backward=True))
    register("rfft2", function=lambda x, kernel: plain_fft(x, kernel)[:1])
    with pytest.raises(UserError, match=r"rfft2 at grid 5: result has shape \(1, 8, 5, 5\)"):
        check("rfft2", TINY)


def test_check_tells_what_fails_and_what_has_no_memory(register, capsys):
    def lose(x, kernel):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def fail(x, kernel):
        raise ValueError("odd size")

    register("rfft", function=lose)
    check("rfft", TINY)
    assert "rfft at grid 5: not checked, out of memory" in capsys.readouterr().err
    register("rfft", function=fail)
    with pytest.raises(UserError, match="rfft at grid 5: failed: ValueError: odd size"):
        check("rfft", TINY)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mixer_may_err_by_its_roundings_and_no_more(register, dtype):
    wrong = 2e-5 if dtype == torch.float32 else 2e-2
    register("hyena2d", function=lambda mixer, signals: mixer.mix(signals) * (1 + wrong))
    (error,) = find_errors(CONTENDERS["hyena2d"], replace(TINY, dtype=dtype))
    assert f"result in {dtype}: relative RMS" in error


def test_what_is_kept_between_calls_is_checked(register):
    calls = []

    def later_wrong(x, kernel):
        calls.append(x)
        return plain_fft(x, kernel) * (1 if len(calls) == 1 else 1.1)

    register("rfft2", function=later_wrong)
    with pytest.raises(UserError, match="rfft2 at grid 5: result"):
        check("rfft2", TINY)


@pytest.mark.parametrize(("grid", "backend"), [(5, "reference"), (12, "fft")])
def test_truth_of_a_mixer_runs_on_a_path_that_is_no_contender(monkeypatch, grid, backend):
    kind, used = type(CONTENDERS["hyena2d"].inputs(TINY)[0]), []
    mix = kind.mix

    def record(mixer, signals, cond=None):
        used.append((mixer.backend, signals.dtype))
        return mix(mixer, signals, cond)

    monkeypatch.setattr(kind, "mix", record)
    assert find_errors(CONTENDERS["hyena2d"], replace(TINY, grid=grid)) == []
    assert used == [(None, torch.float32)] * 2 + [(backend, torch.float64)]


def test_backward_reaches_parameters_of_the_filter(monkeypatch):
    seen = []
    grad = torch.autograd.grad

    def record(y, leaves, weights, **kwargs):
        gradients = grad(y, leaves, weights, **kwargs)
        seen.extend(zip(leaves, gradients, strict=True))
        return gradients

    monkeypatch.setattr(torch.autograd, "grad", record)
    y = make_call("hyena2d", replace(TINY, backward=True))()
    assert y.shape == (2, 5, 5, 8)
    shapes = [tuple(leaf.shape) for leaf, gradient in seen if gradient is not None]
    assert (2, 5, 5, 24) in shapes and len(shapes) > 5


def test_peer_that_is_not_installed_is_a_row_if_it_was_asked_for(register, monkeypatch, capsys):
    register("subquadratic_ops", reason=lambda setting: "package no_such_package is not installed")
    names = "sdpa", "rfft2", "long_conv1d", "subquadratic_ops"
    monkeypatch.setattr(ops, "CONTENDERS", {name: CONTENDERS[name] for name in names})
    argv = "ops --device cpu --grids 4 --dim 8 --heads 2 --rounds 1 --no-memory".split()
    main([*argv, "--only", "rfft2", "subquadratic_ops"])
    assert "package no_such_package is not installed" in capsys.readouterr().out
    main(argv)
    printed = capsys.readouterr().out
    assert "| long_conv1d" in printed and "subquadratic_ops" not in printed


def test_fused_kernels_are_what_the_others_are():
    pytest.importorskip("triton")
    for name in ("triton:hyena1d", "triton:hyena2d", "triton:long_conv1d", "triton:long_conv2d"):
        assert find_errors(CONTENDERS[name], replace(TINY, batch_size=1, backward=True)) == []


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", ["gated1d", "gated2d", "triton:gated1d", "triton:gated2d"])
def test_gated_convolutions_are_what_their_parts_are(name, backward):
    if name.startswith("triton"):
        pytest.importorskip("triton")
    x, kernel = CONTENDERS[f"long_conv{name[-2:]}"].inputs(TINY)
    inputs = CONTENDERS[name].inputs(replace(TINY, backward=backward))
    x, kernel, gate, out_gate = (t.double() for t in (x, kernel, *inputs[2:]))
    y = CONTENDERS[name].function(*inputs)
    assert_within_tolerance(y, out_gate * plain_fft(gate * x, kernel), torch.float32)


def test_traffic_is_told_as_a_share_of_a_copys():
    rows = {row.name: row for row in measure_ops(["copy", "gated2d", "sdpa"], [6], **SMALL)}
    least = 4 * 4 * 2 * 36 * 8  # float32 numbers, images, tokens, channels
    assert rows["gated2d"].gb_per_s == pytest.approx(least / rows["gated2d"].ms / 1e6)
    assert rows["gated2d"].copy_share == pytest.approx(rows["gated2d"].gb_per_s / rows["copy"].gb_per_s)
    assert rows["copy"].copy_share == 1
    rows = measure_ops(["gated2d", "copy"], [5], backward=True, **SMALL)
    assert rows[0].gb_per_s == pytest.approx(4 * 11 * 2 * 25 * 8 / rows[0].ms / 1e6)
    assert rows[0].copy_share == pytest.approx(rows[0].gb_per_s / rows[1].gb_per_s)


def test_operator_that_cannot_run_says_why_in_its_row(monkeypatch):
    assert "package subquadratic_ops_torch is not installed" in CONTENDERS["subquadratic_ops"].reason(TINY)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    (row,) = measure_ops(["subquadratic_ops"], [5], **SMALL)
    assert row.status == "needs CUDA" and row.ms is None and row.ratio is None
    reason = CONTENDERS["subquadratic_ops"].reason
    assert reason(replace(TINY, device="cuda", grid=64)) is None
    assert "64" in reason(replace(TINY, device="cuda", grid=65))


@pytest.mark.parametrize("grid", [3, 8, 13])
def test_nvidias_kernel_is_called_by_its_convention(monkeypatch, grid):
    """A stand-in that crops where the real one does, at half of its transform."""
    module = ModuleType("subquadratic_ops_torch.fused_fft_conv2d")

    def fused_fft_conv2d(x, weight, fft_size):
        size, half = (fft_size, fft_size), fft_size // 2
        assert fft_size in (8, 16, 32, 64, 128) and max(weight.shape[-2:]) <= fft_size and grid <= half
        y = torch.fft.irfft2(torch.fft.rfft2(x, s=size) * torch.fft.rfft2(weight, s=size), s=size)
        return y[..., half : half + grid, half : half + grid]

    module.fused_fft_conv2d = fused_fft_conv2d
    monkeypatch.setitem(sys.modules, "subquadratic_ops_torch", ModuleType("subquadratic_ops_torch"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert find_errors(CONTENDERS["subquadratic_ops"], replace(TINY, grid=grid, backward=True)) == []


def test_operator_without_memory_is_a_row_and_the_others_go_on(register):
    def big(qkv, heads):
        raise torch.OutOfMemoryError("CUDA out of memory")

    register("rfft", function=big)
    rows = measure_ops(["sdpa", "rfft", "rfft2"], [5], rounds=2, **SMALL)
    assert [row.status for row in rows] == ["ok", "out of memory", "ok"]
    assert rows[1].ms is None and rows[1].ratio is None
    assert rows[0].ratio == 1 and 0 < rows[2].ratio_low <= rows[2].ratio <= rows[2].ratio_high


def test_what_dies_of_its_memory_is_not_timed(monkeypatch, register):
    def peak(make, device, calls):
        if make.args == ("rfft",):
            raise torch.OutOfMemoryError("killed")
        return 12.5

    monkeypatch.setattr(measure, "peak_memory", peak)
    register("rfft", function=None)
    rows = measure_ops(["rfft", "rfft2"], [5], rounds=1, **SMALL | {"memory": True})
    assert [(row.peak_mb, row.status) for row in rows] == [(None, "out of memory"), (12.5, "ok")]
    assert rows[1].ratio is None


def test_command_writes_rows_and_figure(tmp_path, capsys):
    argv = ["ops", "--device", "cpu", "--grids", "4", "5", "--dim", "8", "--heads", "2", "--rounds", "2", "--check"]
    main([*argv, "--backward", "--no-memory", "--output", str(tmp_path), "--only", "sdpa", "hyena1d"])
    rows = read_csv(tmp_path / "ops.csv", SpeedRow)
    assert [(row.name, row.size, row.tokens) for row in rows] == [
        (name, grid, grid**2) for grid in (4, 5) for name in ("sdpa", "hyena1d")
    ]
    assert {(row.mode, row.dtype, row.batch_size, row.heads) for row in rows} == {("forward+backward", "float32", 1, 2)}
    assert all(row.ms > 0 for row in rows)
    assert rows[0].machine in capsys.readouterr().out
    assert (tmp_path / "ops.png").stat().st_size > 1000


def test_dim_that_heads_do_not_divide_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["ops", "--dim", "8", "--heads", "3"])
    assert stopped.value.code == 1 and "multiple" in capsys.readouterr().err
