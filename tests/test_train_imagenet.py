"""The training program, through its real `main()`, on small images that the tests draw themselves."""

import json
import os
from pathlib import Path

import pytest
import torch
from trainer import MODEL, ONE_UPDATE, QUICK, assert_equal, expect_error, load, summary, train_imagenet

from hyena_vision.training import loop
from hyena_vision.training.checkpoint_files import read_checkpoint


def test_loss_falls_and_everything_is_written(run, capsys):
    outcome = run("run", "--epochs", "6", "--checkpoint-hist", "2", "--scale", "0.8", "1.0", "--smoothing", "0")
    rows = summary(outcome["folder"])
    assert [row["epoch"] for row in rows] == list("012345")
    assert float(rows[-1]["train_loss"]) < 0.7 * float(rows[0]["train_loss"])
    assert float(rows[-1]["eval_top1"]) > 80
    assert list(rows[0]) == ["epoch", "train_loss", "eval_loss", "eval_top1", "eval_top5", "lr"]
    assert float(rows[-1]["eval_top5"]) == 100  # of three classes
    files = sorted(os.listdir(outcome["folder"]))
    expected = ["args.yaml", "config.json", "curves.png", "last.pth.tar", "model.safetensors", "model_best.pth.tar"]
    expected += ["predictions.csv", "previous.pth.tar", "report.html", "results.json", "summary.csv"]
    assert [name for name in files if not name.startswith("checkpoint-")] == expected
    assert len(files) - len(expected) == 2
    best = max(range(6), key=lambda epoch: (float(rows[epoch]["eval_top1"]), -float(rows[epoch]["eval_loss"])))
    assert outcome["best_epoch"] == load(outcome["folder"], "model_best.pth.tar")["epoch"] == best
    results = json.loads((Path(outcome["folder"]) / "results.json").read_text())
    assert results["parameters"] == sum(p.numel() for p in load(outcome["folder"])["state_dict"].values())
    assert results["images_per_second"] > 0
    printed = capsys.readouterr().out
    assert printed.startswith("--result\n")
    assert json.loads(printed.removeprefix("--result\n"))[0]["epoch"] in range(6)
    # args.yaml is itself a configuration
    again = train_imagenet.parse_args(["-c", os.path.join(outcome["folder"], "args.yaml")])
    assert (again.epochs, again.lr, again.model_kwargs["embed_dim"]) == (6, 0.01, 16)


def test_moving_average_is_updated_validated_and_saved(run, monkeypatch):
    follows = run("follows", "--model-ema", "--model-ema-decay", "0")
    state = load(follows["folder"])
    assert_equal(state["state_dict_ema"], state["state_dict"])
    assert len({row["eval_loss"] for row in summary(follows["folder"])}) == 2


@pytest.mark.parametrize("val_split", ["val", ""])
def test_an_average_of_almost_nothing_counts_only_where_it_is_better(run, images, caplog, val_split):
    folder = run("stays", "--model-ema", "--model-ema-decay", "1", "--val-split", val_split)["folder"]
    assert any(
        "--model-ema-decay 1.0: after all 6 updates the average will hold 100%" in line for line in caplog.messages
    )
    best = load(folder, "model_best.pth.tar")
    assert not torch.equal(best["state_dict_ema"]["head.weight"], best["state_dict"]["head.weight"])
    assert_equal(read_checkpoint(f"{folder}/model.safetensors"), best["state_dict"])
    if val_split:
        assert (
            sum("average holds 100% of the initial weights and is no better" in line for line in caplog.messages) == 2
        )
        argv = ["--eval", f"{folder}/model_best.pth.tar", "--data-dir", str(images), "--device", "cpu", "-j", "0"]
        evaluated = train_imagenet.main(argv)
        row = next(row for row in summary(folder) if int(row["epoch"]) == best["epoch"])
        assert evaluated["loss"] == float(row["eval_loss"])
        caplog.clear()
        run("warm", "--model-ema", "--model-ema-warmup")
        assert "initial weights" not in caplog.text


