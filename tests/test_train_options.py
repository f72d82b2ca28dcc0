"""What timm's trainer offers: each option does what it says, through the real `main()`."""

import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
import timm
import torch
from trainer import MODEL, ONE_UPDATE, QUICK, ROOT, assert_equal, expect_error, load, summary, train_imagenet

import hyena_vision

SIZES = pytest.mark.skipif(
    not hasattr(timm.data, "ScheduledBatchSampler"), reason="this timm has no schedule of image sizes"
)


def weights(folder: str | Path, name: str = "last.pth.tar") -> dict:
    return load(folder, name)["state_dict"]


@pytest.mark.parametrize(
    "argv",
    [
        ["--aug-splits", "2", "--jsd-loss", "--aa", "augmix-m3-w2", "--reprob", "0.5", "--resplit"],
        ["--save-images", "--log-interval", "1", "--synchronize-step", "--use-multi-epochs-loader"],
        ["--head-init-scale", "0.5", "--head-init-bias", "-2", "--fast-norm", "--worker-seeding", "part"],
        ["--split-bn", "--aug-splits", "2", "--model", "test_resnet", "--model-kwargs", "--drop-block", "0.1"],
        ["--bn-momentum", "0.2", "--bn-eps", "1e-2", "--model", "test_efficientnet", "--model-kwargs"],
    ],
    ids=lambda argv: " ".join(argv[:2]),
)
def test_options_train(run, argv, request):
    request.addfinalizer(lambda: timm.layers.set_fast_norm(False))  # --fast-norm is for the process
    folder = run("run", *argv, "--img-size", "32")["folder"]
    assert summary(folder)[-1]["epoch"] == "1"
    images = sorted(path.name for path in Path(folder).glob("train-batch-*.jpg"))
    assert images == (
        ["train-batch-0.jpg", "train-batch-1.jpg", "train-batch-2.jpg"] if "--save-images" in argv else []
    )


def test_head_begins_as_asked(run):
    frozen = ["--lr", "1e-30", "--sched", "none", "--weight-decay", "0", "--epochs", "1"]
    plain = weights(run("plain", *frozen)["folder"])
    changed = weights(run("changed", *frozen, "--head-init-scale", "0.25", "--head-init-bias", "-2")["folder"])
    assert torch.equal(changed["head.weight"], plain["head.weight"] * 0.25)
    assert torch.equal(changed["head.bias"], torch.full((3,), -2.0))


@SIZES
def test_image_sizes_change_by_a_schedule(run, monkeypatch, caplog):
    shapes = []

    def create_watched_model(args, create=train_imagenet.create_model):
        model = create(args)
        model.register_forward_pre_hook(lambda model, inputs: shapes.append(tuple(inputs[0].shape)))
        return model

    monkeypatch.setattr(train_imagenet, "create_model", create_watched_model)
    sizes = ["--train-img-sizes", "8", "16", "24", "--train-batch-sizes", "12", "8", "4", "--val-split", ""]
    sizes += ["--train-size-schedule", "progressive", "--train-size-random-mix", "0", "--train-size-schedule-spread"]
    sizes += ["0", "--epochs", "3", "--train-batches-per-epoch", "4", "--variable-batch-loss-scale", "linear"]
    run("run", *sizes, "--lr-base", "0.08", "--lr-base-size", "8", "--opt", "sgd", "--lr", "0")
    assert shapes == [(12, 3, 8, 8)] * 4 + [(8, 3, 16, 16)] * 4 + [(4, 3, 24, 24)] * 4
    assert "Learning rate 0.08: base 0.08, global batch size 8" in caplog.text  # the mean size


def test_stop_epoch_keeps_the_schedule_and_milestones_stay(run):
    straight = Path(run("straight", "--epochs", "4", "--val-interval", "4")["folder"])
    stopped = ["--epochs", "4", "--val-interval", "4", "--save-epochs", "1", "2", "--checkpoint-hist", "1"]
    folder = Path(run("run", *stopped, "--stop-epoch", "3")["folder"])
    assert [row["epoch"] for row in summary(folder)] == list("012")  # milestones and the end are validated
    for epochs in (1, 2):
        assert load(folder, f"milestone-{epochs}.pth.tar")["epoch"] == epochs - 1
    run("run", *stopped, "--resume", "auto")
    assert_equal(weights(folder), weights(straight))
    assert len(list(folder.glob("checkpoint-*"))) == 1


