import argparse
import math

import pytest
import torch
from timm.task import ClassificationTask
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hyena_vision.training.config import parse_args
from hyena_vision.training.errors import UserError
from hyena_vision.training.loop import train_one_epoch, validate

CPU = torch.device("cpu")


def arguments(*argv: str) -> argparse.Namespace:
    args = parse_args(["--device", "cpu", "--no-prefetcher", *argv])
    args.rank, args.local_rank, args.world_size, args.distributed = 0, 0, 1, False
    return args


def problem(images: int) -> tuple[nn.Module, TensorDataset]:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 7))
    return model, TensorDataset(torch.randn(images, 3, 2, 2), torch.arange(images) % 7)


def test_last_group_of_an_epoch_is_the_mean_over_its_own_steps():
    model, data = problem(6)
    expected = nn.Linear(12, 7)
    expected.load_state_dict(model[1].state_dict())
    images, targets = data.tensors
    # Three batches of two in groups of two: one update over four images, one over the last two
    for part in (slice(0, 4), slice(4, 6)):
        loss = nn.functional.cross_entropy(expected(images[part].flatten(1)), targets[part])
        for parameter, gradient in zip(
            expected.parameters(), torch.autograd.grad(loss, list(expected.parameters())), strict=True
        ):
            parameter.data -= 0.5 * gradient
    task = ClassificationTask(model, nn.CrossEntropyLoss(), device=CPU, verbose=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    args = arguments("--grad-accum-steps", "2")
    metrics, speed = train_one_epoch(0, task, DataLoader(data, 2), optimizer, args, device=CPU)
    torch.testing.assert_close(model[1].weight, expected.weight)
    torch.testing.assert_close(model[1].bias, expected.bias)
    assert math.isfinite(metrics["loss"]) and speed > 0


def test_gradients_are_clipped_once_per_update():
    model, data = problem(4)
    before = model[1].weight.detach().clone(), model[1].bias.detach().clone()
    task = ClassificationTask(model, nn.CrossEntropyLoss(), device=CPU, verbose=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    args = arguments("--grad-accum-steps", "2", "--clip-grad", "1e-3")
    train_one_epoch(0, task, DataLoader(data, 2), optimizer, args, device=CPU)
    change = torch.cat([(model[1].weight - before[0]).flatten(), model[1].bias - before[1]])
    assert change.norm().item() == pytest.approx(1e-3, rel=1e-2)


def test_schedule_and_average_step_once_per_update():
    model, data = problem(10)
    task = ClassificationTask(model, nn.CrossEntropyLoss(), device=CPU, verbose=False)
    updates, averages = [], []
    task.update_ema = lambda step: averages.append(step)

    class Schedule:
        def step_update(self, num_updates, metric):
            updates.append(num_updates)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    args = arguments("--grad-accum-steps", "2")
    train_one_epoch(2, task, DataLoader(data, 2), optimizer, args, device=CPU, scheduler=Schedule())
    assert updates == averages == [7, 8, 9]


def test_step_that_is_not_finite_leaves_the_weights():
    model, data = problem(4)
    data.tensors[0][2] = math.inf
    task = ClassificationTask(model, nn.CrossEntropyLoss(), device=CPU, verbose=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UserError, match="epoch 3, step 1"):
        train_one_epoch(3, task, DataLoader(data, 2), optimizer, arguments(), device=CPU)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_validation_counts_every_image_once():
    model, data = problem(11)
    metrics = validate(model, DataLoader(data, 4), arguments(), device=CPU)
    images, targets = data.tensors
    with torch.no_grad():
        output = model(images)
    top5 = (output.topk(5).indices == targets[:, None]).any(1).sum().item()
    assert metrics["top1"] == pytest.approx(100 * (output.argmax(1) == targets).sum().item() / 11)
    assert metrics["top5"] == pytest.approx(100 * top5 / 11)
    assert metrics["loss"] == pytest.approx(nn.functional.cross_entropy(output, targets).item(), rel=1e-5)
