"""One epoch of training, and validation."""

import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torchvision.utils
from timm.data import Mixup
from timm.utils import dispatch_clip_grad, distribute_bn, is_primary, reduce_tensor
from tqdm import tqdm

from hyena_vision.data import DataError, target_channels
from hyena_vision.training.arguments import Arguments
from hyena_vision.training.bad_images import BadImages
from hyena_vision.training.checkpoint_files import Metric
from hyena_vision.training.conversion import ConversionTask
from hyena_vision.training.distributed import any_process, gather_objects, largest_gradient, synchronizes
from hyena_vision.training.errors import UserError, one_line
from hyena_vision.training.interrupt import Interrupt, Interrupted
from hyena_vision.training.meters import ClassMeter, PixelMeter
from hyena_vision.training.predictions import Collector
from hyena_vision.training.run_state import Parts, Progress
from hyena_vision.training.seeded_loader import TrainLoader
from hyena_vision.training.seeds import STEP, mix_seed, seed_generators

_logger = logging.getLogger("train")

MOST_INITIAL = 0.1  # part of the initial weights in a moving average that has averaged something


@dataclass
class Run:
    """What an epoch needs beside its number and its images.

    Args:
        args: Arguments of the run.
        device: Device to train on.
        parts: Model, loss and moving average as a task; optimizer, loss scaler, schedule.
        autocast: Makes the context of the forward pass.
        mixup: Mixing of batches that come unmixed, or None.
        num_epochs: Epochs of the run, for the estimate of the time left.
        batch_size: What `--variable-batch-loss-scale` is relative to.
        folder: Folder of the run for `--save-images`, or None.
        interrupt: Asked after each update, and during validation, whether to stop.
        bad_images: Where the loaders report images that they could not read.
        predictions: What the validation that counts said of this process's images.
    """

    args: Arguments
    device: torch.device
    parts: Parts
    autocast: Callable = nullcontext
    mixup: Mixup | None = None
    num_epochs: int = 1
    batch_size: float = 1.0
    folder: str | None = None
    interrupt: Interrupt = field(default_factory=Interrupt)
    bad_images: BadImages = field(default_factory=BadImages)
    predictions: Collector = field(default_factory=Collector)


