"""Conversion of a trained attention model into Hyena in stages, through the program."""

import json
import shutil

import pytest
import timm
import torch
from safetensors.torch import load_file
from trainer import assert_same_run, draw_images, expect_error, load, signal_at, summary, train_imagenet

from hyena_vision import pretrained

VIT = ["--model", "vit_tiny_patch16_224", "--model-kwargs", "img_size=16", "patch_size=4", "embed_dim=16", "depth=3"]
VIT += ["num_heads=2"]
COMMON = ["--device", "cpu", *VIT, "-b", "8", "-j", "0", "--opt", "adamw", "--lr", "1e-2", "--warmup-epochs", "0"]
COMMON += ["--mean", "0.5", "--std", "0.5", "--hflip", "0", "--epochs", "2"]
CONVERT = ["--convert", "hyena2d", "--convert-blocks", "0", "2", "--convert-kwargs", "filter_dim=8"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return draw_images(tmp_path_factory.mktemp("images"), {"train": 8, "val": 4})


@pytest.fixture(scope="module")
def train(images, tmp_path_factory):
    """Train under a name and return the folder."""
    output = tmp_path_factory.mktemp("output")

    def train(name, *argv):
        argv = [*COMMON, "--data-dir", str(images), "--output", str(output), "--experiment", name, *argv]
        train_imagenet.main(argv)
        return output / name

    return train


@pytest.fixture(scope="module")
def teacher(train):
    return train("teacher", "--epochs", "1")


@pytest.fixture(scope="module")
def mixers(train, teacher):
    """The first stage."""
    best = str(teacher / "model_best.pth.tar")
    return train("mixers", *CONVERT, "--convert-stage", "mixers", "--teacher-path", best, "--epochs", "4")


@pytest.fixture(scope="module")
def model(train, teacher, mixers):
    """The second stage."""
    weights = ["--teacher-path", str(teacher / "model.safetensors"), "--pretrained-path", str(mixers / "last.pth.tar")]
    return train("model", *CONVERT, "--convert-stage", "model", *weights, "--model-ema", "--model-ema-decay", "0.5")


def test_mixers_learn_and_all_else_stays_the_teachers(teacher, mixers):
    before = load(teacher, "model_best.pth.tar")["state_dict"]
    after = load(mixers)["state_dict"]
    names = [name for name in before if not name.startswith(("blocks.0.attn.", "blocks.2.attn."))]
    assert names and all(torch.equal(before[name], after[name]) for name in names)
    first, *_, last = summary(mixers)
    for block in (0, 2):
        assert float(last[f"eval_error_{block}"]) < 0.8 * float(first[f"eval_error_{block}"])
    assert "eval_error_1" not in last
    mean = (float(last["eval_error_0"]) + float(last["eval_error_2"])) / 2
    assert float(last["eval_loss"]) == pytest.approx(mean)
    losses = [float(row["eval_loss"]) for row in summary(mixers)]
    results = json.loads((mixers / "results.json").read_text())
    assert results["best_metric"] == min(losses)  # whatever --eval-metric says
    assert (mixers / "errors.png").stat().st_size > 0


def test_the_model_goes_on_from_the_mixers_and_is_one_of_timm(model, images, tmp_path):
    rows = summary(model)
    assert {"eval_error_0", "eval_error_1", "eval_error_2", "eval_top1"} <= rows[0].keys()
    for weights in (model, model / "model.safetensors"):
        result = train_imagenet.main(["--eval", str(weights), "--data-dir", str(images), "--device", "cpu"])
        assert result["top1"] == max(float(row["eval_top1"]) for row in rows)
    for name in ("model.safetensors", "config.json"):  # alone: timm 1.0.27 fails where checkpoints lie beside them
        shutil.copy(model / name, tmp_path)
    exported = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    picture = torch.randn(2, 3, 16, 16)
    loaded = pretrained.load(str(model)).model
    with torch.no_grad():
        torch.testing.assert_close(exported(picture), loaded(picture))
    assert type(exported).__name__ == "ReplacedVisionTransformer"
    assert exported.replacements[0]["base_grid"] == [4, 4]


def test_a_higher_resolution(train, teacher, model, images, capsys):
    argv = [*CONVERT, "--convert-stage", "model", "--teacher-path", str(teacher / "model_best.pth.tar")]
    argv += ["--pretrained-path", str(model / "model_best.pth.tar"), "--epochs", "1"]
    folder = train("high", *argv, "--img-size", "24")
    assert load(folder)["state_dict"]["pos_embed"].shape[1] == 36 + 1
    result = train_imagenet.main(["--eval", str(folder), "--data-dir", str(images), "--device", "cpu"])
    assert result["loss"] == pytest.approx(float(summary(folder)[0]["eval_loss"]), rel=1e-6)
    made = pretrained.load(str(folder)).model
    assert made.replacements[0]["base_grid"] == [4, 4]  # positions of the filters mean what they meant before
    assert made.blocks[0].attn.grid_size == (6, 6)
    larger = ["--model-kwargs", "img_size=24", *VIT[4:]]
    for weights in ("model_best.pth.tar", "model.safetensors"):
        argv[-3] = str(model / weights)
        with pytest.raises(SystemExit):
            train("wrong", *argv, *larger)
        assert "other settings" in (said := capsys.readouterr().err) and "--img-size" in said
        labels = [*CONVERT, "--pretrained-path", str(model / weights), "--epochs", "1"]
        with pytest.raises(SystemExit):
            train("wrong", *labels, *larger)
        assert "other settings" in capsys.readouterr().err
    # An exported model is fine-tuned on labels like any other: all but its head is taken
    tuned, weights = load(train("labels", *labels, "--lr", "1e-12")), load_file(model / "model.safetensors")
    assert all(torch.allclose(tuned["state_dict"][name], weights[name]) for name in weights if "head" not in name)
    train("warm", *CONVERT, "--pretrained-path", str(teacher / "model.safetensors"), "--epochs", "1")


@pytest.mark.parametrize("stage", ["mixers", "model"])
def test_a_stage_that_was_stopped_and_resumed_is_the_same_run(stage, train, request, monkeypatch):
    whole = request.getfixturevalue(stage)
    argv = ["-c", str(whole / "args.yaml"), "--epochs", str(len(summary(whole)))]
    with monkeypatch.context() as patch:
        signal_at(patch, 4)
        with pytest.raises(SystemExit) as stopped:
            train(f"stopped {stage}", *argv)
    assert stopped.value.code == 75
    assert_same_run(whole, train(f"stopped {stage}", *argv, "--resume", "auto"))


def test_images_without_classes(train, teacher, images, tmp_path):
    for split, target in (("train", "some"), ("val", "other")):
        for path in (images / split).rglob("*.png"):
            (tmp_path / target / path.parent.name[:1]).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / target / path.parent.name[:1] / path.name)
    shutil.copy(tmp_path / "some" / "b" / "0.png", tmp_path / "some")
    argv = [*CONVERT, "--teacher-path", str(teacher / "model_best.pth.tar"), "--data-dir", str(tmp_path)]
    argv += ["--unlabelled", "--train-split", "some", "--val-split", "other", "--epochs", "1"]
    for stage in ("mixers", "model"):
        folder = train(f"unlabelled {stage}", *argv, "--convert-stage", stage)
        row = summary(folder)[-1]
        errors = [float(value) for name, value in row.items() if name.startswith("eval_error_")]
        assert float(row["eval_loss"]) == pytest.approx(sum(errors) / len(errors)) and "eval_top1" not in row
        assert load(folder)["class_to_idx"] == load(teacher)["class_to_idx"]
        assert load(folder)["num_classes"] == 3


