"""Checkpoints in timm's format that survive a crash while being written and resume to the last bit."""

import argparse
import logging
import os
import pickle
import random
import shutil
from typing import Any

import numpy
import timm.utils
import torch
from safetensors import SafetensorError
from timm.models import clean_state_dict, load_state_dict
from timm.task import TrainingTask

from hyena_vision.training.errors import UserError, one_line

_logger = logging.getLogger("train")

# What torch, safetensors and NumPy raise on files that are cut short or were never checkpoints
_READ_ERRORS = (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError, SafetensorError)


class CheckpointSaver(timm.utils.CheckpointSaver):
    """timm's saver of `last`, `model_best` and `checkpoint-N`, with atomic writes and random states.

    A file is written under another name, flushed to the disk and then renamed, so that every name that exists holds a
    whole checkpoint. Everything in it is a tensor or a plain type, so that `weights_only=True` loads it.

    Args:
        task: Task whose model and moving average are saved.
        optimizer: Optimizer to save.
        args: Arguments of the run.
        **kwargs: Arguments of timm's saver.
    """

    def __init__(self, task: TrainingTask, optimizer: torch.optim.Optimizer, args: argparse.Namespace, **kwargs: Any):
        """Save what timm's saver does; set `rng_states` before each save."""
        super().__init__(task.get_trainable_module(), optimizer, args=args, task=task, **kwargs)
        self.rng_states: list[dict] = []

    def load(self, path: str, checkpoint: dict) -> None:
        """Take over the history and best metric of a checkpoint, if it lies in the folder of this saver."""
        folder = os.path.dirname(os.path.abspath(path))
        if not os.path.samefile(folder, self.checkpoint_dir) or "saver" not in checkpoint:
            _logger.info(f"{path} is not from this folder: the best metric starts anew.")
            return
        state, epoch, metric = checkpoint["saver"], checkpoint["epoch"], checkpoint.get("metric")
        # The state was taken before its own checkpoint was ranked
        history = [*state["checkpoint_files"], (f"{self.save_prefix}-{epoch}{self.extension}", metric)]
        files = {os.path.join(folder, name): value for name, value in history if value is not None}
        files = [(name, value) for name, value in files.items() if os.path.exists(name)]
        self.checkpoint_files = sorted(files, key=lambda file: file[1], reverse=not self.decreasing)
        self.best_metric, self.best_epoch = state["best_metric"], state["best_epoch"]
        if metric is not None and (self.best_metric is None or self.cmp(metric, self.best_metric)):
            self.best_metric, self.best_epoch = metric, epoch
            self._duplicate(path, os.path.join(folder, f"model_best{self.extension}"))

    def _save(self, save_path: str, epoch: int, metric: float | None = None) -> None:
        state = {
            "epoch": epoch,
            "version": 2,
            "arch": self.args.model,
            "args": dict(vars(self.args)),
            "optimizer": self.optimizer.state_dict(),
            **self.task.get_checkpoint_state(unwrap_fn=self.unwrap_fn),
            **self.task.get_checkpoint_state(ema=True, unwrap_fn=self.unwrap_fn),
            "metric": metric,
            "rng_states": self.rng_states,
            "saver": {
                "checkpoint_files": [(os.path.basename(name), value) for name, value in self.checkpoint_files],
                "best_metric": self.best_metric,
                "best_epoch": self.best_epoch,
            },
        }
        if self.amp_scaler is not None:
            state[self.amp_scaler.state_dict_key] = self.amp_scaler.state_dict()
        try:
            with open(save_path, "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            if os.path.exists(save_path):
                os.remove(save_path)
            raise UserError(f"cannot write checkpoint {save_path}: {one_line(error)}") from error

    def _replace(self, src: str, dst: str) -> None:
        os.replace(src, dst)  # timm removes dst first, and a crash in between would leave none

    def _duplicate(self, src: str, dst: str) -> None:
        copy = f"{dst}.tmp"
        if os.path.exists(copy):
            os.remove(copy)
        try:
            os.link(src, copy)
        except (OSError, NotImplementedError):
            shutil.copy2(src, copy)
        os.replace(copy, dst)


def read_checkpoint(path: str) -> dict:
    """Read a file of tensors and plain types, `weights_only`; nothing in it is executed.

    Args:
        path: A torch or safetensors file.

    Raises:
        UserError: The file is missing, cut short, or not a checkpoint; the message names it.
    """
    if not os.path.isfile(path):
        raise UserError(f"no such checkpoint: {path}")
    try:
        if path.endswith(".safetensors"):
            return load_state_dict(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # timm's own checkpoints hold one
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except _READ_ERRORS as error:
        raise UserError(f"cannot read checkpoint {path}: {_reason(error)}") from error
    if not isinstance(checkpoint, dict) or not checkpoint:
        raise UserError(f"{path} is not a checkpoint: it holds a {type(checkpoint).__name__}")
    return checkpoint


def load_weights(model: torch.nn.Module, path: str) -> None:
    """Load the weights of a checkpoint, its moving average if it has one, as they are.

    Raises:
        UserError: The file cannot be read or is not for this model; the message names it.
    """
    checkpoint = read_checkpoint(path)
    names = ("state_dict_ema", "model_ema", "state_dict", "model")
    state = next((checkpoint[name] for name in names if isinstance(checkpoint.get(name), dict)), checkpoint)
    try:
        model.load_state_dict(clean_state_dict(state))
    except (RuntimeError, AttributeError, TypeError) as error:
        raise UserError(f"{path} does not fit the model: {_reason(error)}") from error
    _logger.info(f"Loaded weights from {path}.")


def resume(
    path: str,
    task: TrainingTask,
    optimizer: torch.optim.Optimizer | None = None,
    loss_scaler: timm.utils.NativeScaler | None = None,
) -> dict:
    """Load a training checkpoint into a task, its moving average, and the optimizer and scaler given.

    Args:
        path: Checkpoint of timm's `CheckpointSaver` or ours.
        task: Task with `setup_ema` done, neither compiled nor distributed yet.
        optimizer: Optimizer to load, or None to leave it as it is.
        loss_scaler: AMP scaler to load, or None.

    Returns:
        The checkpoint: `epoch` is the last one that it has finished.

    Raises:
        UserError: The file cannot be read, has no training state, or is of another model.
    """
    checkpoint = read_checkpoint(path)
    if missing := {"state_dict", "optimizer", "epoch"} - set(checkpoint):
        hint = "to start from weights alone use --initial-checkpoint"
        raise UserError(f"{path} is not a training checkpoint: no {', '.join(sorted(missing))}; {hint}")
    try:
        weights = clean_state_dict(checkpoint["state_dict"])
        task.load_checkpoint_state(weights)
        if task.has_ema():
            ema = checkpoint.get("state_dict_ema")
            task.load_checkpoint_state(clean_state_dict(ema) if ema else weights, ema=True)
        if optimizer is not None:
            optimizer.load_state_dict(checkpoint["optimizer"])
        if loss_scaler is not None and loss_scaler.state_dict_key in checkpoint:
            loss_scaler.load_state_dict(checkpoint[loss_scaler.state_dict_key])
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{path} (model {checkpoint.get('arch')}) does not fit: {_reason(error)}") from error
    _logger.info(f"Resumed from {path}, epoch {checkpoint['epoch']}.")
    return checkpoint


def rng_state() -> dict:
    """Return the states of Python's, NumPy's and torch's random generators as tensors and plain types."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = numpy.random.get_state()
    return {
        "python": [version, torch.tensor(words, dtype=torch.int64), gauss],
        "numpy": [name, torch.tensor(keys.astype("int64")), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_rng_state(state: dict) -> None:
    """Restore what `rng_state` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    numpy.random.set_state((name, keys.numpy().astype("uint32"), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def gather_rng_states(distributed: bool, world_size: int) -> list[dict]:
    """Return the random states of all processes, by rank."""
    states = [rng_state()] * world_size
    if distributed:
        torch.distributed.all_gather_object(states, rng_state())
    return states


def restore_rng(checkpoint: dict, rank: int, world_size: int) -> None:
    """Restore the random states of a checkpoint, where it has them for this number of processes."""
    states = checkpoint.get("rng_states", [])
    if len(states) == world_size:
        set_rng_state(states[rank])
    else:
        _logger.warning("The checkpoint has no random states for this number of processes: going on with the seed.")


def _reason(error: Exception) -> str:
    """Return the first sentences of an error; torch lists hundreds of keys, or advice to load unsafely."""
    text = one_line(error)
    if isinstance(error, pickle.UnpicklingError):
        return "it is not a torch file, or holds more than tensors and plain types"
    return text if len(text) <= 300 else f"{text[:300]}..."