def train_one_epoch(
    run: Run,
    epoch: int,
    loader: TrainLoader,
    progress: Progress,
    save_recovery: Callable[[int], None] | None = None,
) -> tuple[dict[str, float], float]:
    """Train for one epoch, or for what is left of it.

    The random numbers of a step follow from the seed of the run, the process, the epoch and the step: whether the steps
    before were made in the same process makes no difference.

    Args:
        run: The parts of the run.
        epoch: Number of the epoch, from 0.
        loader: Loader of (images, targets).
        progress: What is done of the epoch; kept up to date after each update.
        save_recovery: Called with the number of the update every `--recovery-interval` updates.

    Returns:
        `{"loss": mean loss}` over all processes, and the speed in images per second (NaN if nothing was left).

    Raises:
        UserError: A loss or gradient is not finite, and it is to stop or has skipped enough, or a batch cannot be had;
            the weights are those after the last update.
        Interrupted: A signal asked to stop; `progress` is up to date.
    """
    args, task, optimizer, scheduler = run.args, run.parts.task, run.parts.optimizer, run.parts.scheduler
    if args.mixup_off_epoch and epoch >= args.mixup_off_epoch:
        loader.stop_mixup()
        if run.mixup is not None:
            run.mixup.mixup_enabled = False
    task.get_trainable_module().train()
    optimizer.zero_grad()

    steps, accum = len(loader), args.grad_accum_steps
    updates_per_epoch = math.ceil(steps / accum)
    loader.begin(epoch, progress.step)
    first, images, started = progress.step, 0, time.perf_counter()
    group: list[tuple[torch.Tensor, int]] = []  # losses and sizes of the batches since the last update
    buffers = KeptBuffers(task.get_trainable_module())
    bar = _bar(loader, f"Train {epoch}", args, initial=first)
    for step, (input, target) in enumerate(fetch(run, bar, buffers.restore), start=first):
        update = step // accum
        need_update = (step + 1) % accum == 0 or step + 1 == steps
        seed_generators(mix_seed(args.seed, args.rank, epoch, step, STEP))
        input, target = _to_device(input, target, args, run.device)
        if run.mixup is not None:
            input, target = run.mixup(input, target)

        with synchronizes(task, need_update):
            with run.autocast():
                loss = task(input, target)["loss"]
            group.append((loss.detach(), len(input)))
            # The last group of an epoch may be shorter
            scale = _batch_scale(args, len(input), run.batch_size) / min(accum, steps - update * accum)
            _backward(run, loss * scale, need_update)
        if not need_update:
            continue

        losses = torch.stack([loss for loss, _ in group]).tolist()
        finite = _update_if_finite(run, epoch, step, losses, loader, progress, buffers)
        optimizer.zero_grad()
        for value, (_, size) in zip(losses, group, strict=True):
            images += size * args.world_size
            if finite:
                progress.loss_sum += value * size
                progress.images += size
        group.clear()
        progress.step = step + 1
        num_updates = epoch * updates_per_epoch + update + 1
        if finite:
            task.update_ema(step=num_updates)
        if scheduler is not None:
            scheduler.step_update(num_updates=num_updates, metric=progress.loss)
        if args.synchronize_step and run.device.type != "cpu":
            torch.accelerator.synchronize()

        run.bad_images.collect(_logger.warning)
        progress.bad_images = tuple(sorted(run.bad_images.paths))
        if is_primary(args) and (update % args.log_interval == 0 or step + 1 == steps):
            if bar.disable:
                _log_training(run, epoch, update, updates_per_epoch, losses[-1], progress.loss, images, started)
            if args.save_images and run.folder:
                path = os.path.join(run.folder, f"train-batch-{step}.jpg")
                torchvision.utils.save_image(input, path, padding=0, normalize=True)
        bar.set_postfix(loss=f"{progress.loss:.3f}", refresh=False)
        if save_recovery is not None and args.recovery_interval and (update + 1) % args.recovery_interval == 0:
            save_recovery(update)
        stop_if_asked(run)

    if hasattr(optimizer, "sync_lookahead"):
        optimizer.sync_lookahead()
    if run.device.type == "cuda":
        torch.cuda.synchronize()
    elapsed = time.perf_counter() - started
    share_batch_norms(args, task.get_trainable_module())
    mean = torch.tensor(progress.loss, device=run.device, dtype=torch.float32)
    if args.distributed:
        mean = reduce_tensor(mean, args.world_size)
    return {"loss": mean.item()}, images / elapsed if images else math.nan