def test_equal_metrics_go_to_the_lower_loss_and_the_time_left_ends_with_the_run(run, monkeypatch, caplog):
    losses = [3.0, 1.0, 2.0, 1.0]
    given = iter(losses)
    monkeypatch.setattr(loop, "validate", lambda *args: {"loss": next(given), "top1": 50.0, "top5": 100.0})
    argv = ["--epochs", "100000", "--checkpoint-hist", "2"]
    folder = Path(run("run", *argv, "--stop-epoch", "2")["folder"])
    assert [line for line in caplog.messages if line.startswith("Train: 1")][-1].endswith("0:00:00 of training left")
    outcome = run("run", *argv, "--stop-epoch", "4", "--resume", "auto")
    assert outcome["best_epoch"] == 1 and load(folder, "model_best.pth.tar")["epoch"] == 1
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-1.pth.tar", "checkpoint-3.pth.tar"}


def test_bfloat16_amp_on_the_cpu(run):
    plain, amp = (
        float(summary(run(name, *argv)["folder"])[-1]["train_loss"])
        for name, argv in {"plain": [], "amp": ["--amp", "--amp-dtype", "bfloat16"]}.items()
    )
    assert amp != plain
    assert amp == pytest.approx(plain, rel=0.05)


def test_grad_accumulation_equals_a_large_batch(run):
    large = load(run("large", *ONE_UPDATE, "-b", "24")["folder"])["state_dict"]
    small = load(run("small", *ONE_UPDATE, "-b", "8", "--grad-accum-steps", "3")["folder"])["state_dict"]
    start = load(run("start", *ONE_UPDATE, "-b", "24", "--lr", "1e-30")["folder"])["state_dict"]
    for name, weight in large.items():
        gradient = weight - start[name]
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(small[name] - start[name], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "argv",
    [
        ["--layer-decay", "0.7", "--filter-lr-scale", "0.5", "--clip-grad", "1", "--grad-checkpointing"],
        ["--bce-loss", "--clip-grad", "0.02", "--clip-mode", "agc", "--channels-last", "--val-split", ""],
        ["--model-dtype", "bfloat16", "--mixup", "0.2", "--mixup-off-epoch", "1", "--aug-repeats", "3"],
        ["--torchcompile", "eager", "--model-ema", "--aa", "rand-m9-mstd0.5-inc1", "--val-interval", "2", "-vb", "15"],
        [
            "--sched",
            "plateau",
            "--opt",
            "lookahead_adamw",
            "--input-size",
            "3",
            "24",
            "16",
            "--model-kwargs",
            *MODEL[4:],
        ],
        ["--sched", "none", "--img-size", "32", "--model-kwargs", *MODEL[4:], "--eval-metric", "loss"],
    ],
    ids=lambda argv: argv[0],
)
def test_options_train(run, argv):
    folder = run("run", *argv)["folder"]
    assert summary(folder)[-1]["epoch"] == "1"
    assert all(not key.startswith(("module.", "_orig_mod.")) for key in load(folder)["state_dict"])


def test_weights_of_a_run_start_another(run, tmp_path):
    folder = run("first", "--model-ema", "--model-ema-decay", "0.5")["folder"]
    best = load(folder, "last.pth.tar")["state_dict_ema"]
    frozen = ["--opt", "momentum", "--momentum", "0", "--weight-decay", "0", "--lr", "1e-30", "--sched", "none"]
    exact = run("exact", "--initial-checkpoint", f"{folder}/last.pth.tar", *frozen)["folder"]
    assert_equal(load(exact)["state_dict"], best)
    five_classes = {**best, "head.weight": torch.zeros(5, 16), "head.bias": torch.zeros(5)}
    torch.save({"state_dict": five_classes}, tmp_path / "five.pth")
    adapted = run("adapted", "--pretrained-path", f"{tmp_path}/five.pth", *frozen)["folder"]
    adapted = load(adapted)["state_dict"]
    assert adapted["head.weight"].shape == (3, 16)
    assert torch.equal(adapted["patch_embed.proj.weight"], best["patch_embed.proj.weight"])