@pytest.fixture(scope="module")
def teacher(images, tmp_path_factory) -> str:
    output = tmp_path_factory.mktemp("teacher")
    argv = [*QUICK, "--data-dir", str(images), "--output", str(output), "--experiment", "run"]
    folder = train_imagenet.main(argv)["folder"]
    alone = tmp_path_factory.mktemp("alone")  # timm 1.0.27 cannot read a folder of several checkpoints
    for name in ("model.safetensors", "config.json"):
        shutil.copy(os.path.join(folder, name), alone)
    return f"local-dir:{alone}"


def test_distillation_adds_the_loss_of_the_teacher(run, teacher):
    plain = run("plain", *ONE_UPDATE)["folder"]
    logit = ["--kd-model-name", teacher, *ONE_UPDATE]
    without = run("without", *logit, "--distill-loss-weight", "0", "--task-loss-weight", "1")["folder"]
    assert_equal(weights(plain), weights(without))
    changed = {}
    for kind in ("logit", "feature"):
        changed[kind] = run(kind, *logit, "--kd-distill-type", kind, "--kd-temperature", "2")["folder"]
        assert summary(changed[kind])[0]["train_loss"] != summary(plain)[0]["train_loss"]
        assert weights(changed[kind]).keys() == weights(plain).keys()
    assert not torch.equal(weights(changed["logit"])["head.weight"], weights(changed["feature"])["head.weight"])


def test_feature_distillation_resumes_with_its_projection(run, teacher):
    # A student of another width than its teacher has a projection, which is trained as well
    student = ["--model-kwargs", *[item.replace("embed_dim=16", "embed_dim=8") for item in MODEL[3:]]]
    argv = ["--kd-model-name", teacher, "--kd-distill-type", "feature", *student, "--model-ema"]
    straight = run("straight", *argv)["folder"]
    assert "task_state" in load(straight)
    resumed = run("resumed", *argv, "--resume", f"{straight}/checkpoint-0.pth.tar")["folder"]
    for key in ("state_dict", "state_dict_ema", "task_state", "optimizer"):
        assert_equal(load(straight)[key], load(resumed)[key])


def test_token_distillation_and_its_errors(run, teacher, images, tmp_path, capsys):
    student = ["--model", "deit_tiny_distilled_patch16_224", "--model-kwargs", "img_size=16", "patch_size=4"]
    student += ["embed_dim=16", "depth=1", "num_heads=2", "--kd-distill-type", "token"]
    for kind in ("soft", "hard"):
        run(kind, *student, "--kd-model-name", teacher, "--kd-token-distill-type", kind, "--epochs", "1")
    argv = [*QUICK, "--data-dir", str(images), "--output", str(tmp_path), "--kd-distill-type", "token"]
    expect_error(capsys, [*argv, "--kd-model-name", teacher], 2, "--kd-model-name", "hyena2d_iso_tiny", "token")
    expect_error(capsys, [*argv, "--kd-model-name", "no_such_model"], 2, "--kd-model-name", "no_such_model")


def test_evaluation_of_a_checkpoint_at_any_size(run, images, capsys, caplog):
    trained = run("trained", "--epochs", "4", "--model-ema", "--model-ema-decay", "0.5", "--smoothing", "0")
    best = max(trained["results"], key=lambda result: (result["validation"]["top1"], -result["validation"]["loss"]))
    capsys.readouterr()
    path = os.path.join(trained["folder"], "model_best.pth.tar")
    same = train_imagenet.main(["--eval", path, "--device", "cpu", "-j", "0"])  # all else as in the run
    printed = json.loads(capsys.readouterr().out.removeprefix("--result\n"))
    assert printed == same and same["img_size"] == [16, 16]
    assert {name: same[name] for name in best["validation"]} == best["validation"]
    folder = ["--data-dir", str(images / "val"), "--device", "cpu", "-j", "0", "-b", "4"]
    larger = train_imagenet.main(["--eval", path, *folder, "--img-size", "24", "--tta", "2"])
    assert larger["img_size"] == [24, 24] and larger["loss"] != same["loss"] and larger["top1"] > 60
    exported = train_imagenet.main(["--eval", os.path.join(trained["folder"], "model.safetensors"), *QUICK, *folder])
    assert exported["top1"] == same["top1"]


def test_evaluation_of_a_vit_stretches_its_position_table(images, tmp_path):
    vit = ["--model", "vit_tiny_patch16_224", "--model-kwargs", "img_size=16", "patch_size=4", "embed_dim=16"]
    vit += ["depth=1", "num_heads=2"]
    argv = [*QUICK, *vit, "--data-dir", str(images), "--output", str(tmp_path), "--experiment", "run"]
    folder = train_imagenet.main(argv)["folder"]
    result = train_imagenet.main(["--eval", f"{folder}/last.pth.tar", "--img-size", "32", "--device", "cpu", "-j", "0"])
    assert result["img_size"] == [32, 32]


