"""A run that is stopped anywhere and resumed is, to the last bit, the run that was not stopped."""

import csv
import os
import random
import shutil
import signal
import sys
import traceback
from pathlib import Path

import numpy
import pytest
import torch
import yaml
from trainer import (
    MODEL,
    QUICK,
    RANDOM,
    assert_equal,
    assert_same_run,
    contents,
    expect_error,
    load,
    signal_at,
    summary,
    train_imagenet,
)

from hyena_vision.training import resolve
from hyena_vision.training.checkpoint_files import read_checkpoint


@pytest.fixture(scope="module")
def straight(images, tmp_path_factory):
    """Runs that nothing stopped, by their settings: 2 or 3 epochs of 3 batches."""
    output, done = tmp_path_factory.mktemp("straight"), {}

    def straight(*more: str) -> Path:
        if more not in done:
            argv = [*QUICK, "--data-dir", str(images), "--output", str(output), "--experiment", str(len(done))]
            done[more] = train_imagenet.main([*argv, *RANDOM, *more])["folder"]
        return Path(done[more])

    return straight


def stop(run, monkeypatch, code: int, *argv: str, **where) -> None:
    """Run until a signal stops it, and make sure that nothing of the process helps the next run."""
    with monkeypatch.context() as patch:
        signal_at(patch, **where)
        with pytest.raises(SystemExit) as stopped:
            run("stopped", *RANDOM, *argv)
    assert stopped.value.code == code
    random.seed(1), numpy.random.seed(1), torch.manual_seed(1)


PLATEAU = "--epochs 3 --sched plateau --patience-epochs 0 --eval-metric loss --lr-noise 0.3".split()
SETTINGS = {
    "plain": [],
    "accumulated": ["--grad-accum-steps", "2", "--sched-on-updates", "--no-prefetcher"],
    "workers": ["-j", "1", "--val-interval", "2"],
    "plateau": PLATEAU,
    "lookahead": ["--opt", "lookahead_adamw", "--grad-accum-steps", "2"],
}


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ("plain", dict(call=5)),
        ("plain", dict(call=2, function="validate", number=signal.SIGUSR1)),  # in that of the average
        ("accumulated", dict(call=4)),
        ("accumulated", dict(call=6)),
        ("workers", dict(call=4)),
        ("plateau", dict(call=3)),
        ("plateau", dict(call=8)),
        ("lookahead", dict(call=5)),
    ],
)
def test_stopped_by_a_signal_and_resumed_is_the_same_run(run, straight, monkeypatch, settings, where):
    whole = straight(*SETTINGS[settings])
    stop(run, monkeypatch, 75, *SETTINGS[settings], **where)
    resumed = run("stopped", *RANDOM, *SETTINGS[settings], "--resume", "auto")
    assert_same_run(whole, resumed["folder"])


@pytest.mark.parametrize(("settings", "epoch"), [("plain", 0), ("plateau", 1)])
def test_from_the_end_of_an_epoch(run, straight, settings, epoch):
    whole = straight(*SETTINGS[settings])
    resumed = run("from", *RANDOM, *SETTINGS[settings], "--resume", str(whole / f"checkpoint-{epoch}.pth.tar"))
    for key in ("state_dict", "state_dict_ema", "optimizer"):
        assert_equal(load(whole)[key], load(resumed["folder"])[key])


def test_stopped_again_and_again(run, straight, monkeypatch):
    """Once in every update, with a recovery file at each: the last is a new process that has nothing left to train."""
    for _ in range(6):
        stop(run, monkeypatch, 75, "--resume", "auto", "--recovery-interval", "1", call=1)
    folder = run("stopped", *RANDOM, "--resume", "auto")["folder"]
    assert_same_run(straight(), folder)
    assert sorted(path.name for path in Path(folder).glob("recovery*")) == [
        "recovery-1-1.pth.tar",
        "recovery-1-2.pth.tar",
    ]


