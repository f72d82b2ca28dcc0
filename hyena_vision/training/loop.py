"""One epoch of training, and validation."""

import argparse
import logging
import math
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from datetime import timedelta

import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.scheduler.scheduler import Scheduler
from timm.task import TrainingTask
from timm.utils import AverageMeter, NativeScaler, dispatch_clip_grad, is_primary, reduce_tensor
from tqdm import tqdm

from hyena_vision.training.errors import UserError

_logger = logging.getLogger("train")


def train_one_epoch(
    epoch: int,
    task: TrainingTask,
    loader: Iterable,
    optimizer: torch.optim.Optimizer,
    args: argparse.Namespace,
    *,
    device: torch.device,
    autocast: Callable = nullcontext,
    loss_scaler: NativeScaler | None = None,
    scheduler: Scheduler | None = None,
    mixup: Mixup | None = None,
    num_epochs: int = 1,
) -> tuple[dict[str, float], float]:
    """Train for one epoch.

    Args:
        epoch: Number of the epoch, from 0.
        task: Model, loss and moving average.
        loader: Loader of (images, targets).
        optimizer: Optimizer.
        args: Parsed arguments.
        device: Device to train on.
        autocast: Makes the context of the forward pass.
        loss_scaler: Scaler for float16, or None.
        scheduler: Schedule, stepped after each update.
        mixup: Mixing of batches that come unmixed, or None.
        num_epochs: Epochs of the run, for the estimate of the time left.

    Returns:
        `{"loss": mean loss}` over all processes, and the speed in images per second.

    Raises:
        UserError: The loss is not finite; the weights are those before that step.
    """
    if args.mixup_off_epoch and epoch >= args.mixup_off_epoch:
        loader.mixup_enabled = False
        if mixup is not None:
            mixup.mixup_enabled = False
    task.get_trainable_module().train()
    optimizer.zero_grad()

    steps, accum = len(loader), args.grad_accum_steps
    updates_per_epoch = math.ceil(steps / accum)
    num_updates = epoch * updates_per_epoch
    losses, images, started = AverageMeter(), 0, time.perf_counter()
    bar = _bar(loader, f"Train {epoch}", args)
    for step, (input, target) in enumerate(bar):
        update = step // accum
        group = min(accum, steps - update * accum)  # the last group of an epoch may be shorter
        need_update = (step + 1) % accum == 0 or step + 1 == steps
        input, target = _to_device(input, target, args, device)
        if mixup is not None:
            input, target = mixup(input, target)

        with nullcontext() if need_update else task.no_sync():
            with autocast():
                loss = task(input, target)["loss"]
            value = loss.item()
            if not math.isfinite(value):
                raise UserError(f"the loss is {value} in epoch {epoch}, step {step}: no checkpoint holds this state")
            _backward(loss / group, task, optimizer, args, loss_scaler, need_update)

        losses.update(value, input.shape[0])
        images += input.shape[0] * args.world_size
        if not need_update:
            continue
        optimizer.zero_grad()
        num_updates += 1
        task.update_ema(step=num_updates)
        if args.synchronize_step and device.type == "cuda":
            torch.cuda.synchronize()
        if bar.disable and is_primary(args) and (update % args.log_interval == 0 or step + 1 == steps):
            _log_training(epoch, update, updates_per_epoch, num_epochs, losses, optimizer, images, started)
        if scheduler is not None:
            scheduler.step_update(num_updates=num_updates, metric=losses.avg)
        bar.set_postfix(loss=f"{losses.avg:.3f}", refresh=False)

    if hasattr(optimizer, "sync_lookahead"):
        optimizer.sync_lookahead()
    if device.type == "cuda":
        torch.cuda.synchronize()
    elapsed = time.perf_counter() - started
    mean = torch.tensor(losses.avg, device=device, dtype=torch.float32)
    if args.distributed:
        mean = reduce_tensor(mean, args.world_size)
    return {"loss": mean.item()}, images / elapsed


