from functools import partial

import pytest
import torch
import torch.nn.functional as F
from command_line import main

from hyena_vision.benchmark import measure, models
from hyena_vision.benchmark.models import ModelRow, measure_models
from hyena_vision.benchmark.step import ValueOnly, choose_batch_size, create_model, make_step
from hyena_vision.benchmark.tables import read_csv
from hyena_vision.benchmark.timing import time_interleaved
from hyena_vision.layers import Hyena2d
from hyena_vision.training.errors import UserError

VIT, CEILING, HYENA = "vit_tiny_patch16_224", "ceiling:vit_tiny_patch16_224", "hyena2d_vit_tiny"
TINY = dict(img_sizes=[32], batch_size=2, rounds=2, memory=False)


@pytest.fixture(autouse=True)
def _short_readings(monkeypatch):
    """One call each: that more of them fill a reading is a matter of test_timing.py."""
    monkeypatch.setattr(measure, "time_interleaved", partial(time_interleaved, least_seconds=0))


def test_ceiling_is_the_vit_whose_attention_gives_its_values(monkeypatch):
    vit, ceiling = create_model(VIT, 32).eval(), create_model(CEILING, 32).eval()
    ceiling.load_state_dict(vit.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert (vit(images) - ceiling(images)).abs().max() > 1e-3
        monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, **kwargs: v)
        expected = vit(images)
        monkeypatch.setattr(F, "scaled_dot_product_attention", None)
        torch.testing.assert_close(ceiling(images), expected)
    assert sum(isinstance(module, ValueOnly) for module in ceiling.modules()) == 12


def test_ceiling_projects_queries_and_keys_too():
    attention = create_model(VIT, 32).blocks[0].attn
    shapes = []
    attention.qkv.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    ValueOnly(attention)(torch.randn(1, 5, 192))
    assert shapes == [(1, 5, 3 * 192)]


def test_vit_has_position_embeddings_of_the_size_and_fused_attention():
    vit = create_model(VIT, 64)
    assert vit.pos_embed.shape == (1, 17, 192) and vit.dynamic_img_size
    assert all(block.attn.fused_attn for block in vit.blocks)


def test_arguments_of_the_mixer_are_for_hyena_models_alone():
    assert create_model(HYENA, 32, backend="fft").blocks[0].mixer.backend == "fft"
    assert create_model(VIT, 32, backend="fft").blocks[0].attn.fused_attn
    assert create_model(f"triton:{HYENA}", 32).blocks[0].mixer.backend == "triton"
    with torch.device("meta"):
        former = create_model("triton:c_hpx_former_s18", 64)
    assert former.stages[2].blocks[0].token_mixer.backend == "triton" and former.img_size == (64, 64)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("vit_tinny", "knows no model 'vit_tinny'"),
        ("ceiling:resnet18", "no timm.layers.Attention"),
        (f"triton:{VIT}", "not a Hyena model"),
    ],
)
def test_model_that_cannot_be_made_is_named(name, error):
    with pytest.raises(UserError, match=error):
        measure_models([VIT, name], **TINY)


def test_base_that_is_not_measured_is_refused():
    with pytest.raises(UserError, match=f"must be one of the models, {HYENA}; got '{VIT}'"):
        measure_models([HYENA], base=VIT, **TINY)


def test_training_step_learns_and_inference_does_not():
    step = make_step(VIT, 32, 2, "train", "float32", "no", "cpu")
    losses = [step().item() for _ in range(4)]
    assert losses[-1] < losses[0]
    infer = make_step(VIT, 32, 2, "infer", "float32", "no", "cpu")
    assert infer().shape == (2, 1000) and not infer().requires_grad
    assert torch.equal(infer(), infer())


def test_dtype_is_that_of_autocast():
    assert make_step(HYENA, 32, 1, "infer", "bfloat16", "no", "cpu")().dtype == torch.bfloat16
    loss = make_step(HYENA, 32, 1, "train", "bfloat16", "no", "cpu")()
    assert loss.dtype == torch.float32 and loss.isfinite()


def test_model_is_compiled_in_the_mode_asked_for(monkeypatch):
    modes = []
    monkeypatch.setattr(torch, "compile", lambda model, mode, dynamic: modes.append((mode, dynamic)) or model)
    (row,) = measure_models([VIT], compile="reduce-overhead", **TINY)
    assert modes == [("reduce-overhead", False)] and row.compile == "reduce-overhead"


