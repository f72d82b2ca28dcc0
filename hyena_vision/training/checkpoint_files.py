"""Checkpoint files: written so that a crash loses none, read so that a damaged or hostile one is a clear error."""

import argparse
import contextlib
import glob
import hashlib
import json
import logging
import math
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm.utils
import torch
from timm.models import clean_state_dict
from timm.models._hub import save_config_for_hf

from hyena_vision.training.errors import UserError, one_line

_logger = logging.getLogger("train")

EXTENSION = ".pth.tar"
_WRAPPER = re.compile(r"^(_orig_mod|module|model|backbone|state_dict)\.")


class Metric(float):
    """A metric of an epoch; of two that are equal that of the lower loss is better.

    Args:
        value: Its value.
        loss: Loss of the same epoch; -inf where it is not known.
    """

    def __new__(cls, value: float, loss: float = -math.inf):
        """Make a float."""
        metric = super().__new__(cls, value)
        metric.loss = loss
        return metric

    def __gt__(self, other: float) -> bool:
        """Compare."""
        return (float(self), -self.loss) > (float(other), -getattr(other, "loss", -math.inf))

    def __lt__(self, other: float) -> bool:
        """Compare."""
        return (float(self), -self.loss) < (float(other), -getattr(other, "loss", -math.inf))


