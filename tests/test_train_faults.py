"""What must not end a run, or must end it in one line with nothing lost: numbers, images, disks, data sets."""

import math
import os
import resource
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from trainer import (
    MODEL,
    QUICK,
    ROOT,
    arguments,
    assert_same_run,
    bad_image,
    contents,
    draw_images,
    expect_error,
    fail_in,
    load,
    summary,
    train_imagenet,
)

from hyena_vision.training import loop, task
from hyena_vision.training.bad_images import BadImages
from hyena_vision.training.model import create_model, data_config
from hyena_vision.training.pipeline import create_loaders
from hyena_vision.training.splits import create_datasets

FAULTY = ["--no-aug"]


def spoil(patch: pytest.MonkeyPatch, *calls: int, gradient: bool = False) -> None:
    """Make the loss of the n-th steps, from 1, or only their gradients, infinite."""
    seen = []

    def create_spoiled_model(args, create=train_imagenet.create_model):
        def spoil(gradient):
            seen.append(None)
            return gradient * math.inf if len(seen) in calls else gradient

        model = create(args)
        model.head.bias.register_hook(spoil)
        return model

    class Spoiled(torch.nn.Module):
        def __init__(self, criterion):
            super().__init__()
            self.criterion = criterion

        def forward(self, output, target):
            seen.append(None)
            return self.criterion(output, target) * (math.nan if len(seen) in calls else 1.0)

    if gradient:
        patch.setattr(train_imagenet, "create_model", create_spoiled_model)
    else:
        patch.setattr(task, "create_loss", lambda *args, create=task.create_loss: Spoiled(create(*args)))


@pytest.mark.parametrize("gradient", [False, True], ids=["loss", "gradient"])
def test_not_finite_stops_before_the_update_and_names_the_images(run, images, tmp_path, monkeypatch, capsys, gradient):
    spoil(monkeypatch, 5, gradient=gradient)
    argv = [*QUICK, "--data-dir", str(images), "--output", str(tmp_path), "--experiment", "run", *FAULTY]
    expect_error(capsys, argv, 1, "not finite", "epoch 1, batch 1 (images ", "inf" if gradient else "loss nan")
    monkeypatch.undo()
    # The last whole checkpoint is that of epoch 0, and the run goes on from there as if nothing had been
    assert load(tmp_path / "run")["epoch"] == 0
    assert all(value.isfinite().all() for value in load(tmp_path / "run")["state_dict"].values())
    resumed = run("run", *FAULTY, "--resume", "auto")["folder"]
    straight = run("straight", *FAULTY)["folder"]
    assert Path(resumed, "summary.csv").read_bytes() == Path(straight, "summary.csv").read_bytes()


def test_the_images_named_are_those_of_the_batch(images, tmp_path, monkeypatch, capsys):
    spoil(monkeypatch, 2)
    argv = [*QUICK, "--data-dir", str(images), "--output", str(tmp_path), "--experiment", "run", *FAULTY]
    argv += ["--grad-accum-steps", "2"]
    expected = [index for batch in (0, 1) for index in _batches(argv)[batch]]
    expect_error(capsys, argv, 1, f"batch 0, 1 (images {', '.join(map(str, expected))} of the training set)")


def _batches(argv: list[str]) -> list[list[int]]:
    args = arguments(*argv)
    config = data_config(args, create_model(args))
    datasets = create_datasets(args)
    loader = create_loaders(args, config, datasets, 3, torch.device("cpu"), BadImages()).train
    loader.begin(0)
    return [loader.images_of(number) for number, _ in enumerate(loader)]