def test_labels_are_matched_to_the_teachers_by_name(train, teacher, images, tmp_path, capsys):
    """A class map in another order trains the same student."""
    (tmp_path / "map.txt").write_text("red\ngreen\nblue\n")
    argv = [*CONVERT, "--convert-stage", "model", "--teacher-path", str(teacher / "model_best.pth.tar")]
    argv += ["--task-loss-weight", "1", "--epochs", "1"]
    first, second = train("order", *argv), train("mapped", *argv, "--class-map", str(tmp_path / "map.txt"))
    assert summary(first)[0]["eval_top1"] == summary(second)[0]["eval_top1"]
    for split in ("train", "val"):
        shutil.copytree(images / split / "red", tmp_path / "data" / split / "zebra")
        shutil.copytree(images / split / "green", tmp_path / "data" / split / "green")
    argv = [*COMMON, *argv, "--data-dir", str(tmp_path / "data"), "--output", str(tmp_path)]
    expect_error(capsys, argv, 2, "zebra", "teacher")


def test_what_does_not_go_together(teacher, images, capsys, tmp_path):
    argv = [*COMMON, "--data-dir", str(images), "--output", str(tmp_path)]
    best = str(teacher / "model_best.pth.tar")
    stage = f"--convert hyena2d --teacher-path {best} --convert-stage"
    for wrong, fragments in {
        "--convert-stage model": ["--convert-stage", "needs --convert"],
        f"--convert hyena2d --teacher-path {best}": ["--teacher-path", "needs --convert-stage"],
        "--convert hyena2d --unlabelled": ["--unlabelled", "needs --convert-stage"],
        "--convert hyena2d --convert-stage mixers": ["--convert-stage", "--teacher-path", "--pretrained"],
        f"{stage} model --kd-model-name resnet18": ["--kd-model-name", "resnet18"],
        f"{stage} mixers --model-ema": ["--model-ema", "--convert-stage model"],
        f"{stage} mixers --pretrained-path {best}": ["--pretrained-path", "begin with the teacher's weights"],
        f"{stage} model --unlabelled --task-loss-weight 1": ["--task-loss-weight", "needs labels"],
    }.items():
        expect_error(capsys, [*argv, *wrong.split()], 2, *fragments)
    wrong = f"{stage} model --pretrained-path {best}".split()
    expect_error(capsys, [*argv, *wrong], 1, best, "of the stage before")
    of_two = f"{stage} model --model-kwargs img_size=16 patch_size=4 embed_dim=16 depth=2 num_heads=2".split()
    expect_error(capsys, [*argv, *of_two], 1, best, "does not fit")
