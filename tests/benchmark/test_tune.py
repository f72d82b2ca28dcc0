"""Tuning: what is measured, that no wrong or slower kernel is taken, and that nothing measured is lost."""

import argparse
import functools
import json

import pytest
import torch

from hyena_vision.benchmark import tune
from hyena_vision.benchmark.__main__ import main
from hyena_vision.ops import table
from hyena_vision.ops.backends import BACKENDS
from hyena_vision.ops.table import USES, Row, card_of, read_table

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TINY = ["--device", DEVICE, "--dtype", "float32", "--dim", "1", "--tokens", "1", "--rounds", "1", "--repeats", "2"]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(BACKENDS["triton"].missing() is not None, reason="Triton is not installed"),
]
SHAPE = tune.Shape((4, 5), "float32", 3, 1)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HYENA_VISION_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(table.SWITCH, raising=False)
    table.forget_tables()
    yield
    table.forget_tables()


@pytest.fixture
def measured(monkeypatch):
    """Measuring takes no time: what would be measured, in order, with ratios that can be set."""
    shapes, ratios = [], {}

    def measure(shape, *args):
        shapes.append(shape)
        found = ratios.get(shape.size, 2.0)
        wrong = found if isinstance(found, str) else ""
        times = (None, None) if wrong else (1.0, found)
        return [Row(shape.size, shape.dtype, use, *times, wrong) for use in USES]

    monkeypatch.setattr(tune, "measure", measure)
    measure.shapes, measure.ratios = shapes, ratios
    return measure


def run(*argv):
    table.forget_tables()
    main(["tune", *TINY, *argv])
    return read_table(table.cache_path(card_of(DEVICE)), card_of(DEVICE))


@pytest.mark.slow
def test_two_sizes_from_end_to_end(capsys):
    models = ["--models", "hyena_vit_tiny", "hyena2d_vit_tiny", "--img-sizes", "64"]
    made = run(*models)
    assert {(row.size, row.use) for row in made.rows} == {(size, use) for size in ((4, 4), (16,)) for use in USES}
    assert all(row.wrong == "" and row.triton_ms > 0 and row.fft_ms > 0 for row in made.rows)
    printed = capsys.readouterr()
    assert str(made) in printed.out and "[2/2" in printed.err and "right" in printed.err


def test_sizes_are_those_of_the_models():
    assert tune.sizes_of(["hyena2d_vit_tiny", "hyena_vit_tiny"], [224, 64]) == [(16,), (4, 4), (196,), (14, 14)]
    # Mixers of four stages, of which attention has the last two, and what is beyond the largest tile is left out
    assert tune.sizes_of(["hpx_a_former_s18"], [224, 1056]) == [(28, 28), (56, 56), (132, 132)]
    assert tune.sizes_of(["hb_former_s18"], [32]) == [(1,), (4,), (16,), (64,)]


@pytest.mark.usefixtures("no_numbers")
def test_every_model_of_ours_has_sizes():
    sizes = tune.sizes_of(None, [224])
    assert {(14, 14), (28, 28), (196,), (784,), (56, 56), (7, 7), (49,)} <= set(sizes)


def test_the_table_says_what_is_right_and_at_least_as_fast(measured):
    measured.ratios |= {(4, 4): 0.9, (8, 8): "dx: relative RMS 1e-2"}
    made = run("--models", "hyena2d_vit_tiny", "--img-sizes", "64", "128", "224")
    assert {row.size: row.backend for row in made.rows} == {(4, 4): "fft", (8, 8): "fft", (14, 14): "triton"}


def test_what_was_measured_is_kept(measured):
    models = ["--models", "hyena2d_vit_tiny", "--img-sizes"]
    run(*models, "64")
    made = run(*models, "128")
    assert [shape.size for shape in measured.shapes] == [(4, 4), (8, 8)]
    assert {row.size for row in made.rows} == {(4, 4), (8, 8)}
    run(*models, "64", "128", "192", "--go-on")
    assert [shape.size for shape in measured.shapes][2:] == [(12, 12)]
    # What failed is tried again, and what was wrong or broke off is not
    measured.ratios |= {(16, 16): "failed: RuntimeError: busy", (4, 4): "y: relative RMS 2e-2", (2, 2): tune.UNFINISHED}
    for _ in range(2):
        run(*models, "256", "64", "32", "--go-on")
    assert [shape.size for shape in measured.shapes][3:] == [(2, 2), (16, 16), (16, 16)]
    measured.ratios[(4, 4)] = 0.5
    assert {row.size: row.backend for row in run(*models, "64").rows}[(4, 4)] == "fft"