def validate(
    model: torch.nn.Module,
    loader: Iterable,
    args: argparse.Namespace,
    *,
    device: torch.device,
    autocast: Callable = nullcontext,
    suffix: str = "",
) -> dict[str, float]:
    """Return loss and accuracy over all images of a loader, counted exactly.

    Under distributed training each image counts once: those that the sampler repeats to make the processes even are
    left out, and the counts, not the means, are added up.

    Args:
        model: Model, not wrapped for distributed training.
        loader: Loader of (images, class indices) in the order of the data set.
        args: Parsed arguments.
        device: Device to run on.
        autocast: Makes the context of the forward pass.
        suffix: Added to the log line.

    Returns:
        Mean `loss`, and `top1` and `top5` in percent.
    """
    model.eval()
    remaining = math.inf
    if args.distributed and not isinstance(loader.dataset, torch.utils.data.IterableDataset):
        remaining = len(range(args.rank, len(loader.dataset), args.world_size))
    counts = torch.zeros(3, dtype=torch.int64, device=device)  # images, right at first, right among five
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    bar = _bar(loader, f"Validate{suffix}", args)
    with torch.inference_mode():
        for step, (input, target) in enumerate(bar):
            input, target = _to_device(input, target, args, device)
            with autocast():
                output = model(input)
            valid = int(min(len(target), remaining))
            remaining -= valid
            output, target = output[:valid].float(), target[:valid]
            loss_sum += F.cross_entropy(output, target, reduction="sum").double()
            right = output.topk(min(5, output.shape[1]), dim=1).indices == target[:, None]
            counts += torch.stack([torch.tensor(valid, device=device), right[:, 0].sum(), right.sum()])
            if bar.disable and is_primary(args) and (step + 1) % args.log_interval == 0:
                _logger.info(f"Validate{suffix}: [{step + 1:>4d}/{len(loader)}]")
    if args.distributed:
        torch.distributed.all_reduce(counts)
        torch.distributed.all_reduce(loss_sum)
    total, top1, top5 = counts.tolist()
    metrics = {"loss": loss_sum.item() / total, "top1": 100 * top1 / total, "top5": 100 * top5 / total}
    if is_primary(args):
        shown = "  ".join(f"{name}: {value:.3f}" for name, value in metrics.items())
        _logger.info(f"Validate{suffix}: {shown}  ({total} images)")
    return metrics


def _bar(loader: Iterable, description: str, args: argparse.Namespace) -> tqdm:
    """Return the loader under a progress bar, which is disabled away from a terminal and on other processes."""
    hidden = None if is_primary(args) else True  # None: hide it where stderr is not a terminal
    return tqdm(loader, description, leave=False, disable=hidden, file=sys.stderr, dynamic_ncols=True)


def _to_device(input: torch.Tensor, target: torch.Tensor, args: argparse.Namespace, device: torch.device):
    if args.no_prefetcher:
        input = input.to(device=device, dtype=getattr(torch, args.model_dtype or "float32"))
        target = target.to(device=device)
    if args.channels_last:
        input = input.contiguous(memory_format=torch.channels_last)
    return input, target


def _backward(loss, task, optimizer, args, loss_scaler, need_update: bool) -> None:
    """Add the gradients of one step, and update the weights at the end of its group."""
    parameters = None
    if args.clip_grad is not None:
        parameters = task.get_clip_parameters(exclude_head=args.clip_mode == "agc")
    second_order = getattr(optimizer, "is_second_order", False)
    if loss_scaler is not None:
        loss_scaler(
            loss,
            optimizer,
            clip_grad=args.clip_grad,
            clip_mode=args.clip_mode,
            parameters=parameters,
            create_graph=second_order,
            need_update=need_update,
        )
        return
    loss.backward(create_graph=second_order)
    if need_update:
        if parameters is not None:
            dispatch_clip_grad(parameters, value=args.clip_grad, mode=args.clip_mode)
        optimizer.step()


def _log_training(epoch, update, updates_per_epoch, num_epochs, losses, optimizer, images, started) -> None:
    elapsed = time.perf_counter() - started
    left = (num_epochs - epoch) * updates_per_epoch - update - 1
    eta = timedelta(seconds=round(elapsed / (update + 1) * left))
    lr = max(group["lr"] for group in optimizer.param_groups)
    _logger.info(
        f"Train: {epoch} [{update + 1:>4d}/{updates_per_epoch}]  loss: {losses.val:.4f} ({losses.avg:.4f})  "
        f"lr: {lr:.3e}  {images / elapsed:.1f} images/s  {eta} of training left"
    )
