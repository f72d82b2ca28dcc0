"""`models`: rows of models that take turns, models that fail, and what the command writes."""

import pytest
import torch

from hyena_vision.benchmark import measure, models
from hyena_vision.benchmark.__main__ import main
from hyena_vision.benchmark.measure import SpeedRow
from hyena_vision.benchmark.step import count_flops, create_model, make_step, on_meta
from hyena_vision.benchmark.tables import read_csv
from hyena_vision.layers import Hyena2d
from hyena_vision.training.errors import UserError

VIT, HYENA = "vit_tiny_patch16_224", "hyena2d_vit_tiny"
TINY = dict(img_sizes=[32], batch_size=2, rounds=2, memory=False)


# What is timed here need not be numbers
pytestmark = pytest.mark.usefixtures("no_numbers")


@pytest.fixture
def steps(monkeypatch):
    """Steps that do nothing, of which those made are listed; for tests of what is told and not of what is run."""
    made = []

    def make(name, **settings):
        made.append(settings | {"name": name})
        return lambda: None

    monkeypatch.setattr(models, "make_step", make)
    return made


def measure_models(*args, **kwargs):
    return list(models.measure_models(*args, **kwargs))


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("vit_tinny", "knows no model 'vit_tinny'"),
        (f"triton:{VIT}", "not a Hyena model"),
    ],
)
def test_model_that_cannot_be_made_is_named(name, error, steps):
    with pytest.raises(UserError, match=error):
        measure_models([VIT, name], **TINY)
    assert steps == []


def test_base_that_is_not_measured_is_refused():
    with pytest.raises(UserError, match=f"must be one of the models, {HYENA}; got '{VIT}'"):
        measure_models([HYENA], base=VIT, **TINY)


def test_model_is_compiled_in_the_mode_asked_for(monkeypatch):
    modes = []
    monkeypatch.setattr(torch, "compile", lambda model, mode, dynamic: modes.append((mode, dynamic)) or model)
    (row,) = measure_models([VIT], compile="reduce-overhead", **TINY)
    assert modes == [("reduce-overhead", False)] and row.compile == "reduce-overhead"


def test_compiled_models_have_no_memory_on_a_cpu(monkeypatch, steps):
    monkeypatch.setattr(measure, "peak_memory", lambda *args: 1.0)
    for compile in ("no", "default"):
        (row,) = measure_models([VIT], compile=compile, **TINY | {"memory": True})
        assert row.peak_mb == (1 if compile == "no" else None)