class CheckpointSaver(timm.utils.CheckpointSaver):
    """timm's saver of `last`, `model_best`, `checkpoint-N` and `recovery-E-U`, which never leaves less than it found.

    A file is written under another name, flushed to the disk and then renamed, so that every name that exists holds a
    whole checkpoint. `previous` is the `last` before: from the second save on there are two whole checkpoints at any
    moment. Everything in them is a tensor or a plain type, so that `weights_only=True` loads it.

    Set `state` (of `state.capture`) before each save.

    Args:
        model: Model that is trained; timm's saver wants it.
        optimizer: Its optimizer, likewise.
        folder: Folder of the run.
        eval_metric: Name of the metric that checkpoints are ranked by.
        **kwargs: Arguments of timm's saver.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        folder: str,
        eval_metric: str = "top1",
        **kwargs: Any,
    ):
        """Take over the recovery files that a run before left, so that they are removed in their turn."""
        decreasing = eval_metric == "loss"
        super().__init__(model, optimizer, checkpoint_dir=folder, recovery_dir=folder, decreasing=decreasing, **kwargs)
        self.eval_metric = eval_metric
        self.state: dict[str, Any] = {}
        files = sorted(
            glob.glob(os.path.join(glob.escape(folder), f"{self.recovery_prefix}-*{EXTENSION}")), key=_numbers
        )
        self.prev_recovery_file, self.curr_recovery_file = ["", "", *files][-2:]

    def load(self, path: str, checkpoint: dict) -> None:
        """Take over the history and best metric of a checkpoint, if it lies in the folder of this saver."""
        folder = os.path.dirname(os.path.abspath(path))
        if not os.path.samefile(folder, self.checkpoint_dir) or "saver" not in checkpoint:
            _logger.info(f"{path} has no history of this folder: the best metric starts anew.")
            return
        state, epoch, metric = checkpoint["saver"], checkpoint["epoch"], checkpoint.get("metric")
        try:
            if (before := state.get("eval_metric", self.eval_metric)) != self.eval_metric:
                _logger.info(f"Ranked by {self.eval_metric}, by {before} before: the best metric starts anew.")
                return
            losses = state.get("losses", {})  # earlier versions had none
            metric = metric if metric is None else Metric(metric, losses.get("own", -math.inf))
            # The state was taken before its own checkpoint was ranked
            history = [(name, Metric(value, losses.get(name, -math.inf))) for name, value in state["checkpoint_files"]]
            history.append((f"{self.save_prefix}-{epoch}{EXTENSION}", metric))
            files = {os.path.join(folder, name): value for name, value in history if value is not None}
            files = [(name, value) for name, value in files.items() if os.path.exists(name)]
            self.checkpoint_files = sorted(files, key=lambda file: file[1], reverse=not self.decreasing)
            self.best_metric, self.best_epoch = state["best_metric"], state["best_epoch"]
            if self.best_metric is not None:
                self.best_metric = Metric(self.best_metric, losses.get("best", -math.inf))
            better = metric is not None and (self.best_metric is None or self.cmp(metric, self.best_metric))
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise UserError(f"{path} has a history that cannot be read: {one_line(error)}") from error
        if better:
            self.best_metric, self.best_epoch = metric, epoch
            self._duplicate(path, os.path.join(folder, f"model_best{EXTENSION}"))

    def save_recovery(self, epoch: int, batch_idx: int = 0) -> None:
        """Save `recovery-E-U` and remove the one before the last; one of the same name is replaced by itself."""
        path = os.path.join(self.recovery_dir, f"{self.recovery_prefix}-{epoch}-{batch_idx}{EXTENSION}")
        if path == self.curr_recovery_file:
            self.curr_recovery_file, self.prev_recovery_file = self.prev_recovery_file, ""
        super().save_recovery(epoch, batch_idx)

    def save_milestone(self, epochs: int, path: str = "") -> None:
        """Keep the last checkpoint, or another file, as `milestone-N`, N epochs done; it is never removed."""
        last, milestone = (os.path.join(self.checkpoint_dir, name) for name in ("last", f"milestone-{epochs}"))
        self._duplicate(path or f"{last}{EXTENSION}", f"{milestone}{EXTENSION}")

    def _save(self, save_path: str, epoch: int, metric: float | None = None) -> None:
        files = [(os.path.basename(name), value) for name, value in self.checkpoint_files]
        ranked = {**dict(files), "best": self.best_metric, "own": metric}
        bookkeeping = {
            "checkpoint_files": [(name, _plain(value)) for name, value in files],
            "best_metric": _plain(self.best_metric),
            "best_epoch": self.best_epoch,
            "eval_metric": self.eval_metric,
            "losses": {name: value.loss for name, value in ranked.items() if isinstance(value, Metric)},
        }
        state = {**self.state, "metric": _plain(metric), "saver": bookkeeping}
        write_file(save_path, lambda file: torch.save(state, file))

    def _replace(self, src: str, dst: str) -> None:
        # timm removes dst first, and a crash in between would leave none
        previous = os.path.join(self.checkpoint_dir, f"previous{EXTENSION}")
        if os.path.basename(dst) == f"last{EXTENSION}" and os.path.exists(dst):
            _link(dst, f"{previous}.tmp")
            os.replace(src, dst)
            os.replace(f"{previous}.tmp", previous)
        else:
            os.replace(src, dst)
        _sync_folder(self.checkpoint_dir)

    def _duplicate(self, src: str, dst: str) -> None:
        _link(src, f"{dst}.tmp")
        os.replace(f"{dst}.tmp", dst)
        with contextlib.suppress(FileNotFoundError):
            os.remove(f"{dst}.tmp")  # it stays where both were the same file already
        _sync_folder(self.checkpoint_dir)


def _plain(value: float | None) -> float | None:
    return None if value is None else float(value)


def write_file(path: str, write: Callable[[Any], Any]) -> None:
    """Write a file and flush it to the disk; a half-written one is removed.

    Args:
        path: File to write.
        write: Called with the file, open for bytes.

    Raises:
        UserError: It cannot be written: disk full, quota, permission.
    """
    try:
        with open(path, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        with contextlib.suppress(OSError):
            os.remove(path)
        cause: BaseException = error
        while not isinstance(cause, OSError) and cause.__context__ is not None:
            cause = cause.__context__  # torch covers it with the state of its archive
        raise UserError(f"cannot write {path}: {one_line(cause)}") from error


def replace_file(path: str, content: bytes) -> None:
    """Write a file that, at any moment, holds the old content or the new.

    Raises:
        UserError: It cannot be written.
    """
    write_file(f"{path}.tmp", lambda file: file.write(content))
    os.replace(f"{path}.tmp", path)
    _sync_folder(os.path.dirname(os.path.abspath(path)))


def read_checkpoint(path: str) -> dict:
    """Read a file of tensors and plain types, every byte checked against the checksums in it; nothing is executed.

    Args:
        path: A torch or safetensors file.

    Raises:
        UserError: The file is missing, cut short, damaged, or not a checkpoint; the message names it.
    """
    if not os.path.isfile(path):
        raise UserError(f"no such checkpoint: {path}")
    try:
        if path.endswith(".safetensors"):
            return _read_safetensors(path)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch itself does not look at the checksums
                if (damaged := archive.testzip()) is not None:
                    raise ValueError(f"the checksum of {damaged} is wrong")
        elif _magic(path) == b"PK":  # torch would take it for a file of an old version
            raise ValueError("it is cut short")
        checkpoint = _load(path)
    except Exception as error:  # whatever it is that a parser meets in arbitrary bytes
        raise UserError(f"cannot read checkpoint {path}: {reason(error)}") from error
    if not isinstance(checkpoint, dict) or not checkpoint:
        raise UserError(f"{path} is not a checkpoint: it holds a {type(checkpoint).__name__}")
    return checkpoint


def set_aside(folder: str, place: tuple[float, float]) -> None:
    """Rename the checkpoints of a run that are more advanced than the place from which it goes on.

    Otherwise the next `--resume auto` would take them for the newest.

    Args:
        folder: Folder of the run.
        place: Epochs and batches that are done.
    """
    for path in _checkpoints(folder):
        if _place(path) > place:
            number, name = 1, os.path.basename(path)
            while os.path.exists(target := os.path.join(folder, f"superseded-{number}-{name}")):
                number += 1
            os.replace(path, target)
            _logger.warning(
                f"{name} is ahead of where the run goes on, or damaged: it is now {os.path.basename(target)}."
            )


def newest_checkpoint(folder: str) -> tuple[str, dict] | None:
    """Return path and content of the most advanced checkpoint of a run that is whole, or None where there is none.

    One that is damaged is passed over with a warning.

    Args:
        folder: Folder of the run; need not exist.

    Raises:
        UserError: There are checkpoints, and none can be read.
    """
    paths = _checkpoints(folder)
    for path in sorted(paths, key=_place, reverse=True):  # stable: `last` before its links
        try:
            return path, read_checkpoint(path)
        except UserError as error:
            _logger.warning(f"Passing over a damaged checkpoint: {error}")
    if paths:
        raise UserError(f"none of the {len(paths)} checkpoints in {folder} can be read")
    return None


def has_checkpoints(path: str) -> bool:
    """Return whether a file lies in the folder of a run, as its args.yaml does."""
    return bool(path and os.path.isfile(path) and _checkpoints(os.path.dirname(os.path.abspath(path))))


def find_weights(folder: str) -> str:
    """Return the file of the best weights in the folder of a run, or of a model that a run has exported.

    Raises:
        UserError: There is none.
    """
    names = ("model_best.pth.tar", "model.safetensors", "last.pth.tar")
    paths = [os.path.join(folder, name) for name in names]
    if found := next(filter(os.path.isfile, paths), None):
        return found
    raise UserError(f"{folder} is not the folder of a run or a model: it has none of {', '.join(names)}")


def load_weights(
    model: torch.nn.Module,
    path: str,
    hint: str = "",
    of_a_run: str = "",
    adapt: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] = dict,
) -> None:
    """Load the weights of a checkpoint, its moving average if it has one that counts, as they are.

    Args:
        model: Model that they are for.
        path: The checkpoint.
        hint: Added to the message where they do not fit.
        of_a_run: Added to the log line where the file holds an optimizer, too.
        adapt: Makes them fit the model's image size.

    Raises:
        UserError: The file cannot be read or is not for this model; the message names it.
    """
    checkpoint, own = read_checkpoint(path), model.state_dict()
    weights = unwrap_names(weights_of(checkpoint), own)
    try:
        model.load_state_dict(adapt(weights))
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        message = f"{path} does not fit the model: {fit(weights, own)}{hint}; {reason(error)}"
        raise UserError(message) from error
    _logger.info(f"Loaded weights from {path}.{of_a_run if 'optimizer' in checkpoint else ''}")


def weights_of(checkpoint: dict) -> dict[str, torch.Tensor]:
    """Return the model's weights in a checkpoint: the moving average where there is one that counts.

    Without the batch norms of augmented splits (`--split-bn`), which are for training alone.
    """
    names = ("state_dict_ema", "model_ema", "state_dict", "model", "module", "backbone")
    names = names if checkpoint.get("ema_counts", True) else names[2:]
    state = checkpoint
    while inner := next((state[name] for name in names if isinstance(state.get(name), dict)), None):
        state = inner
    return {name: value for name, value in clean_state_dict(state).items() if ".aux_bn." not in name}


def unwrap_names(weights: dict[str, Any], own: Container[str]) -> dict[str, Any]:
    """Return weights without the names that wrappers put before theirs, as far as more of them are a model's then.

    Args:
        weights: Weights by name.
        own: Names of the model's.
    """
    best = unwrapped = weights
    for _ in range(3):  # a wrapper in a wrapper
        unwrapped = {_WRAPPER.sub("", name): value for name, value in unwrapped.items()}
        best = max(best, unwrapped, key=lambda names: sum(name in own for name in names))
    return best


def fit(weights: dict[str, Any], own: dict[str, torch.Tensor]) -> str:
    """Say how many tensors of a model a checkpoint has in their shape."""
    fitting = sum(getattr(weights.get(name), "shape", None) == value.shape for name, value in own.items())
    return f"{fitting} of its {len(own)} tensors are in the file"


def export_model(
    model: torch.nn.Module,
    weights: dict[str, torch.Tensor],
    folder: str,
    model_args: dict,
    labels: list[str] | None = None,
    reading: dict[str, Any] | None = None,
    **cfg,
) -> None:
    """Write weights and configuration as `timm.create_model("local-dir:FOLDER")` and the hub read them.

    Args:
        model: Model whose configuration is written.
        weights: Its weights.
        folder: Folder of `model.safetensors` and `config.json`.
        model_args: Arguments of the model beside its name.
        labels: Names of its classes by index, or None.
        reading: How images are read, in what timm's configuration has no word for: `input_img_mode`, `no_exif`.
        **cfg: Entries of its `pretrained_cfg`: input size, mean, std, crop of the images that it was trained on.

    Raises:
        UserError: The folder cannot be written to.
    """
    # Copies, as safetensors refuses tensors that share memory
    weights = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in weights.items()
    }
    metadata = {"format": "pt", "sha256": _digest(weights)}
    replace_file(os.path.join(folder, "model.safetensors"), safetensors.torch.save(weights, metadata))
    path = os.path.join(folder, "config.json")
    try:
        config = {"pretrained_cfg": cfg, "label_names": labels, **(reading or {})}
        save_config_for_hf(model, Path(f"{path}.tmp"), config, model_args or None)
        os.replace(f"{path}.tmp", path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {one_line(error)}") from error


def read_exported(path: str) -> tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return architecture, arguments and `pretrained_cfg` of a config.json, and the `reading` of `export_model`.

    Raises:
        UserError: It is missing, or no such file.
    """
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        cfg = dict(config["pretrained_cfg"])
        cfg |= {key: config[key] for key in ("num_classes", "label_names", "label_descriptions") if config.get(key)}
        reading = {name: config[name] for name in ("input_img_mode", "no_exif") if name in config}
        return config["architecture"], dict(config.get("model_args") or {}), cfg, reading
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is not the config.json of a model: {one_line(error)}") from error