@pytest.mark.parametrize("gradient", [False, True], ids=["loss", "gradient"])
def test_not_finite_updates_are_skipped_up_to_a_limit(run, monkeypatch, capsys, caplog, gradient):
    with monkeypatch.context() as patch:
        spoil(patch, 2, 5, gradient=gradient)
        folder = run("run", *FAULTY, "--on-nonfinite", "skip", "--nonfinite-limit", "1", "--model-ema")["folder"]
    assert [row["epoch"] for row in summary(folder)] == list("01")
    assert all(math.isfinite(float(value)) for row in summary(folder) for value in row.values())
    assert all(value.isfinite().all() for value in load(folder)["state_dict"].values())
    assert sum("Skipped an update: not finite" in line for line in caplog.messages) == 2
    assert [line for line in caplog.messages if "were not finite and skipped" in line] == [
        f"Epoch {epoch}: 1 updates were not finite and skipped." for epoch in (0, 1)
    ]
    spoil(monkeypatch, 5, 6, gradient=gradient)
    with pytest.raises(SystemExit) as stopped:
        run("limit", *FAULTY, "--on-nonfinite", "skip", "--nonfinite-limit", "1")
    assert stopped.value.code == 1
    assert "1 updates of this epoch were skipped before" in capsys.readouterr().err


def test_a_learning_rate_far_too_high_is_noticed_without_any_help(run, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("run", "--opt", "sgd", "--lr", "1e30", "--epochs", "3")
    assert stopped.value.code == 1
    assert "not finite" in capsys.readouterr().err


@pytest.fixture
def damaged(tmp_path) -> tuple[Path, list[Path]]:
    """A data set with two images in training, and one in validation, that cannot be read."""
    folder = draw_images(tmp_path / "images", {"train": 8, "val": 5})
    bad = [folder / "train" / "green" / "2.png", folder / "train" / "red" / "7.png", folder / "val" / "blue" / "0.png"]
    bad[0].write_bytes(bad[0].read_bytes()[:150])
    bad[1].write_bytes(b"not an image")
    bad[2].write_bytes(b"")
    return folder, bad


@pytest.mark.parametrize("workers", ["0", "1"])
def test_bad_images_stop_or_are_skipped_and_counted(damaged, tmp_path, capsys, caplog, workers):
    folder, bad = damaged
    argv = [*QUICK, "--data-dir", str(folder), "--output", str(tmp_path), "-j", workers, "--experiment"]
    expect_error(capsys, [*argv, "stop"], 1, "cannot read image", str(folder / "train"))
    outcome = train_imagenet.main([*argv, "skip", "--on-bad-image", "skip"])
    assert len(outcome["results"]) == 2
    for path in bad:
        lines = [line for line in caplog.messages if str(path) in line]
        assert len(lines) == 2 and "\n" not in lines[0]  # once an epoch
    assert [line for line in caplog.messages if "could not be read and were skipped" in line] == [
        f"Epoch {epoch}: 3 images could not be read and were skipped." for epoch in range(2)
    ]
    assert any("(14 images)" in line for line in caplog.messages)  # of 15 in validation


@pytest.fixture(scope="module")
def straight(images, tmp_path_factory) -> str:
    """Folder of a run that nothing stopped."""
    output = str(tmp_path_factory.mktemp("straight"))
    return train_imagenet.main([*QUICK, "--data-dir", str(images), "--output", output, "--experiment", "run"])["folder"]


FAULTS = {"image": bad_image, "bug": lambda: [][1], "worker": lambda: os.kill(os.getpid(), signal.SIGKILL)}


@pytest.mark.parametrize("fault", [*FAULTS, "metric"])
def test_an_epoch_is_not_trained_again_for_a_fault_in_its_validation(
    run, straight, images, tmp_path, monkeypatch, capsys, fault
):
    argv = [*QUICK, "--data-dir", str(images), "--output", str(tmp_path), "--experiment", "run"]
    said = {"image": "7.png", "worker": "fewer --workers", "metric": "'loss': nan"}
    with monkeypatch.context() as patch:
        if fault == "metric":
            patch.setattr(loop, "validate", lambda *args: {"loss": math.nan, "top1": 1.0, "top5": 1.0})
        else:
            fail_in(patch, "val", 3, FAULTS[fault])
        # How long a loader waits before it looks whether a worker lives: 5 seconds, of which nothing is to be learnt
        patch.setattr(torch.utils.data.dataloader._MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.5,))
        if fault == "bug":
            with pytest.raises(IndexError):
                train_imagenet.main(argv)
        else:
            expect_error(capsys, [*argv, "-j", str(int(fault == "worker"))], 1, said[fault])
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"args.yaml", "recovery-0-2.pth.tar"}
    steps, count = [], loop.seed_generators
    monkeypatch.setattr(loop, "seed_generators", lambda seed: [steps.append(seed), count(seed)])
    assert_same_run(run("run", "--resume", "auto")["folder"], straight)
    assert len(steps) == 3  # those of the second epoch


