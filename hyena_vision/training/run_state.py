"""The state of a run: what a checkpoint holds beside files and names, and how a run goes on from it."""

import argparse
import logging
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from timm.models import clean_state_dict
from timm.scheduler import PlateauLRScheduler
from timm.scheduler.scheduler import Scheduler
from timm.task import TrainingTask
from timm.utils import NativeScaler, unwrap_model

from hyena_vision.training.arguments import Arguments
from hyena_vision.training.checkpoint_files import reason
from hyena_vision.training.distributed import full_state, gather_objects, load_model, load_optimizer, shard_like
from hyena_vision.training.errors import ConfigError, UserError

_logger = logging.getLogger("train")

# Settings that may change from one part of a run to the next: where things are, how fast it goes, what is reported
_FREE = """
    config data data_dir dataset_download output experiment device device_modules local_rank workers pin_mem
    synchronize_step resume resume_force no_resume_opt start_epoch pretrained pretrained_path initial_checkpoint
    log_interval val_interval recovery_interval checkpoint_hist save_images save_epochs stop_epoch validation_batch_size
    log_wandb wandb_project wandb_tags wandb_resume_id log_tensorboard use_multi_epochs_loader worker_seeding patience
    on_nonfinite nonfinite_limit on_bad_image fsdp no_ddp_bb grad_checkpointing torchcompile torchcompile_mode eval tta
    class_to_idx
""".split()
_MODEL = ("model", "num_classes", "in_chans", "model_kwargs", "gp")


@dataclass
class Progress:
    """What is done of an epoch on one process; written into checkpoints, so plain types only.

    Args:
        step: Batches.
        loss_sum: Sum of the losses of their images, without skipped updates.
        images: Number of these images.
        skipped: Updates that were skipped as not finite.
        bad_images: Messages about images that could not be read.
    """

    step: int = 0
    loss_sum: float = 0.0
    images: int = 0
    skipped: int = 0
    bad_images: tuple[str, ...] = ()

    @property
    def loss(self) -> float:
        """Return the mean loss so far, NaN before the first."""
        return self.loss_sum / self.images if self.images else float("nan")


@dataclass
class Parts:
    """The parts of a run that have a state, those that are None have none, and what is said of them.

    `class_to_idx` names the classes; `ema_counts` is whether the moving average, not the model itself, is what the run
    has to show.
    """

    task: TrainingTask | None
    optimizer: torch.optim.Optimizer | None = None
    loss_scaler: NativeScaler | None = None
    scheduler: Scheduler | None = None
    class_to_idx: dict[str, int] | None = None
    ema_counts: bool = True


def capture(parts: Parts, settings: dict[str, Any], epoch: int, progress: Progress | None = None) -> dict[str, Any]:
    """Return the content of a checkpoint in timm's format. All processes call it together.

    Args:
        parts: What is saved.
        settings: Arguments of the run as given.
        epoch: Last epoch that is finished, -1 for none.
        progress: What is done of the next one, None for nothing.

    Returns:
        Dict of tensors and plain types; sharded tensors are put together on the CPU.
    """
    state = {
        "epoch": epoch,
        "version": 2,  # of timm's format: `epoch` is finished
        "arch": settings["model"],
        "args": settings,
        "class_to_idx": parts.class_to_idx,
        "optimizer": full_state(parts.optimizer.state_dict()),
        **full_state(parts.task.get_checkpoint_state()),
        **full_state(parts.task.get_checkpoint_state(ema=True)),
        "progress": gather_objects(asdict(progress)) if progress else [],
        "world_size": len(gather_objects(None)),
        "ema_counts": parts.ema_counts,
        "num_classes": getattr(
            unwrap_model(parts.task.get_eval_model()), "num_classes", None
        ),  # args may leave it open
    }
    if parts.loss_scaler is not None:
        state[parts.loss_scaler.state_dict_key] = parts.loss_scaler.state_dict()
    if isinstance(parts.scheduler, PlateauLRScheduler):  # the others follow from the epoch
        state["plateau"] = [parts.scheduler.lr_scheduler.state_dict(), parts.scheduler.restore_lr]
    return state


