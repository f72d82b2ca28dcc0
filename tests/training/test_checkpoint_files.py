"""Checkpoint files: what a crash, a full disk, a bad sector or an attacker can do to them."""

import copy
import errno
import os
import random
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

import hyena_vision  # noqa: F401
from hyena_vision.training.checkpoint_files import (
    CheckpointSaver,
    export_model,
    load_weights,
    newest_checkpoint,
    read_checkpoint,
    replace_file,
)
from hyena_vision.training.errors import UserError

ROUNDS = 100


def state(epoch: int, step: int = 0) -> dict:
    """Return the content of a checkpoint in which everything says where it was written."""
    values = torch.full((20_000,), 1000.0 * epoch + step)
    progress = [{"step": step}] if step else []
    return {"epoch": epoch, "version": 2, "state_dict": {"weight": values}, "optimizer": {}, "progress": progress}


@pytest.fixture
def saver(tmp_path) -> CheckpointSaver:
    return CheckpointSaver(torch.nn.Linear(1, 1), None, str(tmp_path), max_history=2)


def save(saver: CheckpointSaver, epoch: int, metric: float) -> None:
    saver.state = state(epoch)
    saver.save_checkpoint(epoch, metric)


def save_recovery(saver: CheckpointSaver, epoch: int, update: int) -> None:
    saver.state = state(epoch - 1, update + 1)
    saver.save_recovery(epoch, update)


def names(folder: Path) -> set[str]:
    return {path.name.removesuffix(".pth.tar") for path in folder.iterdir()}


def test_history_and_best_continue_after_a_resume(saver, tmp_path):
    for epoch, metric in enumerate((10.0, 30.0, 20.0)):
        save(saver, epoch, metric)
    again = CheckpointSaver(saver.model, None, str(tmp_path), max_history=2)
    again.load(*newest_checkpoint(str(tmp_path)))
    assert (again.best_metric, again.best_epoch) == (30.0, 1)
    save(again, 3, 25.0)
    assert names(tmp_path) == {"last", "previous", "model_best", "checkpoint-1", "checkpoint-3"}
    assert read_checkpoint(f"{tmp_path}/model_best.pth.tar")["epoch"] == 1
    assert read_checkpoint(f"{tmp_path}/previous.pth.tar")["epoch"] == 2


def test_a_crash_between_last_and_model_best_is_mended(saver, tmp_path):
    save(saver, 0, 1.0)
    best = tmp_path / "model_best.pth.tar"
    before = best.read_bytes()
    save(saver, 1, 2.0)
    best.unlink()
    best.write_bytes(before)
    again = CheckpointSaver(saver.model, None, str(tmp_path))
    again.load(*newest_checkpoint(str(tmp_path)))
    assert read_checkpoint(str(best))["epoch"] == 1


def test_recovery_files_of_an_earlier_process_are_removed_in_turn(saver, tmp_path):
    save_recovery(saver, 0, 9)
    save_recovery(saver, 0, 10)
    again = CheckpointSaver(saver.model, None, str(tmp_path))
    save_recovery(again, 0, 11)
    assert names(tmp_path) == {"recovery-0-10", "recovery-0-11"}


def test_the_most_advanced_checkpoint_is_the_newest(saver, tmp_path):
    assert newest_checkpoint(str(tmp_path)) is None
    assert newest_checkpoint(f"{tmp_path}/no/such") is None
    save_recovery(saver, 0, 9)
    save_recovery(saver, 0, 10)  # 9 is the later one as text
    assert newest_checkpoint(str(tmp_path))[0].endswith("recovery-0-10.pth.tar")
    save(saver, 0, 2.0)
    assert newest_checkpoint(str(tmp_path))[0].endswith("last.pth.tar")
    save_recovery(saver, 1, 0)
    os.utime(tmp_path / "last.pth.tar")  # times of files mean nothing
    path, content = newest_checkpoint(str(tmp_path))
    assert path.endswith("recovery-1-0.pth.tar") and content["state_dict"]["weight"][0] == 1


