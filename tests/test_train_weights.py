"""Weights to start from or to validate: what fits is taken, under whatever names, and the rest is said."""

import shutil
from pathlib import Path

import pytest
import timm
import torch
from trainer import MODEL, QUICK, assert_equal, expect_error, load, train_imagenet

from hyena_vision import pretrained
from hyena_vision.training.config import parse_args

FROZEN = ["--opt", "momentum", "--momentum", "0", "--weight-decay", "0", "--lr", "1e-30", "--sched", "none"]
FROZEN += ["--epochs", "1"]
VIT = ["--model", "vit_tiny_patch16_224", "--model-kwargs", "img_size=16", "patch_size=4", "embed_dim=16", "depth=1"]
VIT += ["num_heads=2"]
PIXELS = ["--mean", "0.3", "--std", "0.4", "--interpolation", "bilinear", "--crop-pct", "0.8"]


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory) -> Path:
    output = str(tmp_path_factory.mktemp("trained"))
    argv = [*QUICK, *PIXELS, "--data-dir", str(images), "--output", output, "--experiment", "run", "--epochs", "1"]
    return Path(train_imagenet.main(argv)["folder"])


@pytest.mark.parametrize("prefix", ["model.", "module._orig_mod.", "backbone.", "state_dict.model."])
def test_names_of_wrappers_are_recognised(run, trained, tmp_path, caplog, prefix):
    weights = load(trained)["state_dict"]
    wrapped = {prefix + name: value for name, value in weights.items()}
    torch.save({"model": {"state_dict": wrapped}} if prefix == "model." else wrapped, tmp_path / "wrapped.pth")
    exact = run("exact", *FROZEN, "--initial-checkpoint", f"{tmp_path}/wrapped.pth")["folder"]
    assert_equal(load(exact)["state_dict"], weights)
    adapted = run("adapted", *FROZEN, "--pretrained-path", f"{tmp_path}/wrapped.pth")["folder"]
    for name, value in load(adapted)["state_dict"].items():
        assert torch.equal(value, weights[name]) or name.startswith("head."), name
    # All but the head's, which are always begun anew
    assert f"{len(weights) - 2} of {len(weights)} tensors of hyena2d_iso_tiny are in {tmp_path}/wrap" in caplog.text


@pytest.mark.parametrize("name", ["last.pth.tar", "model.safetensors"])
def test_all_weights_of_a_run_at_another_size(run, tmp_path, name):
    """Positions are resampled, as by the model itself, and the head stays."""
    vit = [*VIT[:3], *VIT[4:], "--img-size", "16"]
    folder = run("small", *vit, "--epochs", "1")["folder"]
    source = pretrained.load(folder).model
    source.set_input_size(img_size=32)
    frozen = [*vit, *FROZEN, "--img-size", "32"]
    larger = run("large", *frozen, "--initial-checkpoint", f"{folder}/{name}")["folder"]
    assert_equal(load(larger)["state_dict"], source.state_dict())
    assert source.pos_embed.shape[1] == 1 + 8 * 8
    if name == "model.safetensors":  # a file of others, that does not tell the size
        config = Path(folder, "config.json")
        config.write_text(config.read_text().replace('"input_size"', '"other"'))
        run("again", *vit, *FROZEN, "--img-size", "16", "--initial-checkpoint", f"{folder}/{name}")


@pytest.mark.parametrize("name", ["last.pth.tar", "model.safetensors"])
def test_short_filters_that_count_tokens_are_no_surprise(run, trained, images, caplog, name):
    """Of larger images; weights of a run and of an exported model, to be validated and to begin with."""
    given, larger = ["--data-dir", str(images)], ["--img-size", "32"]
    said = "weights of (16, 16), and short filters count tokens: short_dilation=2 among --model-kwargs"
    argv = ["--eval", f"{trained}/{name}", *given, "--device", "cpu"]
    dilated = [*MODEL[2:], "short_dilation=2"]
    for more, expected in (([], 0), (larger, 1), ([*larger, *dilated], 0)):
        caplog.clear()
        train_imagenet.main([*argv, *more])
        assert caplog.text.count(said) == expected, more
    caplog.clear()
    run("begun", *FROZEN, *larger, "--initial-checkpoint", f"{trained}/{name}")
    assert caplog.text.count(said) == 1


def test_weights_of_the_backbone_of_a_dense_model_are_counted(tmp_path, capsys, caplog):
    argv = ["--dataset", "hyena/spatial_recall", "--in-chans", "1", "--no-aug", "--crop-pct", "1", "--img-size", "32"]
    argv += ["--train-num-samples", "8", "--val-num-samples", "4", "-j", "0", "-b", "4", "--warmup-epochs", "0"]
    argv += [*VIT[:3], *VIT[4:], *FROZEN, "--output", str(tmp_path), "--device", "cpu"]
    weights = timm.create_model(VIT[1], patch_size=4, embed_dim=16, depth=1, num_heads=2, in_chans=1, img_size=32)
    torch.save(weights.state_dict(), path := tmp_path / "vit.pth")
    train_imagenet.main([*argv, "--pretrained-path", str(path)])
    assert f"18 of 20 tensors of {VIT[1]} are in" in caplog.text
    torch.save({"norm.weight": torch.ones(16)}, path)
    expect_error(capsys, [*argv, "--pretrained-path", str(path)], 1, str(path), "20 tensors")


