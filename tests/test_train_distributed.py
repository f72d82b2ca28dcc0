"""Several processes: the same gradients, the same validation, and runs that go on wherever they were stopped."""

import os
import random
import shutil
import socket
from pathlib import Path

import numpy
import pytest
import torch
from forks import ForkedPython
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler
from torch.multiprocessing import start_processes
from trainer import (
    ONE_UPDATE,
    QUICK,
    RANDOM,
    ROOT,
    assert_same_run,
    bad_image,
    fail_in,
    load,
    signal_at,
    summary,
    train_imagenet,
)

from hyena_vision.training.predictions import read_predictions

STOPPED = ("ddp", "fsdp")


def train_on_two(rank: int, output: str, argv: list[str], port: int) -> None:
    """Train in each way: straight through, then stopped by a signal and a fault that one process gets, and resumed."""
    two = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= two | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.distributed.init_process_group("gloo")  # one group for all runs: its store keeps the addresses of the first
    torch.distributed.init_process_group = torch.distributed.destroy_process_group = lambda *args, **kwargs: None
    for name, more in {"ddp": [], "fsdp": ["--fsdp"]}.items():

        def run(experiment: str, *last: str, more: list[str] = more) -> None:
            random.seed(1), numpy.random.seed(1), torch.manual_seed(1)
            train_imagenet.main([*argv, *more, "--output", output, "--experiment", experiment, *last])

        run(name)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
            signal_at(patch, 3 if rank == 1 else 0)
            run(f"{name}-stopped")
        assert stopped.value.code == 75
        if name == "ddp" and rank == 0:  # one process goes on from a copy, later
            shutil.copytree(f"{output}/ddp-stopped", f"{output}/alone")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
            fail_in(patch, "val", 6 if rank == 1 else 0, bad_image)
            run(f"{name}-stopped", "--resume", "auto")
        assert stopped.value.code == 1
        run(f"{name}-stopped", "--resume", "auto")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def runs(images, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs")
    argv = [*QUICK, "--data-dir", str(images), *RANDOM, "-b", "4"]
    # As torchrun starts them, but for the import of torch
    start_processes(train_on_two, (str(output), argv, free_port()), 2, start_method="fork")
    return output


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes(runs, images, caplog):
    """One test of all that is asked of the runs, so that several test processes do not start them again."""
    for name in STOPPED:
        assert len(load(runs / f"{name}-stopped", "recovery-0-2.pth.tar")["progress"]) == 2
        assert_same_run(runs / name, runs / f"{name}-stopped")
    check_shards_and_copies(runs)
    check_that_one_goes_on(runs, images, caplog)


def check_shards_and_copies(runs):
    """They write the same checkpoint."""
    ddp, fsdp = load(runs / "ddp"), load(runs / "fsdp")
    assert ddp.keys() == fsdp.keys()
    for key in ("state_dict", "state_dict_ema"):
        for name, value in ddp[key].items():
            torch.testing.assert_close(fsdp[key][name], value, rtol=1e-3, atol=1e-4)
    assert ddp["optimizer"]["state"].keys() == fsdp["optimizer"]["state"].keys()
    for index, state in ddp["optimizer"]["state"].items():
        assert {name: value.shape for name, value in state.items()} == {
            name: value.shape for name, value in fsdp["optimizer"]["state"][index].items()
        }


def check_that_one_goes_on(runs, images, caplog):
    argv = [*QUICK, "--data-dir", str(images), *RANDOM, "-b", "4", "--output", str(runs)]
    outcome = train_imagenet.main([*argv, "--experiment", "alone", "--resume", "auto"])
    assert "from the middle of epoch 0 on 2 processes, now there are 1" in caplog.text
    assert [result["epoch"] for result in outcome["results"]] == [0, 1]
    again = train_imagenet.main([*argv, "--experiment", "end", "--resume", str(runs / "fsdp" / "checkpoint-0.pth.tar")])
    assert [result["epoch"] for result in again["results"]] == [1]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_nodes_equal_one_process(run, images, tmp_path, monkeypatch):
    """The command of README's two nodes, with both on this machine, in forks that torchrun's own processes fork."""
    monkeypatch.setattr(subprocess_handler, "Popen", ForkedPython, raising=False)  # torch 2.8 starts new ones
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one = run("one", *ONE_UPDATE, "-b", "24")["folder"]
    command = "python -m torch.distributed.run --nnodes 2 --nproc-per-node 1 --master-addr 127.0.0.1".split()
    command += ["--master-port", str(free_port())]
    program = [str(ROOT / "train_imagenet.py"), *QUICK, "--data-dir", str(images), "--output", str(tmp_path)]
    program += ["--experiment", "two", *ONE_UPDATE, "-b", "12", "-vb", "4"]
    nodes = []
    for rank in range(2):
        with open(tmp_path / f"out{rank}", "w") as out, open(tmp_path / f"err{rank}", "w") as err:
            nodes.append(ForkedPython([*command, "--node-rank", str(rank), *program], out, err))
    for node in nodes:
        node.wait(280)
    assert [node.returncode for node in nodes] == [0, 0], [path.read_text() for path in tmp_path.glob("err*")]
    assert "".join(path.read_text() for path in tmp_path.glob("out*")).count("--result") == 1
    two = tmp_path / "two"
    start = load(run("start", *ONE_UPDATE, "-b", "24", "--lr", "1e-30")["folder"])["state_dict"]
    for name, weight in load(one)["state_dict"].items():  # the learning rate is 0.1
        gradient, other = (start[name] - weight) / 0.1, (start[name] - load(two)["state_dict"][name]) / 0.1
        torch.testing.assert_close(other, gradient, rtol=1e-4, atol=2e-6)
    # 15 images on two processes: one of them is padding, and must not count
    for name in ("eval_top1", "eval_top5"):
        assert summary(one)[0][name] == summary(two)[0][name]
    for name in ("eval_loss", "train_loss"):
        assert float(summary(one)[0][name]) == pytest.approx(float(summary(two)[0][name]), rel=1e-5)
    ours, theirs = (read_predictions(f"{folder}/predictions.csv") for folder in (one, two))
    assert [row[:4] for row in ours] == [row[:4] for row in theirs] and len(ours) == 15