def test_damaged_checkpoints_are_passed_over_with_a_line_each(saver, tmp_path, caplog):
    for epoch in range(2):
        save(saver, epoch, float(epoch))
    last, previous = tmp_path / "last.pth.tar", tmp_path / "previous.pth.tar"
    content = last.read_bytes()
    for path in (last, tmp_path / "checkpoint-1.pth.tar", tmp_path / "model_best.pth.tar"):
        path.unlink()
    last.write_bytes(content[:-500])
    path, found = newest_checkpoint(str(tmp_path))
    assert found["epoch"] == 0 and Path(path).samefile(previous)
    assert len([line for line in caplog.messages if "damaged" in line and str(last) in line]) == 1
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match=f"none of the 3 checkpoints in {tmp_path}"):
        newest_checkpoint(str(tmp_path))


def test_two_whole_checkpoints_at_every_moment_from_the_second_save_on(saver, tmp_path, monkeypatch):
    """Before and after each call to the system that changes a name, two files of different content can be read."""
    saver.max_history = 1
    seen = []

    def watch(module, name):
        real = getattr(module, name)

        def watched(*args, **kwargs):
            seen.append(whole())
            result = real(*args, **kwargs)
            seen.append(whole())
            return result

        monkeypatch.setattr(module, name, watched)

    def whole() -> set[int]:
        found = set()
        for name in ("last", "previous", "model_best", *(f"checkpoint-{epoch}" for epoch in range(5))):
            if (path := tmp_path / f"{name}.pth.tar").exists():
                found.add(read_checkpoint(str(path))["epoch"])
        return found

    save(saver, 0, 0.0)
    save(saver, 1, 1.0)
    for name in ("replace", "remove", "unlink", "link"):
        watch(os, name)
    for epoch in (2, 3):
        save(saver, epoch, float(epoch))  # the best each time: all names of the newest are one file
    assert len(seen) > 20 and min(map(len, seen)) >= 2