def test_weights_of_another_model_are_refused_and_counted(images, tmp_path, capsys):
    resnet = {f"layer{number}.0.conv1.weight": torch.zeros(64, 64, 3, 3) for number in range(1, 5)}
    torch.save({**resnet, "norm.weight": torch.ones(16)}, path := tmp_path / "resnet.pth")
    argv = [*QUICK, "--data-dir", str(images), "--output", str(tmp_path), *FROZEN]
    expect_error(
        capsys, [*argv, *VIT, "--pretrained-path", str(path)], 1, str(path), "1 of 20 tensors", "similar model"
    )
    expect_error(capsys, [*argv, "--pretrained-path", str(path)], 1, str(path), "1 of its 33", "hyena2d_iso_tiny")
    expect_error(capsys, [*argv, *VIT, "--initial-checkpoint", str(path)], 1, str(path), "1 of its 20 tensors")
    expect_error(capsys, ["--eval", str(path), *argv], 1, str(path), "--model hyena2d_iso_tiny", "config.json")


def test_each_flag_for_weights_names_the_one_that_is_meant(trained, images, tmp_path, capsys):
    argv = [*QUICK, "--data-dir", str(images), "--output", str(tmp_path), "--epochs", "1"]
    weights = load(trained)["state_dict"]
    torch.save(weights, alone := str(tmp_path / "alone.pth"))
    torch.save({**weights, "head.weight": torch.zeros(5, 16)}, five := str(tmp_path / "five.pth"))
    expect_error(capsys, [*argv, "--resume", alone], 1, alone, "--initial-checkpoint", "--pretrained-path")
    expect_error(capsys, [*argv, "--initial-checkpoint", five], 1, five, "of its", "--pretrained-path")
    expect_error(capsys, [*argv, "--pretrained"], 1, "hyena2d_iso_tiny", "--pretrained-path")
    other = ["--model-kwargs", *MODEL[3:-1], "depth=2", "--resume-force", "--resume", str(trained / "last.pth.tar")]
    expect_error(capsys, [*argv, *other], 1, "last.pth.tar", "--pretrained-path")
    expect_error(capsys, ["--eval", str(tmp_path)], 1, str(tmp_path), "model_best.pth.tar", "model.safetensors")


def test_an_exported_model_brings_its_settings(trained, images, tmp_path, caplog):
    expected = train_imagenet.main(["--eval", str(trained / "model_best.pth.tar"), "-j", "0", "--device", "cpu"])
    assert "Loaded weights" in caplog.text and "--resume" not in caplog.text  # nothing is trained
    shutil.copy(trained / "model.safetensors", tmp_path)
    shutil.copy(trained / "config.json", tmp_path)
    data = ["--data-dir", str(images / "val")]
    for path, more in ((trained, []), (trained / "model.safetensors", []), (tmp_path, data)):
        found = train_imagenet.main(["--eval", str(path), "-j", "0", "--device", "cpu", *more])
        assert found | {"checkpoint": expected["checkpoint"], "loss": expected["loss"]} == expected
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    larger = train_imagenet.main(["--eval", str(tmp_path), "-j", "0", "--device", "cpu", *data, "--img-size", "24"])
    assert larger["img_size"] == [24, 24]


def test_an_exported_model_alone_says_how_images_are_read(run, tmp_path):
    folder = run("hsv", "--input-img-mode", "HSV", "--no-exif", "--epochs", "1")["folder"]
    for name in ("model.safetensors", "config.json"):
        shutil.copy(f"{folder}/{name}", tmp_path)
    loaded = pretrained.load(tmp_path)
    args = parse_args(["--eval", str(tmp_path), "--device", "cpu"])
    assert (loaded.image_mode, loaded.exif) == (args.input_img_mode, not args.no_exif) == ("HSV", False)
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True).num_classes == 3


def test_positions_of_the_runs_own_size_are_taken_as_they_are(images, tmp_path):
    """They were resampled to the size of the model's name, and back."""
    argv = [*QUICK, "--model", "vit_tiny_patch16_224", "--model-kwargs", "patch_size=32", "embed_dim=16", "depth=1"]
    argv += ["num_heads=2", "--img-size", "64", "--epochs", "1", "--data-dir", str(images), "--output", str(tmp_path)]
    before = load(train_imagenet.main([*argv, "--experiment", "before"])["folder"])["state_dict"]
    argv += ["--pretrained-path", str(tmp_path / "before" / "last.pth.tar"), *FROZEN, "--experiment", "after"]
    after = load(train_imagenet.main(argv)["folder"])["state_dict"]
    assert before["pos_embed"].shape[1] == 5 and torch.equal(after["pos_embed"], before["pos_embed"])