def restore(path: str, checkpoint: dict, parts: Parts, force: bool = False) -> None:
    """Load a checkpoint of timm's trainer or ours into the parts of a run.

    Args:
        path: Where it was read, for messages.
        checkpoint: Its content.
        parts: Task with `setup_ema` done, optimizer, scaler and scheduler to load.
        force: Keep the optimizer's own settings (rates, weight decay, betas) instead of the checkpoint's.

    Raises:
        UserError: It has no training state, or is of another model.
    """
    needed = {"state_dict", "epoch"} | ({"optimizer"} if parts.optimizer is not None else set())
    if missing := needed - set(checkpoint):
        hint = "to start from weights use --initial-checkpoint or, to adapt head and grid, --pretrained-path"
        raise UserError(f"{path} is not a training checkpoint: no {', '.join(sorted(missing))}; {hint}")
    task = parts.task
    try:
        weights = clean_state_dict(checkpoint["state_dict"])
        load_model(unwrap_model(task.get_eval_model()), weights)
        task.load_task_state(shard_like(checkpoint.get("task_state"), task.get_task_state()))
        if task.has_ema():
            average = clean_state_dict(checkpoint.get("state_dict_ema") or weights)
            load_model(unwrap_model(task.get_eval_model(ema=True)), average)
            task_state = checkpoint.get("task_state_ema") or checkpoint.get("task_state")
            task.load_task_state(shard_like(task_state, task.get_task_state(ema=True)), ema=True)
        if parts.optimizer is not None:
            own = _hyperparameters(parts.optimizer, isinstance(parts.scheduler, PlateauLRScheduler))
            load_optimizer(parts.optimizer, checkpoint["optimizer"])
            if force:
                for group, values in zip(parts.optimizer.param_groups, own, strict=True):
                    group.update(values)
        if parts.loss_scaler is not None and parts.loss_scaler.state_dict_key in checkpoint:
            parts.loss_scaler.load_state_dict(checkpoint[parts.loss_scaler.state_dict_key])
        if isinstance(parts.scheduler, PlateauLRScheduler) and "plateau" in checkpoint:
            plateau, parts.scheduler.restore_lr = checkpoint["plateau"]
            parts.scheduler.lr_scheduler.load_state_dict(plateau)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        message = f"{path} (model {checkpoint.get('arch')}) does not fit: {reason(error)}"
        raise UserError(f"{message}; --pretrained-path starts another run from its weights") from error


def begin(args: Arguments, parts: Parts, path: str, checkpoint: dict | None) -> tuple[int, Progress]:
    """Restore what a run goes on from, if anything, and return its first epoch and what is done of that.

    Args:
        args: Arguments of the run.
        parts: As `restore` takes them.
        path: Where the checkpoint was read, for messages.
        checkpoint: Its content, or None.

    Raises:
        UserError: It does not fit.
    """
    epoch, progress = 0, Progress()
    if checkpoint is not None:
        restore(path, checkpoint, Parts(parts.task) if args.no_resume_opt else parts, args.resume_force)
        epoch, progress = resume_point(path, checkpoint, args.rank, args.world_size, args.grad_accum_steps)
        _logger.info(f"Going on in epoch {epoch} at batch {progress.step} from {path}.")
    return (epoch, progress) if args.start_epoch is None else (args.start_epoch, Progress())