@pytest.mark.parametrize(("train", "reparam"), [(False, True), (False, False), (True, True)])
def test_models_are_reparameterized_for_inference_alone(train, reparam, monkeypatch):
    made = []

    def create(*args, **kwargs):
        made.append(create_model(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr("hyena_vision.benchmark.step.create_model", create)
    (row,) = measure_models(["hyena2d_iso_tiny"], train=train, reparam=reparam, **TINY | {"rounds": 1})
    assert row.reparam == (reparam and not train)
    mixers = [[m for m in model.modules() if isinstance(m, Hyena2d)] for model in made if not on_meta_device(model)]
    assert [{mixer.reparameterized for mixer in some} for some in mixers] == [{row.reparam}]


def on_meta_device(model) -> bool:
    return next(model.parameters()).device.type == "meta"


def test_rows_of_models_side_by_side():
    rows = measure_models([HYENA, VIT], **TINY)
    assert [row.name for row in rows] == [HYENA, VIT]
    assert {(row.size, row.tokens, row.batch_size, row.base, row.status) for row in rows} == {(32, 4, 2, VIT, "ok")}
    assert rows[1].ratio == 1 and rows[0].ratio > 0
    for row in rows:
        assert row.images_per_s_low <= row.images_per_s <= row.images_per_s_high
        assert row.ratio_low <= row.ratio <= row.ratio_high
        assert row.ms == pytest.approx(2 * 1000 / row.images_per_s)
        assert row.gflops == count_flops(on_meta(row.name, 32), torch.empty(1, 3, 32, 32, device="meta")) / 1e9
        assert row.peak_mb is None


def test_a_model_without_blocks_has_no_tokens(steps):
    (row,) = measure_models(["resnet18"], **TINY)
    assert row.status == "ok" and row.tokens is None and row.gflops > 0.05


def test_models_that_fail_are_rows_and_the_others_go_on(monkeypatch):
    def step(name, **settings):
        if name == HYENA:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return make_step(name, **settings)

    monkeypatch.setattr(models, "make_step", step)
    hyena, vit = measure_models([HYENA, VIT], **TINY)
    assert (hyena.status, hyena.images_per_s, hyena.ratio, hyena.tokens) == ("out of memory", None, None, 4)
    assert vit.status == "ok" and vit.images_per_s > 0 and vit.ratio == 1


def test_a_size_of_which_no_model_can_be_made_is_a_row(monkeypatch):
    def create(name, img_size, **kwargs):
        if img_size == 40:
            raise ValueError("16 does not divide 40")
        return create_model(name, img_size, **kwargs)

    monkeypatch.setattr("hyena_vision.benchmark.step.create_model", create)
    small, large = measure_models([VIT], **TINY | {"img_sizes": [40, 32]})
    assert small.status == "failed: ValueError: 16 does not divide 40" and small.tokens is small.gflops is None
    assert large.status == "ok" and large.tokens == 4


def test_what_dies_of_its_memory_is_not_timed(monkeypatch, steps):
    def peak(make, device, calls):
        if make.args == (VIT,):
            raise torch.OutOfMemoryError("killed")
        return 100.0 * calls

    monkeypatch.setattr(measure, "peak_memory", peak)
    rows = [
        row for train in (False, True) for row in measure_models([HYENA, VIT], train=train, **TINY | {"memory": True})
    ]
    assert [(step["name"], step["mode"]) for step in steps] == [(HYENA, "infer"), (HYENA, "train")]
    assert [(row.mode, row.peak_mb, row.status) for row in rows] == [
        ("infer", 100, "ok"),
        ("infer", None, "out of memory"),
        ("train", 200, "ok"),
        ("train", None, "out of memory"),
    ]


@pytest.mark.parametrize(("flags", "mode"), [([], "infer"), (["--train"], "train")])
def test_command_writes_rows_and_figure(flags, mode, steps, tmp_path, capsys):
    argv = ["models", "--device", "cpu", "--models", HYENA, VIT, "--img-sizes", "32", "--no-memory", *flags]
    main([*argv, "-b", "1", "--rounds", "1", "--time-limit", "0", "--output", str(tmp_path)])
    rows = read_csv(tmp_path / "models.csv", SpeedRow)
    assert [(row.mode, row.size, row.name) for row in rows] == [(mode, 32, HYENA), (mode, 32, VIT)]
    assert {row.status for row in rows} == {"single reading"}
    printed = capsys.readouterr().out
    assert rows[0].machine in printed and printed.count("| single reading |") == len(rows)
    assert (tmp_path / "models.png").stat().st_size > 1000


def test_command_fails_if_a_model_did(monkeypatch, capsys, tmp_path):
    def step(name, **settings):
        if name == HYENA:
            raise ValueError("no such kernel")
        return lambda: None

    monkeypatch.setattr(models, "make_step", step)
    argv = ["models", "--device", "cpu", "--models", HYENA, VIT, "--img-sizes", "32", "--no-memory", "-b", "1"]
    with pytest.raises(SystemExit) as stopped:
        main([*argv, "--output", str(tmp_path)])
    assert stopped.value.code == 1 and f"failed, as their rows say: {HYENA}" in capsys.readouterr().err
    hyena, vit = read_csv(tmp_path / "models.csv", SpeedRow)
    assert hyena.status == "failed: ValueError: no such kernel" and vit.status == "ok"


def test_batch_size_is_one_number_or_one_for_each_size(capsys, steps):
    sizes = TINY | {"img_sizes": [32, 48]}
    rows = [row for given in (3, [3], [4, 2]) for row in measure_models([VIT], **sizes | {"batch_size": given})]
    assert [(row.size, row.batch_size) for row in rows] == [(32, 3), (48, 3), (32, 3), (48, 3), (32, 4), (48, 2)]
    with pytest.raises(UserError, match=r"one for each of 2 sizes, got \[1, 2, 3\]"):
        measure_models([VIT], **sizes | {"batch_size": [1, 2, 3]})
    with pytest.raises(SystemExit):
        main(["models", "--batch-size", "0"])
    assert "--batch-size" in capsys.readouterr().err
