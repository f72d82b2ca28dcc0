"""Optimizer and schedule of a run: timm's, with parameter groups of their own for implicit filters."""

import logging
import math

import timm.optim
import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import PlateauLRScheduler, create_scheduler_v2, scheduler_kwargs
from timm.scheduler.scheduler import Scheduler

from hyena_vision.layers import ImplicitFilter
from hyena_vision.training.arguments import Arguments
from hyena_vision.training.errors import ConfigError, one_line

_logger = logging.getLogger("train")


def split_filter_groups(model: torch.nn.Module, groups: list[dict], lr_scale: float = 1.0) -> list[dict]:
    """Move the parameters of implicit filters into groups without weight decay and with their own learning rate.

    timm's schedulers multiply the learning rate of a group by its `lr_scale`.

    Args:
        model: Model whose `ImplicitFilter` modules count.
        groups: timm's parameter groups of the model.
        lr_scale: Factor of the learning rate for the filters, on top of the group's own (layer decay).

    Returns:
        New groups; the parameters and their order within a group are kept.
    """
    filters = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, ImplicitFilter)
        for parameter in module.parameters()
    }
    split = []
    for group in groups:
        other = [parameter for parameter in group["params"] if id(parameter) not in filters]
        own = [parameter for parameter in group["params"] if id(parameter) in filters]
        if other:
            split.append({**group, "params": other})
        if own:
            scale = group.get("lr_scale", 1.0) * lr_scale
            split.append({**group, "params": own, "weight_decay": 0.0, "lr_scale": scale})
    return split


def create_optimizer(args: Arguments, model: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
    """Create timm's optimizer over the parameter groups of the arguments.

    Args:
        args: Arguments of the run.
        model: Model to train, not yet compiled or wrapped.
        lr: Learning rate of `base_lr`.

    Raises:
        ConfigError: Arguments that the optimizer refuses.
    """
    options = dict(args.opt_kwargs)
    # With a group function create_optimizer_v2 leaves these to it; they choose what a hybrid (Muon) hands to AdamW
    grouping = {key: options.pop(key) for key in ("fallback_list", "fallback_no_weight_decay") if key in options}
    grouping["no_weight_decay_list"] = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()

    def param_groups(model: torch.nn.Module) -> list[dict]:
        if args.layer_decay is None:
            groups = param_groups_weight_decay(model, args.weight_decay, **grouping)
        else:
            groups = param_groups_layer_decay(
                model,
                args.weight_decay,
                layer_decay=args.layer_decay,
                min_scale=args.layer_decay_min_scale,
                no_opt_scale=args.layer_decay_no_opt_scale,
                **grouping,
            )
        return split_filter_groups(model, groups, args.filter_lr_scale)

    kwargs = {
        name: value
        for name, value in timm.optim.optimizer_kwargs(args).items()
        if not name.startswith("layer_decay")  # done by the group function
    }
    kwargs["lr"] = lr
    try:
        return timm.optim.create_optimizer_v2(model, **kwargs, **options, param_group_fn=param_groups)
    except (TypeError, ValueError, AssertionError, ImportError) as error:
        flag, given = ("opt-kwargs", f" {args.opt_kwargs}") if args.opt_kwargs else ("opt", "")
        raise ConfigError(f"argument --{flag}: {args.opt} refuses its arguments{given}: {one_line(error)}") from error


def base_lr(args: Arguments, batch_size: float) -> float:
    """Return the learning rate: `--lr`, or `--lr-base` scaled to the global batch size as timm does.

    Args:
        args: Arguments of the run.
        batch_size: Images of a batch on one process, in the mean.
    """
    if args.lr:
        return args.lr
    batch_size = batch_size * args.world_size * args.grad_accum_steps
    adaptive = any(name in args.opt.lower() for name in ("ada", "lamb"))
    scale = args.lr_base_scale or ("sqrt" if adaptive else "linear")
    ratio = batch_size / args.lr_base_size
    lr = args.lr_base * (ratio**0.5 if scale == "sqrt" else ratio)
    _logger.info(f"Learning rate {lr:.4g}: base {args.lr_base:g}, global batch size {batch_size:g}, {scale} scaling.")
    return lr


def create_scheduler(
    args: Arguments, optimizer: torch.optim.Optimizer, updates_per_epoch: int, decreasing_metric: bool
) -> tuple[Scheduler | None, int]:
    """Create timm's scheduler and set the first learning rates.

    Args:
        args: Arguments of the run.
        optimizer: Optimizer, before any resumed state is loaded into it.
        updates_per_epoch: Optimizer updates in an epoch.
        decreasing_metric: Whether a lower eval metric is better.

    Returns:
        Scheduler (None for `--sched none`) and the number of epochs with warm-up, cycles and cool-down.

    Raises:
        ConfigError: Unknown scheduler, or arguments that it refuses.
    """
    try:
        scheduler, epochs = create_scheduler_v2(
            optimizer,
            **scheduler_kwargs(args, decreasing_metric=decreasing_metric),
            updates_per_epoch=updates_per_epoch,
        )
    except (ValueError, AssertionError) as error:
        raise ConfigError(f"argument --sched: {args.sched}: {one_line(error)}") from error
    if scheduler is None:
        if args.sched != "none":  # older timm returns None for any name it does not know
            raise ConfigError(f"argument --sched: unknown scheduler {args.sched!r}")
        for group in optimizer.param_groups:
            group["lr"] *= group.get("lr_scale", 1.0)
    return scheduler, epochs


def start_schedule(
    args: Arguments,
    scheduler: Scheduler | None,
    epoch: int,
    updates_per_epoch: int,
    step: int,
    resumed: dict | None,
) -> None:
    """Set the learning rates with which a run begins or goes on.

    Args:
        args: Arguments of the run.
        scheduler: Schedule, its state restored.
        epoch: First epoch to train.
        updates_per_epoch: Optimizer updates in an epoch.
        step: Batches of it that are done.
        resumed: Content of the checkpoint that the run goes on from, or None.
    """
    if scheduler is None or (epoch == 0 and step == 0):
        return
    if isinstance(scheduler, PlateauLRScheduler) and resumed and "plateau" in resumed:
        if step == 0:  # what comes after a checkpoint at the end of an epoch
            scheduler.step(epoch, resumed.get("metric"))
    elif args.sched_on_updates:
        scheduler.step_update(epoch * updates_per_epoch + math.ceil(step / args.grad_accum_steps))
    else:
        scheduler.step(epoch)