def test_a_file_system_without_hard_links_gets_copies(saver, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    for epoch in range(3):
        save(saver, epoch, float(epoch))
    assert read_checkpoint(f"{tmp_path}/last.pth.tar")["epoch"] == 2
    assert read_checkpoint(f"{tmp_path}/previous.pth.tar")["epoch"] == 1
    assert read_checkpoint(f"{tmp_path}/checkpoint-1.pth.tar")["epoch"] == 1


@pytest.mark.slow
def test_killed_at_random_moments_of_saving(tmp_path):
    """The newest checkpoint whose save had returned, or one after it, can always be read."""
    generator = random.Random(0)
    duration = _time_of_a_save(tmp_path / "timing")
    unfinished = 0
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        done, report = os.pipe()
        child = os.fork()
        if child == 0:
            _save_for_ever(folder, report)
        os.close(report)
        saved = [os.read(done, 1)]  # the first is there
        time.sleep(generator.uniform(0, 4 * duration))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        saved += os.read(done, 1000)
        os.close(done)
        unfinished += any(path.name.startswith(("tmp", "recovery_tmp")) for path in folder.iterdir())
        found = newest_checkpoint(str(folder))[1]
        position = 2 * (found["epoch"] + 1) + bool(found["progress"])
        assert position in (len(saved) + 1, len(saved) + 2)
        assert found["state_dict"]["weight"].eq(1000.0 * found["epoch"] + bool(found["progress"])).all()
    assert unfinished > 1  # it was killed while writing, not only in between


def _save_for_ever(folder: Path, report: int) -> None:
    saver = CheckpointSaver(torch.nn.Linear(1, 1), None, str(folder), max_history=1)
    try:
        for epoch in range(10**6):  # saves number 1, 2, 3...: end of an epoch, middle of the next
            save(saver, epoch, float(epoch))
            os.write(report, b".")
            save_recovery(saver, epoch + 1, 0)
            os.write(report, b".")
    finally:
        os._exit(1)


def _time_of_a_save(folder: Path) -> float:
    folder.mkdir()
    saver = CheckpointSaver(torch.nn.Linear(1, 1), None, str(folder))
    save(saver, 0, 0.0)
    started = time.perf_counter()
    save(saver, 1, 1.0)
    return time.perf_counter() - started


def test_disk_full_is_one_line_and_loses_nothing(saver, tmp_path):
    for epoch in range(2):
        save(saver, epoch, float(epoch))
    held = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))  # a quota that half a checkpoint exceeds
    try:
        for failing in (lambda: save(saver, 2, 2.0), lambda: save_recovery(saver, 2, 5)):
            with pytest.raises(UserError, match="cannot write .*tmp.pth.tar.*(large|limit|space)"):
                failing()
        with pytest.raises(UserError, match="cannot write .*summary.csv"):
            replace_file(f"{tmp_path}/summary.csv", bytes(50_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == held


def damage(content: bytes, generator: random.Random, flip: bool) -> bytes:
    if not flip:
        return content[: generator.randrange(len(content))]
    position, bit = generator.randrange(len(content)), generator.randrange(8)
    return content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :]


def assert_same(first, second) -> None:
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype and torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    else:
        assert first == second


@pytest.mark.parametrize("flip", [False, True], ids=["truncated", "one bit flipped"])
@pytest.mark.parametrize("kind", ["pth.tar", "safetensors"])
def test_fuzzed_files_are_refused_by_name_or_read_right(tmp_path, kind, flip):
    model = timm.create_model("hyena2d_iso_tiny", embed_dim=8, depth=1, filter_dim=4)
    if kind == "safetensors":
        export_model(model, model.state_dict(), str(tmp_path), {"embed_dim": 8})
        path = tmp_path / "model.safetensors"
    else:
        path = tmp_path / "last.pth.tar"
        torch.save({**state(3, 7), "state_dict": model.state_dict(), "args": {"lr": 0.1}}, path)
    truth, content = read_checkpoint(str(path)), path.read_bytes()
    generator, refused = random.Random(kind), 0
    for _ in range(ROUNDS):
        path.write_bytes(damage(content, generator, flip))
        try:
            found = read_checkpoint(str(path))
        except UserError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            assert_same(found, truth)  # padding, or the date in an archive
    assert refused == ROUNDS if not flip else refused > ROUNDS // 2


def test_fuzzed_files_never_reach_the_model(tmp_path):
    path = tmp_path / "weights.pth"
    model = torch.nn.Linear(50, 40)
    before = model.weight.detach().clone()
    torch.save({"state_dict": torch.nn.Linear(50, 40).state_dict()}, path)
    content, generator = path.read_bytes(), random.Random(1)
    for _ in range(ROUNDS):
        path.write_bytes(damage(content, generator, flip=False))
        with pytest.raises(UserError, match="weights.pth"):
            load_weights(model, str(path))
    assert torch.equal(model.weight, before)


def test_what_would_run_code_is_refused(tmp_path):
    class Hostile:
        def __reduce__(self):
            return subprocess.getoutput, (f"touch {tmp_path}/ran",)

    torch.save({"state_dict": Hostile()}, tmp_path / "hostile.pth")
    torch.save({"state_dict": Hostile()}, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    for name in ("hostile", "legacy"):
        with pytest.raises(UserError, match=f"{name}.pth.*more than tensors and plain types"):
            read_checkpoint(f"{tmp_path}/{name}.pth")
    assert not (tmp_path / "ran").exists()


def test_foreign_safetensors_have_no_checksum_and_are_read(tmp_path):
    safetensors.torch.save_file({"weight": torch.ones(2)}, tmp_path / "a.safetensors")
    assert torch.equal(read_checkpoint(f"{tmp_path}/a.safetensors")["weight"], torch.ones(2))


def test_batch_norms_of_splits_are_not_of_the_model(tmp_path):
    model = timm.create_model("test_resnet", num_classes=3).eval()
    split = timm.layers.convert_splitbn_model(copy.deepcopy(model), 2).eval()
    torch.save({"state_dict": split.state_dict()}, tmp_path / "split.pth.tar")
    with torch.no_grad():
        next(model.parameters()).zero_()
        load_weights(model, str(tmp_path / "split.pth.tar"))
        torch.testing.assert_close(model(x := torch.randn(2, 3, 32, 32)), split(x))


def test_exported_model_is_read_by_timm(tmp_path):
    arguments = dict(embed_dim=8, depth=1, filter_dim=4, img_size=16, patch_size=4, num_classes=3, in_chans=1)
    model = timm.create_model("hyena2d_iso_tiny", **arguments).eval()
    arguments = {name: value for name, value in arguments.items() if name not in ("num_classes", "in_chans")}
    config = {"input_size": (1, 16, 16), "mean": (0.3,), "std": (0.4,)}
    export_model(model, model.state_dict(), str(tmp_path), arguments, **config)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(2, 1, 16, 16)
    assert torch.equal(again(images), model(images))
    read = timm.data.resolve_model_data_config(again)
    assert tuple(read["input_size"]) == (1, 16, 16) and tuple(read["mean"]) == (0.3,) and tuple(read["std"]) == (0.4,)
    assert names(tmp_path) == {"model.safetensors", "config.json"}