def test_kernels_are_compiled_in_parallel_by_commands_that_are_ours(monkeypatch, capsys):
    """As on a GPU with 40 GB: each launches its share of the shapes and writes nothing."""
    commands = []
    monkeypatch.setattr(tune.torch.cuda, "mem_get_info", lambda device: (40 * 2**30, 80 * 2**30))
    monkeypatch.setattr(tune.os, "cpu_count", lambda: 6)
    monkeypatch.setattr(tune.subprocess, "Popen", lambda command, **kwargs: commands.append(command))
    argv = [
        "--models",
        "hyena2d_vit_tiny",
        "--img-sizes",
        "64",
        "128",
        "--dtype",
        "float32",
        "--dim",
        "2",
        "--tokens",
        "1",
    ]
    parser = argparse.ArgumentParser()
    tune.add_command(parser.add_subparsers())
    tune._start_compilers(parser.parse_args(["tune", "--device", "cuda", *argv]))
    assert len(commands) == 3 and tune._start_compilers(parser.parse_args(["tune", "--device", "cpu", *argv])) == []
    launched = []
    monkeypatch.setattr(tune._Case, "values", lambda self, inputs, dy, backend: launched.append((self.what, backend)))
    for command in commands[1:]:
        main([DEVICE if word == "cuda" else word for word in command[3:]])
    assert [what for what, _ in launched] == ["long convolution", "long convolution, channels last", "short filter"]
    assert {backend for _, backend in launched} == {"triton"} and not table.cache_path(card_of(DEVICE)).exists()


def test_a_kernel_that_never_comes_back_is_not_taken(measured, monkeypatch):
    def end(shape, *args):
        raise error

    def wrong():
        return {row.wrong for row in read_table(table.cache_path(card_of(DEVICE)), card_of(DEVICE)).rows}

    monkeypatch.setattr(tune, "measure", end)
    argv = ["--models", "hyena2d_vit_tiny", "--img-sizes", "64"]
    error = SystemExit(137)  # as if it was killed
    with pytest.raises(SystemExit):
        run(*argv)
    assert wrong() == {tune.UNFINISHED}
    # What a person breaks off is as it was before
    error = KeyboardInterrupt()
    monkeypatch.setattr(tune, "measure", measured)
    run(*argv)
    monkeypatch.setattr(tune, "measure", end)
    for size in ("64", "128"):
        with pytest.raises(KeyboardInterrupt):
            run("--models", "hyena2d_vit_tiny", "--img-sizes", size)
        assert wrong() == {""}


def test_a_damaged_table_is_made_anew(measured):
    path = table.cache_path(card_of(DEVICE))
    path.parent.mkdir(parents=True)
    path.write_text("{")
    assert {row.size for row in run("--models", "hyena2d_vit_tiny", "--img-sizes", "64").rows} == {(4, 4)}


def test_the_time_limit_leaves_the_rest_and_says_so(measured, capsys):
    with pytest.raises(SystemExit):
        run("--models", "hyena2d_vit_tiny", "--img-sizes", "64", "--time-limit", "-1")
    error = capsys.readouterr().err
    assert "4x4 float32" in error and "--go-on" in error and not measured.shapes


@pytest.mark.parametrize(
    ("argv", "expected"),
    [(["--models", "vit_tiny_patch16_224"], "no Hyena mixer"), (["--models", "hyena_vit_smal"], "hyena_vit_smal")],
)
def test_models_that_cannot_be_tuned_are_one_line(argv, expected, capsys):
    with pytest.raises(SystemExit):
        run(*argv)
    assert expected in capsys.readouterr().err.splitlines()[-1]


def test_a_folder_that_cannot_be_written_is_one_line_before_anything_is_measured(measured, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        run("--models", "hyena2d_vit_tiny", "--img-sizes", "64", "--output", str(tmp_path / "file" / "table.json"))
    error = capsys.readouterr().err.splitlines()[-1]
    assert "cannot be written" in error and "table.json" in error and not measured.shapes


def test_no_gpu_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(tune, "card_of", lambda device: None)
    with pytest.raises(SystemExit):
        main(["tune", *TINY])
    assert "NVIDIA GPU" in capsys.readouterr().err.splitlines()[-1]


def replaced(monkeypatch, name, change):
    """Change what the fused kernels give: `change(result, backend)`."""
    original = getattr(tune, name)

    @functools.wraps(original)
    def function(*args, backend, **kwargs):
        # Truths in their own way, so that a test takes no minute in the interpreter
        y = original(*args, backend="fft" if name != "gated_short_filter" else "torch", **kwargs)
        return change(y) if backend == "triton" else y

    monkeypatch.setattr(tune, name, function)


class Scaled(torch.autograd.Function):
    """Right forward, wrong backward."""

    @staticmethod
    def forward(ctx, y):
        return y.clone()

    @staticmethod
    def backward(ctx, dy):
        return dy * 1.001


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("long_conv2d", lambda y: y * 1.001, "long convolution, y: relative RMS 1.0e-03"),
        ("long_conv2d", Scaled.apply, "long convolution, dx: relative RMS 1.0e-03"),
        ("gated_short_filter", Scaled.apply, "short filter, dtokens: relative RMS 1.0e-03"),
        ("gated_short_filter", lambda y: y * float("nan"), "short filter, y: relative RMS nan"),
    ],
)
def test_wrong_numbers_are_found(name, change, expected, monkeypatch):
    for other in ("long_conv2d", "gated_short_filter"):
        replaced(monkeypatch, other, change if other == name else lambda y: y)
    found = tune.find_wrong(SHAPE, DEVICE, 1)
    assert found.startswith(expected) and "3e-06" in found
    rows = tune.measure(SHAPE, DEVICE, 1, 1)
    assert {row.backend for row in rows} == {"fft"} and {row.wrong for row in rows} == {found}