def test_random_numbers_matter(run, straight):
    """The comparison above would not notice a part that draws none."""
    whole = load(straight())["state_dict"]["head.weight"]
    for name, changed in {"a": ["--reprob", "0"], "b": ["--drop", "0"], "c": ["--seed", "1"]}.items():
        other = load(run(name, *RANDOM, *changed)["folder"])["state_dict"]["head.weight"]
        assert not torch.equal(other, whole)


def in_a_new_process(argv: list[str], said: Path, call: int, number: int) -> int:
    """Run the program in a forked process, which gets a signal, and return how it ended."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        sys.stdout = sys.stderr = said.open("a", buffering=1)
        signal_at(pytest.MonkeyPatch(), call, number)
        train_imagenet.main(argv)
        code = 0
    except SystemExit as stopped:
        code = stopped.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def test_killed_process_and_new_process(images, straight, tmp_path):
    """k steps, SIGUSR1, a new process, SIGKILL in it, and a third one."""
    argv = [*QUICK, "--data-dir", str(images), "--output", str(tmp_path), "--experiment", "run", *RANDOM]
    argv += ["-j", "1", "--recovery-interval", "1", "--resume", "auto"]
    said = tmp_path / "said"
    for number, call, code in ((signal.SIGUSR1, 4, 75), (signal.SIGKILL, 2, -signal.SIGKILL), (0, 0, 0)):
        assert in_a_new_process(argv, said, call, number) == code, said.read_text()
        assert "Traceback" not in said.read_text()
        if number == signal.SIGUSR1:
            assert "stopped by SIGUSR1; --resume auto goes on from here" in said.read_text()
            assert load(tmp_path / "run", "recovery-1-0.pth.tar")["progress"][0]["step"] == 1
    assert_same_run(straight(), tmp_path / "run")


def test_a_broken_newest_checkpoint_is_passed_over(run, straight, monkeypatch, tmp_path, caplog):
    stop(run, monkeypatch, 75, "--recovery-interval", "1", call=6)
    newest = tmp_path / "stopped" / "recovery-1-2.pth.tar"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert_same_run(straight(), run("stopped", *RANDOM, "--resume", "auto")["folder"])
    assert [line for line in caplog.messages if "damaged" in line and str(newest) in line]
    assert any("Going on in epoch 1 at batch 2" in line and "recovery-1-1" in line for line in caplog.messages)


def test_ctrl_c_saves_and_a_second_one_does_not_wait(run, monkeypatch):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background a shell ignores it
    try:
        stop(run, monkeypatch, 130, call=2, number=signal.SIGINT)
        with monkeypatch.context() as patch:
            signal_at(patch, 1, signal.SIGINT)
            signal_at(patch, 1, signal.SIGINT, "synchronizes")
            with pytest.raises(SystemExit) as stopped:
                run("stopped", *RANDOM, "--resume", "auto")
        assert stopped.value.code == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with monkeypatch.context() as patch:
            signal_at(patch, 1, signal.SIGINT)
            assert len(run("background", *RANDOM)["results"]) == 2
    finally:
        signal.signal(signal.SIGINT, before)


def test_resume_from_an_earlier_checkpoint_keeps_the_later_rows(run):
    folder = Path(run("run")["folder"])
    before = summary(folder)
    outcome = run("run", "--resume", str(folder / "checkpoint-0.pth.tar"))
    assert [row["epoch"] for row in summary(folder)] == list("01")
    assert summary(folder) == before  # the same again, since resuming is exact
    assert len((folder / "summary-before-epoch-1.csv").read_text().splitlines()) == 3
    assert (folder / "args-epoch-1.yaml").exists() and (folder / "args.yaml").exists()
    assert outcome["best_metric"] == max(float(row["eval_top1"]) for row in before)


def test_a_row_cut_short_by_a_crash_is_written_again(run):
    folder = Path(run("run")["folder"])
    whole = (folder / "summary.csv").read_bytes()
    (folder / "summary.csv").write_bytes(whole.splitlines(keepends=True)[0] + b"0,0.5")
    run("run", "--resume", str(folder / "checkpoint-0.pth.tar"))
    assert (folder / "summary.csv").read_bytes().splitlines()[1:] == whole.splitlines()[2:]


def test_resume_auto_without_a_checkpoint_starts_and_of_a_finished_run_does_nothing(run):
    folder = run("run", "--epochs", "1", "--resume", "auto")["folder"]
    held = contents(folder)
    outcome = run("run", "--epochs", "1", "--resume", "auto")
    assert outcome["results"] == [] and outcome["best_epoch"] == 0
    added = contents(folder)
    assert {name: added[name] for name in held} == held
    assert added.keys() - held.keys() == {"args-epoch-1.yaml"}
    exported = Path(folder, "model.safetensors")
    weights = read_checkpoint(str(exported))
    for damage in (exported.unlink, lambda: os.utime(exported, (0, 0))):  # killed just before the export, or before
        damage()
        run("run", "--epochs", "1", "--resume", "auto")
        assert_equal(read_checkpoint(str(exported)), weights)
        assert os.path.getmtime(exported) > 1


def test_other_settings_are_named_and_refused(run, images, tmp_path, capsys, caplog):
    folder = run("run", "--epochs", "1")["folder"]
    held = contents(folder)
    start = [*QUICK, "--data-dir", str(images), "--output", str(tmp_path), "--experiment", "run", "--epochs", "1"]
    start += ["--resume", "auto"]
    expect_error(capsys, [*start, "--lr", "0.5", "--mixup", "0.2"], 2, "lr 0.01 (now 0.5)", "mixup 0.0 (now 0.2)")
    expect_error(capsys, [*start, "--seed", "9", "-b", "4"], 2, "seed 42 (now 9)", "batch_size 8 (now 4)")
    expect_error(capsys, [*start, "--model", "hyena_vit_tiny"], 2, "model hyena2d_iso_tiny (now hyena_vit_tiny)")
    expect_error(capsys, [*start, "--num-classes", "5"], 2, "num_classes 3 (now 5)", "--resume-force")
    other = ["--model-kwargs", *MODEL[3:-2], "filter_dim=8", "depth=2"]
    expect_error(capsys, [*start, *other], 2, "'depth': 1", "'depth': 2")
    expect_error(capsys, [*start, *other, "--resume-force"], 1, "last.pth.tar", "does not fit")
    assert contents(folder) == held
    assert len(run("run", "--epochs", "2", "--lr", "1e-3", "--resume", "auto", "--resume-force")["results"]) == 1
    assert "lr 0.01 (now 0.001); going on with the new ones" in caplog.text
    again = ["--epochs", "2", "--lr", "1e-3", "--resume", "auto", "-j", "1", "--log-interval", "3"]
    assert run("run", *again)["results"] == []  # how it is run may change


BY_BATCH = [*QUICK, "--lr", "0", "--lr-base", "0.32", "--lr-base-scale", "linear"]  # 0.01 for 8 images


def test_a_run_goes_on_from_its_own_settings_file(images, tmp_path, monkeypatch, caplog):
    """Whatever was left open in it, wherever the folder is now, and with more epochs."""
    argv = [*BY_BATCH, "--sched", "step", "--decay-epochs", "2", "--data-dir", str(images)]
    whole = train_imagenet.main([*argv, "--epochs", "3", "--output", str(tmp_path), "--experiment", "whole"])
    first = train_imagenet.main([*argv, "--epochs", "2", "--output", str(tmp_path), "--stop-epoch", "1"])
    moved = str(Path(first["folder"]).rename(tmp_path / "moved"))
    monkeypatch.chdir(tmp_path)
    assert yaml.safe_load(Path(moved, "args.yaml").read_text())["lr"] == 0  # as it was given
    for more in (["--stop-epoch", "2"], ["--epochs", "3", "--stop-epoch", "3"]):
        again = train_imagenet.main(["-c", f"{moved}/args.yaml", "--resume", "auto", *more])
        assert again["folder"] == moved and len(again["results"]) == 1
    assert "3 epochs, 2 before: the schedule is that of 3 epochs from here on." in caplog.messages
    for key in ("state_dict", "optimizer"):
        assert_equal(load(moved)[key], load(whole["folder"])[key])
    settings = yaml.safe_load(Path(moved, "args.yaml").read_text())
    assert settings["epochs"] == 3 and Path(moved, "args-before-epoch-2.yaml").exists()
    assert train_imagenet.main(["-c", "moved/args.yaml", "--resume", "auto"])["results"] == []


def test_old_settings_files_with_what_a_run_had_found_go_on(images, tmp_path, capsys):
    argv = [*BY_BATCH, "--data-dir", str(images), "--output", str(tmp_path), "--experiment", "run"]
    folder = train_imagenet.main([*argv, "--epochs", "2", "--stop-epoch", "1"])["folder"]
    path = Path(folder, "args.yaml")
    checkpoint = load(folder)
    checkpoint["args"] |= {"lr": None, "num_classes": None}
    torch.save(checkpoint, f"{folder}/last.pth.tar")
    settings = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(settings | {"lr": 0.02}))
    expect_error(capsys, ["-c", str(path), "--resume", "auto"], 2, "lr None (now 0.02)")
    path.write_text(yaml.safe_dump(settings | {"lr": 0.01, "num_classes": 3}))
    assert len(train_imagenet.main(["-c", str(path), "--resume", "auto", "--stop-epoch", "2"])["results"]) == 1


def test_validation_may_be_dropped_and_added_again(run, caplog):
    forced = ["--resume", "auto", "--resume-force"]
    folder = run("run", "--epochs", "3", "--stop-epoch", "1")["folder"]
    assert run("run", "--epochs", "3", "--stop-epoch", "2", "--val-split", "", *forced)["best_epoch"] == 1
    assert "Ranked by loss, by top1 before: the best metric starts anew." in caplog.messages
    outcome = run("run", "--epochs", "3", *forced)
    rows = summary(folder)
    assert [bool(row["eval_top1"]) for row in rows] == [True, False, True] and all(row["lr"] for row in rows)
    assert outcome["best_metric"] == float(rows[2]["eval_top1"]) and Path(folder, "model.safetensors").exists()
    added = run("added", "--epochs", "2", "--stop-epoch", "1", "--val-split", "")["folder"]
    run("added", "--epochs", "2", *forced)
    assert [list(row) for row in summary(added)] == [list(rows[0])] * 2
    assert [row["eval_loss"] != "" for row in summary(added)] == [False, True]


def test_a_branch_from_an_earlier_checkpoint_is_the_newest_from_then_on(run, straight, monkeypatch):
    folder = Path(run("stopped", *RANDOM)["folder"])
    stop(run, monkeypatch, 75, "--resume", str(folder / "checkpoint-0.pth.tar"), call=2)
    assert (folder / "superseded-1-last.pth.tar").exists() and (folder / "superseded-1-checkpoint-1.pth.tar").exists()
    outcome = run("stopped", *RANDOM, "--resume", "auto")
    assert [result["epoch"] for result in outcome["results"]] == [1]
    assert_same_run(straight(), folder)


def test_forced_settings_are_those_of_the_optimizer(run):
    folder = run("run", "--epochs", "1", "--sched", "none")["folder"]
    argv = ["--epochs", "2", "--sched", "none", "--lr", "0.5", "--weight-decay", "0.3", "--opt-betas", "0.5", "0.6"]
    run("run", *argv, "--resume", "auto", "--resume-force")
    groups = load(folder)["optimizer"]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.0, 0.3}
    assert all(group["lr"] == 0.5 and tuple(group["betas"]) == (0.5, 0.6) for group in groups)


def test_recovery_twice_at_one_place_keeps_the_one_before(run, monkeypatch, tmp_path):
    stop(run, monkeypatch, 75, "--recovery-interval", "1", call=3)
    stop(run, monkeypatch, 75, "--recovery-interval", "1", "--resume", "auto", call=1, function="validate")
    names = sorted(path.name for path in (tmp_path / "stopped").glob("recovery*"))
    assert names == ["recovery-0-1.pth.tar", "recovery-0-2.pth.tar"]


def test_a_milestone_that_a_crash_left_out_is_made_up_for(run):
    argv = ["--epochs", "2", "--save-epochs", "1"]
    folder = Path(run("run", *argv, "--stop-epoch", "1")["folder"])
    (folder / "milestone-1.pth.tar").unlink()
    run("run", *argv, "--resume", "auto")
    assert load(folder, "milestone-1.pth.tar")["epoch"] == 0


def test_into_another_folder_with_its_own_settings_file(run, tmp_path):
    first = run("first", "--epochs", "2")["folder"]
    again = ["-c", f"{first}/args.yaml", "--resume", f"{first}/checkpoint-0.pth.tar", "--model-kwargs", *MODEL[3:]]
    assert len(run("second", *again)["results"]) == 1
    assert (tmp_path / "second" / "args.yaml").exists()


def test_a_summary_cut_short_in_its_first_write(run, tmp_path, monkeypatch):
    stop(run, monkeypatch, 75, call=2)
    shutil.copytree(tmp_path / "stopped", tmp_path / "held")
    for content in ("", "epoch,train_lo", "epoch,train_loss,eval_loss,eval_top1,eval_top5,lr\n\0\0\n"):
        shutil.rmtree(tmp_path / "stopped")
        shutil.copytree(tmp_path / "held", tmp_path / "stopped")
        (tmp_path / "stopped" / "summary.csv").write_text(content)
        folder = run("stopped", *RANDOM, "--resume", "auto")["folder"]
        rows = csv.DictReader((Path(folder) / "summary.csv").open())
        assert [row["epoch"] for row in rows] == list("01"), content


def test_entries_of_another_kind_are_one_line(run, images, tmp_path, capsys):
    folder = run("run", "--epochs", "1")["folder"]
    whole = load(folder)
    argv = [*QUICK, "--data-dir", str(images), "--output", str(tmp_path), "--experiment", "run", "--epochs", "1"]
    for entries in (
        {"saver": None},
        {"saver": {}},
        {"progress": 3},
        {"progress": [{"step": 1}, 2]},
        {"epoch": "1"},
        {"version": "2"},
    ):
        torch.save({**whole, **entries}, Path(folder) / "last.pth.tar")
        expect_error(capsys, [*argv, "--resume", f"{folder}/last.pth.tar"], 1, "last.pth.tar")


def test_resume_force_of_another_model_never_touches_the_weights(run, images, tmp_path, capsys):
    first = run("run", "--epochs", "1")["folder"]
    argv = [*QUICK, "--data-dir", str(images), "--output", str(tmp_path), "--experiment", "other", "--epochs", "1"]
    argv += ["--resume", f"{first}/last.pth.tar", "--model-kwargs", *MODEL[3:-3], "depth=1", "embed_dim=8"]
    expect_error(capsys, [*argv, "--resume-force"], 1, "last.pth.tar", "does not fit")
    assert not (tmp_path / "other").exists()


def test_what_ran_on_the_gpu_is_recorded_and_must_be_there_again(run, images, tmp_path, capsys, monkeypatch):
    """As on a GPU with a table of backends: the table of another one is another setting."""
    start = [*QUICK, "--data-dir", str(images), "--output", str(tmp_path), "--experiment", "run", "--epochs", "2"]

    def on_a_gpu_that_takes(choices):
        monkeypatch.setattr(resolve, "chosen_backends", lambda device: choices)

    on_a_gpu_that_takes("triton-1234abcd")
    path = Path(run("run", "--epochs", "2", "--stop-epoch", "1")["folder"], "args.yaml")
    assert yaml.safe_load(path.read_text())["backends"] == "triton-1234abcd"
    on_a_gpu_that_takes("fft")
    for given in (start, ["-c", str(path)]):
        expect_error(capsys, [*given, "--resume", "auto"], 2, "backends triton-1234abcd (now fft)", "--resume-force")
    new = yaml.safe_load(Path(run("new", "-c", str(path))["folder"], "args.yaml").read_text())
    assert new["backends"] == "fft"
    # Without a GPU it goes on
    on_a_gpu_that_takes(None)
    assert len(run("run", "--epochs", "2", "--resume", "auto")["results"]) == 1