def validate(
    run: Run,
    model: torch.nn.Module,
    loader: Iterable,
    suffix: str = "",
    measured: ConversionTask | None = None,
) -> dict[str, float]:
    """Return loss and accuracy over all images of a loader, counted exactly; of pictures, their mean squared error.

    Under distributed training each image counts once: those that the sampler repeats to make the processes even are
    left out, and the counts, not the means, are added up. Images with the target -1 are not counted.

    Args:
        run: The parts of the run; its `predictions` are made anew.
        model: Model, not wrapped for distributed training.
        loader: Loader of (images, class indices or pictures) in the order of the data set.
        suffix: Added to the log line.
        measured: Task whose errors by block are wanted, too.

    Returns:
        Mean `loss`, and of classes `top1` and `top5` in percent; `error_B` of each block B of `measured`. The loss is
        the mean of these where nothing else is trained, or no image has a label.

    Raises:
        UserError: There is no image to count, or a batch cannot be had.
        Interrupted: A signal asked to stop.
    """
    args, device = run.args, run.device
    model.eval()
    remaining, run.predictions = math.inf, Collector(args.rank, args.world_size)
    if args.distributed and not isinstance(loader.dataset, torch.utils.data.IterableDataset):
        remaining = len(range(args.rank, len(loader.dataset), args.world_size))
    pictures = target_channels(args.dataset) is not None
    meter = PixelMeter(device) if pictures else ClassMeter(device)
    blocks = measured.blocks if measured is not None else []
    error_sum = torch.zeros(1 + len(blocks), dtype=torch.float64, device=device)  # of images, and of their errors
    bar = _bar(loader, f"Validate{suffix}", args)
    # FSDP keeps the buffers of a forward pass for the next one, which may be of training
    with torch.no_grad() if args.fsdp else torch.inference_mode():
        for step, (input, target) in enumerate(fetch(run, bar)):
            input, target = _to_device(input, target, args, device)
            with run.autocast():
                output = _logits(model, input)
                if args.tta > 1:
                    output = (output + _logits(model, input.flip(-1))) / 2
            own = int(min(len(target), remaining))
            remaining -= own
            meter.add(output[:own], target[:own])
            if not pictures:
                run.predictions.add(output[:own], target[:own])
            if measured is not None and own:
                with run.autocast():
                    errors = measured.block_errors(input[:own])
                error_sum += own * torch.cat([errors.new_ones(1), errors])
            if bar.disable and is_primary(args) and (step + 1) % args.log_interval == 0:
                _logger.info(f"Validate{suffix}: [{step + 1:>4d}/{len(loader)}]")
            stop_if_asked(run)
    if args.distributed:
        meter.reduce()
        torch.distributed.all_reduce(error_sum)
    run.bad_images.collect(_logger.warning)
    total = meter.images
    seen, *errors = error_sum.tolist()
    if total == 0 and seen == 0:
        raise UserError("the validation set has no image with a class that could be read")
    metrics = {f"error_{block}": error / seen for block, error in zip(blocks, errors, strict=True)}
    if measured is not None and (total == 0 or args.convert_stage == "mixers"):
        metrics = {"loss": sum(metrics.values()) / len(blocks), **metrics}
    if total:
        metrics = meter.metrics() | metrics
    if is_primary(args):
        digits = ".3g" if pictures else ".3f"
        shown = "  ".join(f"{name}: {value:{digits}}" for name, value in metrics.items())
        _logger.info(f"Validate{suffix}: {shown}  ({int(total or seen)} images)")
    return metrics


def validate_all(run: Run, model: torch.nn.Module, loader: Iterable | None, updates: int) -> dict[str, float]:
    """Return the metrics of what the run has to show after so many updates: the moving average where there is one.

    One that still holds more than a tenth of the initial weights counts only where it is better than the model itself.
    An average that is not on the device is not validated, so it does not count.

    Args:
        run: The parts of the run; `parts.ema_counts` is set.
        model: Model, not wrapped for distributed training.
        loader: Loader of the images to validate on, or None.
        updates: Updates of the run so far.

    Returns:
        As `validate`, or nothing without a loader.
    """
    args, parts = run.args, run.parts
    share = initial_share(args, updates)
    parts.ema_counts = share <= MOST_INITIAL
    if loader is None:
        return {}
    measured = parts.task if isinstance(parts.task, ConversionTask) else None
    metrics, predictions = validate(run, model, loader, "", measured), run.predictions
    if not args.model_ema:
        return metrics
    if args.model_ema_force_cpu:
        parts.ema_counts = False  # the metrics are of the model itself
        return metrics
    share_batch_norms(args, parts.task.get_trainable_module(ema=True))
    averaged = validate(run, parts.task.get_eval_model(ema=True), loader, " (EMA)")
    own, other = (Metric(of[args.eval_metric], of["loss"]) for of in (metrics, averaged))
    parts.ema_counts |= other < own if args.eval_metric == "loss" else other > own
    if parts.ema_counts:
        return metrics | averaged
    run.predictions = predictions
    if is_primary(args):
        _logger.info(f"The model itself counts: its average holds {share:.0%} of the initial weights and is no better.")
    return metrics


