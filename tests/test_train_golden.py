"""The first losses of `make train` are those that they were, on any machine: nothing that decides them may change."""

import signal

import pytest
from trainer import ROOT, load, signal_at, train_imagenet

from hyena_vision.training import task

# Of the first 20 steps, computed in float64. The recipe's float32 was within 2e-7 of them with torch 2.8, 2.11, 2.14
# and 2.15, with and without the C++ operators, on AVX2, AVX-512 and neither. Who changes them says so in the changelog.
LOSSES = """
    2.306882559 2.304529071 2.294143759 2.306800229 2.302519149 2.290743338 2.294291200 2.303803693 2.299366397
    2.298614799 2.314207153 2.289478572 2.281332269 2.282181102 2.287615830 2.285054856 2.259670336 2.260309469
    2.259588577 2.281963132
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
    assert squares == pytest.approx({True: 7444.1872, False: 2043.1660}, rel=1e-5)
