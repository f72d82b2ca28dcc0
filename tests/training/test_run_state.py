import torch
from timm.task import ClassificationTask
from timm.utils import NativeScaler
from torch import nn

from hyena_vision.training.run_state import Parts, Progress, capture, restore, resume_point


def parts() -> Parts:
    model = nn.Linear(3, 2)
    task = ClassificationTask(model, nn.CrossEntropyLoss(), verbose=False)
    return Parts(task, torch.optim.AdamW(model.parameters()), NativeScaler("cpu"))


def test_everything_with_a_state_comes_back():
    first, second = parts(), parts()
    first.loss_scaler.load_state_dict(first.loss_scaler.state_dict() | {"scale": 8.0})
    first.task(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))["loss"].backward()
    first.optimizer.step()
    restore("file", capture(first, {"model": "linear"}, 3), second)
    assert second.loss_scaler.state_dict()["scale"] == 8.0
    assert torch.equal(second.task.trainable_module.weight, first.task.trainable_module.weight)
    state = second.optimizer.state[second.task.trainable_module.weight]
    assert torch.equal(state["exp_avg"], first.optimizer.state[first.task.trainable_module.weight]["exp_avg"])


def test_an_average_that_was_not_kept_begins_with_the_weights():
    first, second = parts(), parts()
    second.task.setup_ema()
    restore("file", capture(first, {"model": "linear"}, 0), second)
    assert torch.equal(second.task.get_eval_model(ema=True).module.weight, first.task.trainable_module.weight)


def test_where_a_checkpoint_goes_on():
    assert resume_point("file", {"epoch": 3}, 0, 1) == (3, Progress())  # timm's first format: the epoch to begin
    assert resume_point("file", {"epoch": 3, "version": 2}, 0, 1) == (4, Progress())
    progress = [{"step": 5, "loss_sum": 1.0, "images": 9}, {"step": 5, "loss_sum": 3.0, "images": 11}]
    middle = {"epoch": 3, "version": 2, "progress": progress}
    assert resume_point("file", middle, 1, 2) == (4, Progress(5, 3.0, 11))
    assert resume_point("file", middle, 0, 1, updates=4) == (4, Progress(8, 4.0, 20))  # whole updates


def test_another_number_of_processes_is_said(caplog):
    resume_point("file", {"epoch": 3, "version": 2, "world_size": 4}, 0, 8)
    assert "file was written by 4 processes, now there are 8" in caplog.text