def initial_share(args: Arguments, updates: int) -> float:
    """Return how much of the initial weights the moving average still holds after so many updates, 0 to 1."""
    return args.model_ema_decay**updates if args.model_ema and not args.model_ema_warmup else 0.0


def share_batch_norms(args: Arguments, model: torch.nn.Module) -> None:
    """Make the running averages of batch norms the same on all processes."""
    if args.distributed and args.dist_bn and not args.sync_bn:
        distribute_bn(model, args.world_size, args.dist_bn == "reduce")


def fetch(run: Run, loader: Iterable, before_fault: Callable[[], None] = lambda: None) -> Iterator[tuple]:
    """Yield the batches of a loader; where one process cannot have its batch, all stop at the same place.

    Args:
        run: The parts of the run.
        loader: Loader.
        before_fault: Called first then.

    Raises:
        UserError: An image that cannot be read, or a worker that was killed.
    """
    batches = iter(loader)
    _leave_dead_workers_to_the_loader()
    while True:
        batch, error = None, None
        try:
            batch = next(batches, None)
        except Exception as failed:  # what is no user's to mend goes on as it is, once the others know
            error = failed
        if any_process(error is not None, device=run.device)[0]:
            before_fault()
            known = isinstance(error, UserError | DataError) or "DataLoader worker" in str(error)
            told = gather_objects((known, one_line(error)) if error is not None else None)
            if error is not None and not known:
                raise error
            known, message = next(own for own in told if own is not None)
            if "DataLoader worker" in message:
                message += " (killed where memory is short, for instance: try fewer --workers)"
            raise (UserError if known else RuntimeError)(message) from error
        if batch is None:
            return
        yield batch


def _leave_dead_workers_to_the_loader() -> None:
    """Take away torch's handler, which raises wherever the program is: in the middle of an update, too.

    The loader itself finds out when it waits for the batch of a worker that is no more.
    """
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        handler = signal.getsignal(signal.SIGCHLD)
        if str(getattr(handler, "__module__", "")).startswith("torch.utils.data"):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)


class KeptBuffers:
    """The buffers of a model as they were after the last update: each forward pass of a batch norm changes its own.

    Args:
        model: Model that is trained.
    """

    def __init__(self, model: torch.nn.Module):
        """Copy them."""
        self.buffers = list(model.buffers())
        self.copies = [buffer.clone() for buffer in self.buffers]

    def keep(self) -> None:
        """Copy them again, after an update."""
        if self.buffers:
            torch._foreach_copy_(self.copies, self.buffers)

    def restore(self) -> None:
        """Put back what was copied."""
        if self.buffers:
            torch._foreach_copy_(self.buffers, self.copies)


def stop_if_asked(run: Run) -> None:
    """Raise `Interrupted` on all processes where one of them has received a signal."""
    if any_process(bool(run.interrupt.received), device=run.device)[0]:
        raise Interrupted(run.interrupt.received or signal.SIGTERM)


def _bar(loader: Iterable, description: str, args: Arguments, initial: int = 0) -> tqdm:
    """Return the loader under a progress bar, which is disabled away from a terminal and on other processes."""
    hidden = None if is_primary(args) else True  # None: hide it where stderr is not a terminal
    options = dict(leave=False, disable=hidden, file=sys.stderr, dynamic_ncols=True, initial=initial)
    return tqdm(loader, description, **options)


def _to_device(input: torch.Tensor, target: torch.Tensor, args: Arguments, device: torch.device):
    if args.no_prefetcher:
        input = input.to(device=device, dtype=getattr(torch, args.model_dtype or "float32"))
        target = target.to(device=device)
    if args.channels_last:
        input = input.contiguous(memory_format=torch.channels_last)
    return input, target


def _logits(model: torch.nn.Module, input: torch.Tensor) -> torch.Tensor:
    output = model(input)
    return output[0] if isinstance(output, tuple | list) else output


