import random

import numpy
import pytest
import torch
from timm.task import ClassificationTask
from torch import nn

from hyena_vision.training.checkpoint import CheckpointSaver, read_checkpoint, resume, rng_state, set_rng_state
from hyena_vision.training.config import parse_args
from hyena_vision.training.errors import UserError


@pytest.fixture
def task():
    return ClassificationTask(nn.Linear(3, 2), nn.CrossEntropyLoss(), verbose=False)


@pytest.fixture
def saver(task, tmp_path):
    optimizer = torch.optim.AdamW(task.get_trainable_module().parameters())
    args = parse_args(["--device", "cpu"])
    return CheckpointSaver(
        task, optimizer, args, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path), max_history=2
    )


def test_random_states_round_trip_through_a_file(tmp_path):
    random.seed(3), numpy.random.seed(3), torch.manual_seed(3)
    numpy.random.randn()  # leaves a cached number behind
    torch.save(rng_state(), tmp_path / "state")
    first = random.random(), numpy.random.randn(), torch.rand(2)
    set_rng_state(torch.load(tmp_path / "state", weights_only=True))
    second = random.random(), numpy.random.randn(), torch.rand(2)
    assert first[:2] == second[:2] and torch.equal(first[2], second[2])


def test_history_and_best_continue_after_a_resume(saver, task, tmp_path):
    for epoch, metric in enumerate((10.0, 30.0, 20.0)):
        saver.save_checkpoint(epoch, metric)
    again = CheckpointSaver(
        task,
        saver.optimizer,
        saver.args,
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
        max_history=2,
    )
    path = str(tmp_path / "last.pth.tar")
    again.load(path, resume(path, task, saver.optimizer))
    assert (again.best_metric, again.best_epoch) == (30.0, 1)
    assert again.save_checkpoint(3, 25.0) == (30.0, 1)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"last.pth.tar", "model_best.pth.tar", "checkpoint-1.pth.tar", "checkpoint-3.pth.tar"}
    assert read_checkpoint(str(tmp_path / "model_best.pth.tar"))["epoch"] == 1


def test_last_is_whole_at_every_moment_of_a_save(saver, tmp_path, monkeypatch):
    saver.save_checkpoint(0, 1.0)
    seen = []

    def watch(name):
        original = getattr(type(saver), name)

        def watched(self, *args, **kwargs):
            seen.append(read_checkpoint(str(tmp_path / "last.pth.tar"))["epoch"])
            result = original(self, *args, **kwargs)
            seen.append(read_checkpoint(str(tmp_path / "last.pth.tar"))["epoch"])
            read_checkpoint(str(tmp_path / "model_best.pth.tar"))
            return result

        monkeypatch.setattr(type(saver), name, watched)

    for name in ("_save", "_replace", "_duplicate"):
        watch(name)
    removed = []
    unlink = __import__("os").unlink
    monkeypatch.setattr("os.unlink", lambda path, **kwargs: (removed.append(str(path)), unlink(path, **kwargs)))
    saver.save_checkpoint(1, 2.0)
    assert seen == sorted(seen) and set(seen) == {0, 1}
    assert not [path for path in removed if path.endswith(("last.pth.tar", "model_best.pth.tar"))]


def test_failed_write_keeps_the_last_checkpoint(saver, tmp_path, monkeypatch):
    saver.save_checkpoint(0, 1.0)

    def full(state, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="No space left"):
        saver.save_checkpoint(1, 2.0)
    assert read_checkpoint(str(tmp_path / "last.pth.tar"))["epoch"] == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"last.pth.tar", "model_best.pth.tar", "checkpoint-0.pth.tar"}


def test_resume_without_an_average_starts_it_from_the_weights(saver, task, tmp_path):
    saver.save_checkpoint(0, 1.0)
    other = ClassificationTask(nn.Linear(3, 2), nn.CrossEntropyLoss(), verbose=False)
    other.setup_ema()
    resume(str(tmp_path / "last.pth.tar"), other)
    assert torch.equal(other.get_eval_model(ema=True).module.weight, task.get_trainable_module().weight)


def test_safetensors_are_read_and_damaged_ones_named(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(2)}, tmp_path / "a.safetensors")
    assert torch.equal(read_checkpoint(str(tmp_path / "a.safetensors"))["weight"], torch.ones(2))
    (tmp_path / "b.safetensors").write_bytes(b"12345678nonsense")
    with pytest.raises(UserError, match="b.safetensors"):
        read_checkpoint(str(tmp_path / "b.safetensors"))