def resume_point(path: str, checkpoint: dict, rank: int, world_size: int, updates: int = 1) -> tuple[int, Progress]:
    """Return the epoch that a checkpoint goes on with, and what is done of it.

    Args:
        path: Where it was read, for messages.
        checkpoint: Content of a checkpoint.
        rank: Number of this process.
        world_size: Number of processes.
        updates: Batches to an optimizer update.

    Raises:
        UserError: It does not say where it is in a way that can be read.
    """
    try:
        epoch = checkpoint["epoch"] + (1 if checkpoint.get("version", 1) > 1 else 0)
        parts = [Progress(**part) for part in checkpoint.get("progress", ())]
        for part in parts:
            part.bad_images = tuple(part.bad_images)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{path} does not say where it is in a run: {reason(error)}") from error
    before = checkpoint.get("world_size", world_size)
    if not parts and before != world_size:
        _logger.warning(f"{path} was written by {before} processes, now there are {world_size}.")
    if not parts or len(parts) == world_size:
        return epoch, parts[rank] if parts else Progress()
    _logger.warning(
        f"The checkpoint is from the middle of epoch {epoch} on {len(parts)} processes, now there are {world_size}: "
        "the rest of the epoch is as long, but its images are drawn anew."
    )
    step = parts[0].step * len(parts) // world_size
    return epoch, Progress(
        step=step - step % updates,
        loss_sum=sum(part.loss_sum for part in parts) / world_size,
        images=sum(part.images for part in parts) // world_size,
        skipped=parts[0].skipped,
        bad_images=tuple(sorted({message for part in parts for message in part.bad_images})) if rank == 0 else (),
    )


def check_settings(path: str, checkpoint: dict, settings: dict[str, Any], force: bool = False) -> None:
    """Refuse to go on with a run under other settings.

    Args:
        path: Where the checkpoint was read, for the message.
        checkpoint: Its content. Of one that another program wrote only what describes the model is compared.
        settings: Arguments of this run as given.
        force: Warn only.

    Raises:
        ConfigError: Settings differ, other than by more epochs; the message names each with both values.
    """
    saved = checkpoint.get("args")
    saved = vars(saved) if isinstance(saved, argparse.Namespace) else saved
    if not isinstance(saved, dict):
        return
    names = sorted(settings.keys() - set(_FREE)) if "progress" in checkpoint else _MODEL
    changed = [
        f"{name} {saved[name]} (now {settings[name]})"
        for name in names
        if name in saved and not _goes_on(name, saved[name], settings[name], checkpoint)
    ]
    if "progress" in checkpoint and settings["epochs"] > saved.get("epochs", math.inf):
        epochs = settings["epochs"]
        _logger.info(
            f"{epochs} epochs, {saved['epochs']} before: the schedule is that of {epochs} epochs from here on."
        )
    if not changed:
        return
    message = f"{path} was trained with other settings: {', '.join(changed)}"
    if not force:
        raise ConfigError(f"{message}; --resume-force goes on with the new ones")
    _logger.warning(f"{message}; going on with the new ones.")


def _goes_on(name: str, saved: Any, now: Any, checkpoint: dict) -> bool:
    """Return whether a run may go on with another value of a setting."""
    if name in ("backends", "num_classes") and None in (saved, now):
        return True  # without a GPU it has no backends; the weights say whether the classes are as many
    if name == "lr" and not saved and now:  # args.yaml held what --lr-base came to
        groups = checkpoint.get("optimizer", {}).get("param_groups", ())
        return any(math.isclose(now, group.get("initial_lr", group["lr"]), rel_tol=1e-6) for group in groups)
    if name == "epochs" and now > saved:
        return True
    return _plain(saved) == _plain(now)


def same_settings(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Return whether two sets of settings agree in all that a run may not change without a word."""
    return all(
        _plain(first.get(name)) == _plain(second.get(name)) for name in (first.keys() | second.keys()) - set(_FREE)
    )


def _plain(value: Any) -> Any:
    """Return a setting such that it is the same from the command line and from YAML."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value


def _hyperparameters(optimizer: torch.optim.Optimizer, keep_lr: bool) -> list[dict[str, Any]]:
    """Return the settings of each parameter group, not what they have become in training."""
    names = {*optimizer.defaults, "weight_decay", "lr_scale", "initial_lr"} - {"lookahead_step"}
    names -= {"lr"} if keep_lr else set()  # a plateau's rate is not in the arguments
    return [{name: group[name] for name in names & group.keys()} for group in optimizer.param_groups]
