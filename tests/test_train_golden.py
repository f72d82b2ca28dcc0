"""The first losses of a recipe are those that they were, on any machine: nothing that decides them may change."""

import signal

import pytest
from trainer import ROOT, load, signal_at, train_imagenet

from hyena_vision.training import task

# Of the first 20 steps, computed in float64. The recipe's float32 was within 2e-7 of them with torch 2.8, 2.11, 2.14
# and 2.15, with and without the C++ operators, on AVX2, AVX-512 and neither. Who changes them says so in the changelog.
LOSSES = """
    2.306446004 2.304553158 2.295194027 2.306500255 2.302102458 2.291523557 2.294182801 2.304244146 2.299760531
    2.299578488 2.315070939 2.288622142 2.280650876 2.280964737 2.288779424 2.283999708 2.258081802 2.259343163
    2.258593979 2.279708711
"""


def test_first_losses_of_a_recipe(tmp_path, monkeypatch):
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
    assert squares == pytest.approx({True: 1722.2749, False: 2044.1046}, rel=1e-5)