def test_a_fault_in_training_costs_no_update(run, images, tmp_path, monkeypatch, capsys):
    """With batch norms and in the middle of a group of batches, where the averages have moved on."""
    argv = ["--model", "test_resnet", "--model-kwargs", "--img-size", "32", "-b", "4", "--grad-accum-steps", "2"]
    argv += ["--no-prefetcher"]  # which would meet the fault a batch earlier
    whole = run("straight", *argv, "--epochs", "1")["folder"]
    start = [*QUICK, "--data-dir", str(images), "--output", str(tmp_path), "--experiment", "run"]
    with monkeypatch.context() as patch:
        fail_in(patch, "train", 14, bad_image)
        expect_error(capsys, [*start, *argv, "--epochs", "1"], 1, "7.png")
    assert load(tmp_path / "run", "recovery-0-0.pth.tar")["progress"][0]["step"] == 2
    assert_same_run(run("run", *argv, "--epochs", "1", "--resume", "auto")["folder"], whole)


def test_an_image_of_monstrous_size_and_one_of_another_reader(tmp_path, capsys):
    folder = draw_images(tmp_path / "images", {"train": 8, "val": 1})
    bad = folder / "train" / "green" / "2.png"
    whole = bad.read_bytes()
    header = bytearray(whole[:33])
    header[16:24] = (65535).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    bad.write_bytes(header + whole[33:])
    argv = [*QUICK, "--data-dir", str(folder), "--output", str(tmp_path), "--experiment"]
    expect_error(capsys, [*argv, "stop"], 1, str(bad))
    train_imagenet.main([*argv, "skip", "--on-bad-image", "skip"])
    capsys.readouterr()
    bad.write_bytes(b"")
    reader = ["--dataset", "torch/image_folder"]
    expect_error(capsys, [*argv, "stop2", *reader], 1, f"cannot read image {bad}: ")
    train_imagenet.main([*argv, "skip2", *reader, "--on-bad-image", "skip"])


def test_batch_norms_survive_what_is_skipped(run, monkeypatch):
    calls = []

    def create_model_that_is_given_nan(args):
        def spoil(model, inputs):
            calls.append(None)
            return inputs[0] * math.nan if len(calls) == 2 else None

        model = create_model(args)
        model.register_forward_pre_hook(spoil)
        return model

    monkeypatch.setattr(train_imagenet, "create_model", create_model_that_is_given_nan)
    argv = ["--model", "test_resnet", "--model-kwargs", "--img-size", "32", "--on-nonfinite", "skip", "--epochs", "1"]
    assert all(value.isfinite().all() for value in load(run("run", *argv)["folder"])["state_dict"].values())


def test_damaged_data_folders(tmp_path, capsys):
    start = [*QUICK, "--output", str(tmp_path / "out")]
    empty = tmp_path / "empty"
    (empty / "train" / "red").mkdir(parents=True)
    expect_error(capsys, [*start, "--data-dir", str(empty)], 2, str(empty))
    unlike = draw_images(tmp_path / "unlike", {"train": 4, "val": 1})
    (unlike / "val" / "green").rename(unlike / "val" / "grean")
    expect_error(capsys, [*start, "--data-dir", str(unlike)], 2, "grean", "green")
    assert not (tmp_path / "out").exists()