def test_positional_data_path_tar_and_torch_data_sets(images, tmp_path, capsys):
    start = [*QUICK, "--output", str(tmp_path), "--epochs", "1", "--no-aug", "--experiment"]
    folder = train_imagenet.main([*start, "folder", str(images)])["folder"]
    for name, kind in (("torch", "torch/image_folder"), ("plain", "folder")):
        other = train_imagenet.main([*start, name, "--data-dir", str(images), "--dataset", kind])["folder"]
        assert summary(other) == summary(folder)
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for name in sorted(os.listdir(images / "train")):
            tar.add(images / "train" / name, arcname=name)
    tar = train_imagenet.main([*start, "tar", str(tmp_path / "train.tar"), "--val-split", ""])["folder"]
    assert summary(tar)[0]["train_loss"] == summary(folder)[0]["train_loss"]
    expect_error(capsys, [*start, "both", str(tmp_path / "train.tar")], 2, "train.tar", "--val-split")
    part = ["part", str(tmp_path / "train.tar"), "--val-split", "", "--train-split", "train[:80%]"]
    expect_error(capsys, [*start, *part], 2, "--train-split", "train.tar is one split, it has no 'train[:80%]'")


def test_tensorboard(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = Path(run("run", "--log-tensorboard")["folder"])
    run("run", "--log-tensorboard", "--resume", str(folder / "checkpoint-0.pth.tar"))
    events = EventAccumulator(str(folder)).Reload()
    for name in ("train_loss", "eval_top1", "lr"):
        values = [(event.step, event.value) for event in events.Scalars(name)]
        expected = [(int(row["epoch"]), pytest.approx(float(row[name]))) for row in summary(folder)]
        assert values == expected


def test_wandb(run, tmp_path, monkeypatch):
    calls = tmp_path / "calls"
    (tmp_path / "packages" / "wandb").mkdir(parents=True)
    (tmp_path / "packages" / "wandb" / "__init__.py").write_text(
        f"import json\ndef write(*line): print(json.dumps(line), file=open({str(calls)!r}, 'a'))\n"
        "class Run:\n    def log(self, row): write('log', row)\n    def finish(self): write('finish')\n"
        "def init(**kwargs):\n    write('init', kwargs)\n    return Run()\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delitem(__import__("sys").modules, "wandb", raising=False)
    folder = run("run", "--log-wandb", "--wandb-project", "hyena", "--wandb-tags", "a", "b")["folder"]
    lines = [json.loads(line) for line in calls.read_text().splitlines()]
    assert [line[0] for line in lines] == ["init", "log", "log", "finish"]
    init = lines[0][1]
    assert (init["project"], init["name"], init["tags"], init["id"]) == ("hyena", "run", ["a", "b"], None)
    assert init["config"]["model"] == "hyena2d_iso_tiny"
    for (_, row), written in zip(lines[1:3], summary(folder), strict=True):
        assert {name: str(value) for name, value in row.items()} == written


def test_a_yaml_of_timm_with_all_its_keys_trains(images, tmp_path):
    facts = json.loads((ROOT / "tests" / "training" / "data" / "timm_flags.json").read_text())
    values = {flag["dest"]: flag["default"] for flag in facts["flags"] if flag["dest"] not in ("help", "config")}
    values |= {"data": str(images), "model": "hyena2d_iso_tiny", "model_kwargs": {"embed_dim": 8, "depth": 1}}
    values |= {
        "num_classes": 3,
        "img_size": 16,
        "batch_size": 8,
        "epochs": 1,
        "warmup_epochs": 0,
        "workers": 0,
        "device": "cpu",
    }
    values |= {"output": str(tmp_path), "experiment": "run", "lr": "1e-3", "opt": "adamw", "opt_betas": [0.9, 0.99]}
    (tmp_path / "args.yaml").write_text(json.dumps(values))  # JSON is YAML
    assert len(train_imagenet.main(["-c", str(tmp_path / "args.yaml")])["results"]) == 1


def test_a_model_of_the_user_is_registered_by_its_module(run, tmp_path, monkeypatch):
    (tmp_path / "users_models.py").write_text(
        "from timm.models import register_model\nimport timm\n\n"
        "@register_model\ndef users_net(pretrained=False, **kwargs):\n"
        "    return timm.create_model('hyena2d_iso_tiny', depth=1, embed_dim=8, **kwargs)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    argv = ["--device-modules", "users_models", "--model", "users_net", "--model-kwargs", "filter_dim=4"]
    assert load(run("run", *argv)["folder"])["arch"] == "users_net"


def test_package_is_the_one_under_test():
    assert Path(hyena_vision.__file__).parents[1] == ROOT