def _load(path: str, mmap: bool | None = None) -> Any:
    with torch.serialization.safe_globals([argparse.Namespace]):  # timm's own checkpoints hold one
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _magic(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(2)


def _read_safetensors(path: str) -> dict[str, torch.Tensor]:
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    weights = safetensors.torch.load_file(path)
    if "sha256" in metadata and metadata["sha256"] != _digest(weights):
        raise ValueError("its checksum is wrong")
    return weights


def _digest(weights: dict[str, torch.Tensor]) -> str:
    """Return a checksum of names, shapes, types and values."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def place_of(checkpoint: dict) -> tuple[float, float]:
    """Return how far a run had come: epochs, and batches of the next."""
    return checkpoint["epoch"] + 1, max((part["step"] for part in checkpoint.get("progress", ())), default=0)


def _checkpoints(folder: str) -> list[str]:
    names = ("last", "previous", "recovery-*", "checkpoint-*")
    return [path for name in names for path in glob.glob(os.path.join(glob.escape(folder), name + EXTENSION))]


def _place(path: str) -> tuple[float, float]:
    """Return how far the run had come; a file that does not say comes first, to be reported."""
    try:
        return place_of(_load(path, mmap=True))
    except Exception:  # read_checkpoint says what is wrong with it
        return float("inf"), 0


def _numbers(path: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", os.path.basename(path))]


def _link(src: str, dst: str) -> None:
    """Make a second name of a file, or a copy where the file system has no hard links."""
    with contextlib.suppress(FileNotFoundError):
        os.remove(dst)
    try:
        os.link(src, dst)
    except OSError:
        with open(src, "rb") as source:
            write_file(dst, lambda file: shutil.copyfileobj(source, file))


def _sync_folder(folder: str) -> None:
    """Flush a rename to the disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def reason(error: Exception) -> str:
    """Return the first sentences of an error; torch lists hundreds of keys, or advice to load unsafely."""
    text = one_line(error)
    if isinstance(error, pickle.UnpicklingError):
        return "it is not a torch file, or holds more than tensors and plain types"
    return text if len(text) <= 300 else f"{text[:300]}..."