USER_ERRORS = {
    "flag": (["--bacth-size", "4"], 2, ["--bacth-size", "did you mean --batch-size"]),
    "type": (["--epochs", "many"], 2, ["--epochs", "many"]),
    "range": (["--batch-size", "0"], 2, ["--batch-size", "at least 1"]),
    "choice": (["--clip-mode", "norn"], 2, ["--clip-mode", "norn", "norm"]),
    "kwargs": (["--opt-kwargs", "fused"], 2, ["--opt-kwargs", "key=value", "fused"]),
    "model": (["--model", "hyena_vit_smal"], 2, ["hyena_vit_smal", "hyena_vit_small"]),
    "model argument": (["--model-kwargs", "embed_dmi=3"], 2, ["hyena2d_iso_tiny", "embed_dmi"]),
    "model value": (["--model-kwargs", "embed_dim=0"], 2, ["hyena2d_iso_tiny", "embed_dim"]),
    "optimizer": (["--opt", "adamww"], 2, ["adamww", "adamw"]),
    "optimizer argument": (["--opt-kwargs", "fussed=1"], 2, ["adamw", "fussed"]),
    "scheduler": (["--sched", "cosin"], 2, ["cosin"]),
    "device": (["--device", "cuda"], 2, ["--device", "CUDA"]),
    "unknown device": (["--device", "gpu"], 2, ["--device", "gpu"]),
    "float16 on the cpu": (["--amp"], 2, ["float16", "bfloat16"]),
    "odd batch": (["-b", "7", "--mixup", "0.8"], 2, ["7", "even"]),
    "mean": (["--mean", "0.5", "0.5"], 2, ["--mean", "3"]),
    "smoothing": (["--smoothing", "1.5"], 2, ["--smoothing", "1.5"]),
    "scale": (["--scale", "0.5"], 2, ["--scale"]),
    "no folder": (["--data-dir", "/no/such/folder"], 2, ["/no/such/folder"]),
    "no data": (["--data-dir", ""], 2, ["--data-dir"]),
    "no split": (["--val-split", "holdout"], 2, ["holdout"]),
    "data set": (["--dataset", "sklearn/iris"], 2, ["sklearn/iris", "sklearn/digits"]),
    "more classes": (["--num-classes", "2"], 2, ["--num-classes", "has 3 classes, the model 2"]),
    "fewer classes": (["--num-classes", "4"], 2, ["--num-classes", "has 3 classes, the model 4"]),
    "batch": (["-b", "25"], 2, ["25", "24"]),
    "resume": (["--resume", "/no/such.pth.tar"], 1, ["/no/such.pth.tar"]),
    "initial": (["--initial-checkpoint", "/no/such.pth"], 1, ["/no/such.pth"]),
    "pretrained": (["--pretrained-path", "/no/such.pth"], 1, ["/no/such.pth"]),
    "no weights": (["--pretrained"], 1, ["hyena2d_iso_tiny", "pretrained"]),
    "config": (["-c", "/no/such.yaml"], 2, ["/no/such.yaml"]),
}


@pytest.mark.parametrize("name", USER_ERRORS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_user_error_is_one_line(name, images, tmp_path, capsys, monkeypatch):
    argv, code, fragments = USER_ERRORS[name]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    start = [*QUICK, "--data-dir", str(images), "--output", str(tmp_path), "--experiment", "run"]
    expect_error(capsys, [*start, *argv], code, *fragments)
    assert not list(tmp_path.iterdir())


def test_auto_resume_needs_a_name(capsys, images):
    expect_error(capsys, [*QUICK, "--data-dir", str(images), "--resume", "auto"], 2, "--resume", "--experiment")