def _batch_scale(args: Arguments, size: int, reference: float) -> float:
    """Return the weight of a batch whose size changes with its resolution."""
    power = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[args.variable_batch_loss_scale]
    return (size / reference) ** power if args.train_img_sizes else 1.0


def _backward(run: Run, loss: torch.Tensor, need_update: bool) -> None:
    """Add the gradients of one step; with a loss scaler, also update, which it leaves out where they are not finite."""
    create_graph = getattr(run.parts.optimizer, "is_second_order", False)
    if run.parts.loss_scaler is None:
        loss.backward(create_graph=create_graph)
        return
    run.parts.loss_scaler(
        loss,
        run.parts.optimizer,
        clip_grad=run.args.clip_grad,
        clip_mode=run.args.clip_mode,
        parameters=_clipped(run),
        create_graph=create_graph,
        need_update=need_update,
    )


def _update_if_finite(
    run: Run,
    epoch: int,
    step: int,
    losses: list[float],
    loader: TrainLoader,
    progress: Progress,
    buffers: "KeptBuffers",
) -> bool:
    """Update the weights, or say that a loss or gradient is not finite and leave them.

    Returns:
        Whether they were updated, the same on all processes.

    Raises:
        UserError: Not finite, and it is to stop or has skipped enough.
    """
    args = run.args
    scaled = run.parts.loss_scaler is not None  # too large a scale makes infinite gradients, which it mends itself
    largest = 0.0 if scaled else largest_gradient(run.parts.task.get_trainable_module().parameters(), run.device)
    own = not all(map(math.isfinite, losses))
    if not any_process(own or not math.isfinite(largest), device=run.device)[0]:
        if not scaled:
            if args.clip_grad is not None:
                dispatch_clip_grad(_clipped(run), value=args.clip_grad, mode=args.clip_mode)
            run.parts.optimizer.step()
        buffers.keep()
        return True

    buffers.restore()
    batches = range(step + 1 - len(losses), step + 1)
    numbers = [loader.images_of(batch) for batch in batches]
    known = [str(number) for batch in numbers for number in batch or ()]
    report = f"images {', '.join(known)} of the training set" if known else "images of unknown number"
    reports = gather_objects(report if own else None)
    reports = [report for report in reports if report] or gather_objects(report)  # a gradient alone names no process
    gradient = "" if scaled else f", largest gradient {largest}"
    message = (
        f"not finite: loss {max(losses, key=lambda loss: not math.isfinite(loss))}{gradient} in "
        f"epoch {epoch}, batch {', '.join(map(str, batches))} ({'; '.join(reports)})"
    )
    progress.skipped += 1
    if args.on_nonfinite == "stop":
        raise UserError(f"{message}; the update was not made, and no checkpoint holds it")
    if progress.skipped > args.nonfinite_limit:
        raise UserError(f"{message}; {args.nonfinite_limit} updates of this epoch were skipped before")
    if is_primary(args):
        _logger.warning(f"Skipped an update: {message}.")
    return False


def _clipped(run: Run) -> Iterable | None:
    """Return the parameters whose gradients are clipped together."""
    if run.args.clip_grad is None:
        return None
    return run.parts.task.get_clip_parameters(exclude_head=run.args.clip_mode == "agc")


def _log_training(run, epoch, update, updates_per_epoch, loss, mean, images, started) -> None:
    elapsed = time.perf_counter() - started
    done = images / max(run.batch_size * run.args.world_size * run.args.grad_accum_steps, 1)
    left = (run.num_epochs - epoch) * updates_per_epoch - update - 1
    eta = timedelta(seconds=round(elapsed / max(done, 1) * left))
    lr = max(group["lr"] for group in run.parts.optimizer.param_groups)
    _logger.info(
        f"Train: {epoch} [{update + 1:>4d}/{updates_per_epoch}]  loss: {loss:.4f} ({mean:.4f})  "
        f"lr: {lr:.3e}  {images / elapsed:.1f} images/s  {eta} of training left"
    )