def test_disk_full_in_the_second_epoch_is_one_line_and_the_first_is_whole(images, tmp_path, monkeypatch, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    real = train_imagenet.train_one_epoch

    def fill(run, epoch, *args):
        if epoch == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        return real(run, epoch, *args)

    monkeypatch.setattr(train_imagenet, "train_one_epoch", fill)
    argv = [*QUICK, "--data-dir", str(images), "--output", str(tmp_path), "--experiment", "run"]
    try:
        expect_error(capsys, argv, 1, "cannot write", "tmp.pth.tar", "too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    held = contents(tmp_path / "run")
    assert {"last.pth.tar", "model_best.pth.tar", "checkpoint-0.pth.tar"} <= held.keys()
    assert not [name for name in held if "tmp" in name]
    monkeypatch.undo()
    outcome = train_imagenet.main([*argv, "--resume", "auto"])  # there is space again
    assert [row["epoch"] for row in summary(outcome["folder"])] == ["0", "1"]


def test_an_output_that_cannot_be_written_to_is_one_line(images, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    argv = [*QUICK, "--data-dir", str(images), "--output", str(tmp_path / "file"), "--experiment", "run"]
    expect_error(capsys, argv, 1, "cannot create", str(tmp_path / "file"))


def test_damaged_checkpoints_are_named_and_nothing_is_lost(run, images, tmp_path, capsys):
    folder = Path(run("run")["folder"])
    held = contents(folder)
    truncated, flipped, foreign, text, tensor, hostile = (
        tmp_path / f"{name}.pth" for name in ("cut", "flipped", "vit", "text", "tensor", "evil")
    )
    whole = bytearray(held["last.pth.tar"])
    truncated.write_bytes(whole[: len(whole) // 2])
    whole[len(whole) // 2] ^= 1
    flipped.write_bytes(whole)
    torch.save({"fc.weight": torch.zeros(3)}, foreign)
    text.write_text("weights")
    torch.save(torch.zeros(3), tensor)
    torch.save({"state_dict": subprocess.Popen}, hostile)
    start = [*QUICK, "--data-dir", str(images), "--output", str(tmp_path), "--experiment"]
    for path in (truncated, flipped, foreign, text, tensor, hostile):
        if path != foreign:
            expect_error(capsys, [*start, "run", "--resume", str(path)], 1, str(path))
            expect_error(capsys, ["--eval", str(path), "--device", "cpu"], 1, str(path))
        expect_error(capsys, [*start, "new", "--resume", str(path)], 1, str(path))
        expect_error(capsys, [*start, "new", "--initial-checkpoint", str(path)], 1, str(path))
        expect_error(capsys, [*start, "new", "--pretrained-path", str(path)], 1, str(path))
    expect_error(capsys, [*start, "run", "--resume", str(foreign)], 2, "run already")
    expect_error(capsys, [*start, "run", "--resume", "auto", "--data-dir", "/no/such/folder"], 2, "/no/such/folder")
    expect_error(capsys, [*start, "run"], 2, str(folder), "--resume auto")
    assert not (tmp_path / "new").exists()
    assert contents(folder) == held


def test_every_line_of_a_failure_in_a_shell(images, tmp_path):
    """Nothing of torch or Python comes before or after the one line."""
    (tmp_path / "weights.pth").write_bytes(b"")
    command = [sys.executable, str(ROOT / "train_imagenet.py"), *QUICK, "--data-dir", str(images)]
    command += ["--initial-checkpoint", str(tmp_path / "weights.pth"), "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("train_imagenet.py: error: cannot read checkpoint") and done.stderr.count("\n") == 1


def test_a_bug_keeps_its_traceback(run, monkeypatch):
    def broken(*args, **kwargs):
        raise TypeError("a bug")

    monkeypatch.setattr(train_imagenet, "train_one_epoch", broken)
    with pytest.raises(TypeError, match="a bug"):
        run("run")


def test_model_arguments_stay_in_the_message(capsys, images):
    expect_error(capsys, [*QUICK, "--data-dir", str(images), "--model-kwargs", *MODEL[3:], "dpeth=2"], 2, "dpeth")