class Rounded(torch.autograd.Function):
    """As a perfect kernel: all in float64, then rounded once."""

    @staticmethod
    def forward(ctx, function, *inputs):
        leaves = [t if t is None else t.detach().double().requires_grad_() for t in inputs]
        with torch.enable_grad():
            y = function(*leaves)
        ctx.leaves, ctx.y, ctx.dtypes = leaves, y, [None if t is None else t.dtype for t in inputs]
        return y.detach().to(inputs[0].dtype)

    @staticmethod
    def backward(ctx, dy):
        wanted = [leaf for leaf in ctx.leaves if leaf is not None]
        found = iter(torch.autograd.grad(ctx.y, wanted, dy.double()))
        return None, *(None if dtype is None else next(found).to(dtype) for dtype in ctx.dtypes)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_perfect_kernels_are_right(dtype, monkeypatch):
    """Among millions of products some are rounded by far more than a tolerance for a test's thousand."""

    def convolve(x, kernel, skip=None, *, gate=None, out_gate=None, backend):
        def function(x, kernel, skip, gate, out_gate):
            return conv(x, kernel, skip, gate=gate, out_gate=out_gate, backend="fft")

        if backend == "fft" or not isinstance(kernel, torch.Tensor):
            return conv(x, kernel, skip, gate=gate, out_gate=out_gate, backend="fft")
        return Rounded.apply(function, x, kernel, skip, gate, out_gate)

    def short(x, weight, bias, *, signals, backend):
        def function(x, weight, bias):
            return filter_tokens(x, weight, bias, signals=signals, backend="torch")

        return function(x, weight, bias) if backend == "torch" else Rounded.apply(function, x, weight, bias)

    conv, filter_tokens, prepare = tune.long_conv2d, tune.gated_short_filter, tune.prepare_kernel2d
    monkeypatch.setattr(tune, "long_conv2d", convolve)
    monkeypatch.setattr(tune, "gated_short_filter", short)
    monkeypatch.setattr(tune, "prepare_kernel2d", lambda *args, backend: prepare(*args, backend="fft"))
    assert tune.find_wrong(tune.Shape((14, 14), dtype, 64, 2**14), DEVICE, 1) == ""


def test_one_wrong_channel_of_many_is_found(monkeypatch):
    def change(y):
        scale = torch.ones(y.shape[1], device=y.device)
        scale[-1] = 1.01
        return y * scale[:, None, None]

    replaced(monkeypatch, "gated_short_filter", lambda y: y)
    replaced(monkeypatch, "long_conv2d", change)
    assert "long convolution, y" in tune.find_wrong(tune.Shape((3, 3), "float32", 40, 1), DEVICE, 1)


def test_calls_that_differ_are_found(monkeypatch):
    calls = []

    def change(y):
        calls.append(1)
        return y + 1e-7 * (len(calls) == 4)  # of which the second has a prepared kernel

    replaced(monkeypatch, "gated_short_filter", lambda y: y)
    replaced(monkeypatch, "long_conv2d", change)
    assert tune.find_wrong(SHAPE, DEVICE, 3) == "long convolution: call 3 gave other bits than the first"


def test_errors_of_a_kernel_are_what_is_wrong(monkeypatch):
    def fail(*args):
        raise RuntimeError("out of resource: shared memory\nRequired: 9")

    monkeypatch.setattr(tune, "find_wrong", fail)
    rows = tune.measure(SHAPE, DEVICE, 1, 1)
    assert {row.wrong for row in rows} == {"failed: RuntimeError: out of resource: shared memory Required: 9"}
    monkeypatch.setattr(tune, "find_wrong", lambda *args: "")
    monkeypatch.setattr(tune, "time_uses", lambda *args: (_ for _ in ()).throw(torch.OutOfMemoryError("no memory")))
    assert {row.wrong for row in tune.measure(SHAPE, DEVICE, 1, 1)} == {"out of memory"}


def test_what_the_kernels_decline_is_what_is_wrong(monkeypatch):
    monkeypatch.setattr("hyena_vision.ops.triton.long_conv.reason_not", lambda x, kernel: "it is too large")
    assert "it is too large" in tune.measure(SHAPE, DEVICE, 1, 1)[0].wrong


def test_tables_are_json_that_people_can_read(measured):
    run("--models", "hyena2d_vit_tiny", "--img-sizes", "64")
    content = json.loads(table.cache_path(card_of(DEVICE)).read_text())
    assert set(content) == {"card", "capability", "versions", "rows"} and content["rows"][0]["size"] == [4, 4]
