"""What validation measures."""

import pytest
import torch

from hyena_vision.training.errors import UserError
from hyena_vision.training.meters import ClassMeter, CornerMSELoss, PixelMeter

CPU = torch.device("cpu")


def test_error_of_pictures_is_the_mean_over_all_of_them(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    output, target = torch.randn(5, 2, 9, 8, generator=generator), torch.randn(5, 2, 3, 4, generator=generator)
    expected = (output[:, :, 6:, 4:].double() - target).square().mean().item()
    meter = PixelMeter(CPU)
    for part in (slice(0, 3), slice(3, 3), slice(3, 5)):  # uneven batches, and a process without an image of its own
        meter.add(output[part], target[part])
    assert meter.images == 5 and meter.metrics()["loss"] == pytest.approx(expected, rel=1e-6)
    assert CornerMSELoss()(output, target).item() == pytest.approx(expected, rel=1e-6)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.mul_(2))  # another process like this one
    meter.reduce()
    assert meter.images == 10 and meter.metrics()["loss"] == pytest.approx(expected, rel=1e-6)


def test_classes_are_counted():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [0.0, 3.0, 0.0]])
    meter = ClassMeter(CPU)
    meter.add(logits, torch.tensor([0, 0, -1]))
    losses = -logits[:2].log_softmax(1)[:, 0]
    metrics = meter.metrics()
    assert meter.images == 2 and (metrics["top1"], metrics["top5"]) == (50, 100)
    assert metrics["loss"] == pytest.approx(losses.mean().item())


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (1, 1, 8, 2)])
def test_pictures_of_another_kind_are_named(shape):
    with pytest.raises(UserError, match=r"hold \(1, 1, 4, 4\), got \(1, "):
        CornerMSELoss()(torch.zeros(shape), torch.zeros(1, 1, 4, 4))
