"""Stability: what is rounded, what is far out, and what is counted."""

import csv

import pytest
import timm
import torch
import yaml

from hyena_vision.benchmark import stability
from hyena_vision.benchmark.__main__ import main
from hyena_vision.benchmark.stability import Step, gradient_norms, round_signals, summarize

RECIPE = dict(opt="adamw", lr=1e-2, warmup_epochs=0, epochs=2, mean=[0.1], std=[0.2], workers=0, batch_size=4)
RECIPE |= dict(no_aug=True, crop_pct=1.0, in_chans=1, train_num_samples=12, val_num_samples=4, clip_grad=1.0)
MODEL = "tiny: hyena2d_iso_tiny patch_size=32 base_grid={size/32} embed_dim=16 depth=2 filter_dim=8"


@pytest.fixture
def command(tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | dict(sched="cosine", sched_on_updates=True)))
    argv = ["stability", "--task", "hyena/far_digits", "--recipe", str(tmp_path / "recipe.yaml"), "--img-size", "256"]
    return [*argv, "--models", MODEL, "--output", str(tmp_path / "output")]


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_steps_under_each_rounding(command, tmp_path):
    main([*command, "--steps", "12", "--outliers", "0.5"])
    rows, norms = (rows_of(tmp_path / "output" / name) for name in ("stability.csv", "norms.csv"))
    assert [row["rounding"] for row in rows] == ["float32", "bfloat16", "float16"]
    assert all(row["not_finite"] == "0" and float(row["largest_norm"]) > 0 for row in rows)
    assert rows[0]["left_out"] == "0" and int(rows[2]["left_out"]) < 12
    assert {(norm["part"], norm["step"]) for norm in norms} == {(p, s) for p in ("0", "1", "rest") for s in ("0", "10")}
    first = {row["rounding"]: float(row["first_loss"]) for row in rows}
    assert first["bfloat16"] != first["float32"] == pytest.approx(first["bfloat16"], rel=0.1)
    assert (tmp_path / "output/stability.png").stat().st_size > 0


def test_what_is_not_finite_is_counted(command, tmp_path):
    main([*command, "--steps", "3", "--roundings", "float32", "--outliers", "1", "--outlier-scale", "1e38"])
    (row,) = rows_of(tmp_path / "output/stability.csv")
    assert row["not_finite"] == "3"


def test_outliers_are_some_of_the_images(command, monkeypatch):
    seen = []

    class Task:
        def __init__(self, args, network, device):
            self.network = network

        def __call__(self, images, targets):
            seen.append(images.amax((1, 2, 3)))
            return {"loss": self.network(images).square().mean()}

    monkeypatch.setattr(stability, "create_task", Task)
    main([*command, "--steps", "6", "--roundings", "float32", "--outliers", "0.25", "--outlier-scale", "1000"])
    largest = torch.cat(seen)
    assert len(largest) == 24 and 1 <= (largest > 100).sum() <= 12 and (largest < 10).sum() == (largest <= 100).sum()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_signals_are_rounded_and_products_are_not(dtype):
    model = timm.create_model("hyena2d_iso_tiny", img_size=16, patch_size=4, embed_dim=16, depth=1, filter_dim=8)
    signals = {}
    mixer, qkv = model.blocks[0].mixer, None
    round_signals(model, dtype)
    for module in mixer.modules():
        if isinstance(module, torch.nn.Linear) and module.out_features == 3 * 16:
            module.register_forward_hook(lambda module, inputs, output: signals.update(qkv=(inputs[0], output)))
            qkv = module
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    tokens, output = signals["qkv"]
    assert output.dtype == dtype and tokens.dtype == torch.float32
    assert torch.equal(output, torch.nn.functional.linear(tokens, qkv.weight, qkv.bias).to(dtype))
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def test_norms_of_gradients_and_their_summary():
    model = timm.create_model("hyena2d_iso_tiny", img_size=16, patch_size=4, embed_dim=16, depth=2, filter_dim=8)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    norms = gradient_norms(model)
    counts = [sum(p.numel() for p in part.parameters()) for part in (*model.blocks, model)]
    assert norms["0"] ** 2 == pytest.approx(counts[0]) and norms["1"] ** 2 == pytest.approx(counts[1])
    assert norms["rest"] ** 2 == pytest.approx(counts[2] - counts[0] - counts[1])
    steps = [Step(2.0, {"0": 3.0, "rest": 4.0}), Step(9.0, {"0": float("inf")}, left_out=True)]
    steps += [Step(1.0, {"0": 0.0, "rest": 1.0}), Step(float("nan"), {"0": 1.0})]
    row = summarize("m", "float16", steps)
    assert (row.steps, row.not_finite, row.left_out, row.first_loss, row.largest_norm) == (4, 1, 1, 2.0, 5.0)
    row = summarize("m", "float16", steps[1:2])
    assert (row.steps, row.left_out) == (1, 1) and row.last_loss != row.last_loss and row.median_norm != row.median_norm


@pytest.mark.parametrize(
    ("name", "kwargs"), [("convnext_atto", dict(dims=[8] * 4)), ("swin_tiny_patch4_window7_224", {})]
)
def test_blocks_of_stages_are_apart(name, kwargs):
    model = timm.create_model(name, depths=[1, 2, 1, 1], **kwargs)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert [*gradient_norms(model)] == ["rest", "0.0", "1.0", "1.1", "2.0", "3.0"]
