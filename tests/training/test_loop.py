import math
import signal
from itertools import islice

import pytest
import torch
from timm.task import ClassificationTask
from timm.utils import NativeScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from trainer import arguments

from hyena_vision.training.errors import UserError
from hyena_vision.training.interrupt import Interrupted
from hyena_vision.training.loop import Run, train_one_epoch, validate
from hyena_vision.training.run_state import Parts, Progress

CPU = torch.device("cpu")


class Batches(DataLoader):
    """A loader in the order of the data set that can begin anywhere."""

    first = 0

    def begin(self, epoch: int, first: int) -> None:
        self.first = first

    def images_of(self, number: int) -> list[int]:
        return list(range(number * self.batch_size, (number + 1) * self.batch_size))

    def __iter__(self):
        return islice(super().__iter__(), self.first, None)


def start(task, optimizer, *argv: str, **parts) -> Run:
    return Run(arguments("--no-prefetcher", *argv), CPU, Parts(task, optimizer, **parts))


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
    run = start(task, optimizer, "--grad-accum-steps", "2")
    metrics, speed = train_one_epoch(run, 0, Batches(data, 2), Progress())
    torch.testing.assert_close(model[1].weight, expected.weight)
    torch.testing.assert_close(model[1].bias, expected.bias)
    assert math.isfinite(metrics["loss"]) and speed > 0


def test_gradients_are_clipped_once_per_update():
    model, data = problem(4)
    before = model[1].weight.detach().clone(), model[1].bias.detach().clone()
    task = ClassificationTask(model, nn.CrossEntropyLoss(), device=CPU, verbose=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    run = start(task, optimizer, "--grad-accum-steps", "2", "--clip-grad", "1e-3")
    train_one_epoch(run, 0, Batches(data, 2), Progress())
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
    run = start(task, optimizer, "--grad-accum-steps", "2", scheduler=Schedule())
    train_one_epoch(run, 2, Batches(data, 2), Progress())
    assert updates == averages == [7, 8, 9]
    updates.clear()
    train_one_epoch(run, 2, Batches(data, 2), Progress(step=4))
    assert updates == [9]


@pytest.mark.parametrize("scaled", [False, True])
def test_step_that_is_not_finite_leaves_the_weights(scaled):
    model, data = problem(4)
    data.tensors[0][2] = math.inf
    task = ClassificationTask(model, nn.CrossEntropyLoss(), device=CPU, verbose=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = dict(loss_scaler=NativeScaler("cpu")) if scaled else {}
    progress = Progress()
    with pytest.raises(UserError, match=r"epoch 3, batch 1 \(images 2, 3 of the training set\)"):
        train_one_epoch(start(task, optimizer, **scaler), 3, Batches(data, 2), progress)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert (progress.step, progress.images) == (1, 2)


def test_skipped_update_leaves_the_average():
    model, data = problem(4)
    data.tensors[0][2] = math.inf
    task = ClassificationTask(model, nn.CrossEntropyLoss(), device=CPU, verbose=False)
    calls = []
    task.update_ema = lambda step: calls.append(step)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    progress = Progress()
    train_one_epoch(start(task, optimizer, "--on-nonfinite", "skip"), 0, Batches(data, 2), progress)
    assert calls == [1]
    assert (progress.skipped, progress.images, progress.step) == (1, 2, 2) and math.isfinite(progress.loss)


def test_validation_stops_at_a_signal():
    model, data = problem(4)
    run = start(None, None)
    run.interrupt.received = signal.SIGTERM
    with pytest.raises(Interrupted):
        validate(run, model, DataLoader(data, 2))


def test_loss_scaler_looks_for_its_scale_by_infinite_gradients():
    """They are its business: only a loss that is not finite stops the run."""
    model, data = problem(8)
    before = model[1].weight.detach().clone()
    task = ClassificationTask(model, nn.CrossEntropyLoss(), device=CPU, verbose=False)
    scaler = NativeScaler("cpu")
    scaler.load_state_dict(scaler.state_dict() | {"scale": 2.0**127})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[1].weight.register_hook(lambda gradient: gradient * 1e3)  # more than a float32 holds
    progress = Progress()
    train_one_epoch(start(task, optimizer, loss_scaler=scaler), 0, Batches(data, 2), progress)
    assert progress.skipped == 0 and progress.step == 4
    assert scaler.state_dict()["scale"] == 2.0**123
    assert torch.equal(model[1].weight, before)


def test_scheduled_batches_weigh_as_their_size():
    pytest.importorskip("timm.data.scheduled_sampler", reason="older timm has no schedule of sizes")
    gradients = {}
    for scale in ("none", "sqrt", "linear"):
        model, data = problem(4)
        nn.init.constant_(model[1].weight, 0.1)
        nn.init.zeros_(model[1].bias)
        before = model[1].weight.detach().clone()
        data.tensors[0].copy_(torch.arange(48).view(4, 3, 2, 2) / 48)
        task = ClassificationTask(model, nn.CrossEntropyLoss(), device=CPU, verbose=False)
        argv = ["--train-img-sizes", "8", "16", "--variable-batch-loss-scale", scale]
        run = start(task, torch.optim.SGD(model.parameters(), lr=1.0), *argv)
        run.batch_size = 16.0
        train_one_epoch(run, 0, Batches(data, 4), Progress())
        gradients[scale] = before - model[1].weight
    torch.testing.assert_close(gradients["sqrt"], gradients["none"] / 2, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(gradients["linear"], gradients["none"] / 4, rtol=1e-4, atol=1e-7)


def test_images_without_a_class_are_not_counted_and_mirrors_are_averaged():
    model, data = problem(11)
    data.tensors[1][[0, 7]] = -1
    run = start(None, None, "--tta", "2")
    metrics = validate(run, model, DataLoader(data, 4))
    images, targets = data.tensors
    with torch.no_grad():
        output = (model(images) + model(images.flip(-1))) / 2
    known = targets >= 0
    expected = nn.functional.cross_entropy(output[known], targets[known]).item()
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["top1"] == pytest.approx(100 * (output.argmax(1) == targets)[known].float().mean().item())
    data.tensors[1].fill_(-1)
    with pytest.raises(UserError, match="no image"):
        validate(run, model, DataLoader(data, 4))


def test_validation_counts_every_image_once():
    model, data = problem(11)
    metrics = validate(start(None, None), model, DataLoader(data, 4))
    images, targets = data.tensors
    with torch.no_grad():
        output = model(images)
    top5 = (output.topk(5).indices == targets[:, None]).any(1).sum().item()
    assert metrics["top1"] == pytest.approx(100 * (output.argmax(1) == targets).sum().item() / 11)
    assert metrics["top5"] == pytest.approx(100 * top5 / 11)
    assert metrics["loss"] == pytest.approx(nn.functional.cross_entropy(output, targets).item(), rel=1e-5)
