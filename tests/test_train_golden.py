"""The first losses of `make train` are those that they were, on any machine: nothing that decides them may change."""

import signal

import pytest
from trainer import ROOT, load, signal_at, train_imagenet

from hyena_vision.training import task

# Of the first 20 steps, computed in float64. The recipe's float32 was within 2e-7 of them with torch 2.8, 2.11, 2.14
# and 2.15, with and without the C++ operators, on AVX2, AVX-512 and neither. Who changes them says so in the changelog.
LOSSES = """
    2.306891053 2.304525699 2.294156138 2.306800810 2.302541348 2.290736252 2.294283592 2.303782725 2.299352243
    2.298578149 2.314185866 2.289461122 2.281274374 2.282114979 2.287536941 2.285030801 2.259619079 2.260234161
    2.259498290 2.281859895
"""


def test_first_losses_of_make_train(tmp_path, monkeypatch):
    losses = []

    def create_watched_loss(*args, create=task.create_loss):
        loss = create(*args)
        loss.register_forward_hook(lambda module, inputs, value: losses.append(value.item()))
        return loss

    monkeypatch.setattr(task, "create_loss", create_watched_loss)
    signal_at(monkeypatch, 20, signal.SIGTERM)
    argv = ["-c", str(ROOT / "configs" / "digits.yaml"), "--device", "cpu", "--output", str(tmp_path)]
    with pytest.raises(SystemExit) as stopped:
        train_imagenet.main([*argv, "--experiment", "run"])
    assert stopped.value.code == 75
    assert losses == pytest.approx([float(loss) for loss in LOSSES.split()], rel=1e-5)
    # Losses hardly tell of weight decay
    squares = {True: 0.0, False: 0.0}
    for name, weight in load(tmp_path / "run", "recovery-0-19.pth.tar")["state_dict"].items():
        squares[".filter." in name] += weight.double().square().sum().item()
    assert squares == pytest.approx({True: 7444.1882, False: 2043.1677}, rel=1e-5)