@pytest.mark.parametrize("reparam", [True, False])
def test_models_are_reparameterized_for_inference_alone(reparam, monkeypatch):
    models = []

    def create(*args, **kwargs):
        models.append(create_model(*args, **kwargs))
        return models[-1]

    monkeypatch.setattr("hyena_vision.benchmark.step.create_model", create)
    rows = measure_models([HYENA], base=HYENA, train=True, reparam=reparam, **TINY)
    assert [row.reparam for row in rows] == [reparam, False]
    mixers = [[m.reparameterized for m in model.modules() if isinstance(m, Hyena2d)] for model in models]
    assert [any(kept) for kept in mixers if kept] == [all(kept) for kept in mixers if kept] == [reparam, False]


def test_batch_size_follows_the_budget():
    def batch(img_size: int, mode: str = "infer", gigabytes: float = 4.0, names=(VIT, HYENA)) -> int:
        return choose_batch_size(names, img_size, mode, gigabytes)

    assert batch(32) == 64
    assert batch(2048) == 8  # 16384 tokens, 192 channels, 24 numbers of 4 bytes: 0.3 GB
    assert batch(2048, gigabytes=2) == 4
    assert batch(1024, "train") == 4  # a quarter of the tokens, twelve blocks
    assert batch(32, gigabytes=1e-9) == 1
    assert batch(2048, names=("hyena2d_vit_small", VIT)) == 4
    with pytest.raises(UserError, match="give one"):
        batch(32, names=("resnet18",))


def test_rows_of_models_side_by_side():
    rows = measure_models([HYENA, VIT, CEILING], **TINY)
    assert [row.model for row in rows] == [HYENA, VIT, CEILING]
    assert {(row.img_size, row.tokens, row.batch_size, row.base, row.status) for row in rows} == {(32, 4, 2, VIT, "ok")}
    assert rows[1].ratio == 1 and rows[0].ratio_low <= rows[0].ratio <= rows[0].ratio_high
    assert rows[0].gflops > 0 and rows[1].gflops > rows[2].gflops
    for row in rows:
        assert row.images_per_s_low <= row.images_per_s <= row.images_per_s_high
        assert row.ms_per_image == pytest.approx(1000 / row.images_per_s)
        assert row.peak_mb is None


def test_model_without_memory_is_a_row_and_the_others_go_on(monkeypatch):
    def step(name, *settings):
        if name == HYENA:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return make_step(name, *settings)

    monkeypatch.setattr(models, "make_step", step)
    hyena, vit = measure_models([HYENA, VIT], **TINY)
    assert (hyena.status, hyena.images_per_s, hyena.ratio, hyena.tokens) == ("out of memory", None, None, 4)
    assert vit.status == "ok" and vit.images_per_s > 0
    assert vit.ratio == 1


def test_what_dies_of_its_memory_is_not_timed(monkeypatch):
    made = []

    def peak(make, name, *settings, device, calls):
        if name == VIT:
            raise torch.OutOfMemoryError("killed")
        return 100.0 * calls

    monkeypatch.setattr(measure, "peak_memory", peak)
    monkeypatch.setattr(models, "make_step", lambda name, *settings: made.append(name) or (lambda: None))
    rows = measure_models([HYENA, VIT], train=True, **TINY | {"memory": True})
    assert made == [HYENA] * 2
    assert [(row.mode, row.peak_mb, row.status) for row in rows] == [
        ("infer", 100, "ok"),
        ("infer", None, "out of memory"),
        ("train", 200, "ok"),
        ("train", None, "out of memory"),
    ]


def test_command_writes_rows_and_figure(tmp_path, capsys):
    argv = ["models", "--device", "cpu", "--models", HYENA, VIT, "--img-sizes", "32", "--no-memory", "--train"]
    main([*argv, "-b", "1", "--rounds", "1", "--threads", "1", "--time-limit", "0", "--output", str(tmp_path)])
    rows = read_csv(tmp_path / "models.csv", ModelRow)
    assert [(row.mode, row.img_size, row.model) for row in rows] == [
        (mode, size, model) for mode in ("infer", "train") for size in (32,) for model in (HYENA, VIT)
    ]
    assert {row.status for row in rows} == {"single reading"}
    printed = capsys.readouterr().out
    assert rows[0].machine in printed and printed.count("single reading") == 4
    assert (tmp_path / "models.png").stat().st_size > 1000


def test_batch_size_is_a_number_or_auto(capsys):
    for text in ("0", "some"):
        with pytest.raises(SystemExit) as stopped:
            main(["models", "--batch-size", text])
        assert stopped.value.code == 2 and "--batch-size" in capsys.readouterr().err
