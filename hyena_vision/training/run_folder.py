"""The folder of a run: where it is, and that nothing in it is lost."""

import logging
import os
from datetime import datetime

import yaml
from timm.models import safe_model_name
from timm.utils import is_primary

from hyena_vision.training.arguments import Arguments
from hyena_vision.training.checkpoint_files import EXTENSION, newest_checkpoint, read_checkpoint, replace_file
from hyena_vision.training.distributed import gather_objects
from hyena_vision.training.errors import ConfigError, UserError, one_line
from hyena_vision.training.run_state import same_settings

_logger = logging.getLogger("train")


def choose_folder(args: Arguments) -> tuple[str | None, str, dict | None]:
    """Return the folder of a named run (None where it gets a default name) and the checkpoint to go on from.

    All processes call it together, and go on from the checkpoint that the first one has chosen.

    Args:
        args: Arguments of the run.

    Returns:
        Folder; path of the checkpoint, or ''; its content, or None.

    Raises:
        ConfigError: The folder holds another run, which would be overwritten.
        UserError: A checkpoint that cannot be read, or that not all processes can read.
    """
    folder = os.path.join(args.output or "./output/train", args.experiment) if args.experiment else None
    path, checkpoint, error = args.resume, None, None
    try:
        if is_primary(args):
            if args.resume == "auto":
                path, checkpoint = newest_checkpoint(folder) or ("", None)
                if not path:
                    _logger.info(f"No checkpoint in {folder}: starting anew.")
            elif path:
                checkpoint = read_checkpoint(path)
            held = os.listdir(folder) if folder and os.path.isdir(folder) else []
            held = [name for name in held if name == "summary.csv" or name.endswith(EXTENSION)]
            continues = args.resume == "auto" or (
                path and os.path.dirname(os.path.abspath(path)) == os.path.abspath(folder or "")
            )
            if held and not continues:
                raise ConfigError(
                    f"{folder} holds a run already: continue it with --resume auto, or name another --experiment"
                )
    except UserError as failed:
        error = failed
    path, failed = gather_objects((path, error))[0]
    if failed is None and path and checkpoint is None:
        try:
            checkpoint = read_checkpoint(path)
        except UserError as unreadable:
            error = UserError(f"{unreadable} (process {args.rank}; all processes read the folder of the run)")
    if failed := next((error for error in gather_objects(error) if error is not None), None):
        raise failed
    return folder, path, checkpoint


def default_folder(args: Arguments, config: dict) -> str:
    """Return the folder of a run without a name: time, model and image size."""
    name = (datetime.now().strftime("%Y%m%d-%H%M%S"), safe_model_name(args.model))
    return os.path.join(args.output or "./output/train", "-".join([*name, str(config["input_size"][-1])]))


def open_folder(folder: str, settings: str, start_epoch: int, resumed: bool) -> None:
    """Create the folder of a run or, resuming, drop the summary rows of epochs that will be trained again.

    `args.yaml` has the settings with which the run goes on next time; others that it had before are kept beside it.

    Args:
        folder: The folder.
        settings: Content of args.yaml.
        start_epoch: First epoch to train.
        resumed: Whether the run goes on from a checkpoint.

    Raises:
        UserError: It cannot be written to.
    """
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {folder}: {one_line(error)}") from error
    path = os.path.join(folder, "args.yaml")
    before = _read_yaml(path) if resumed else None
    if before is not None:
        replace_file(os.path.join(folder, f"args-epoch-{start_epoch}.yaml"), settings.encode())
    if before is None or not same_settings(before, yaml.safe_load(settings)):
        if before is not None:
            os.replace(path, os.path.join(folder, f"args-before-epoch-{start_epoch}.yaml"))
        replace_file(path, settings.encode())
    summary = os.path.join(folder, "summary.csv")
    if not os.path.exists(summary):
        return
    with open(summary, "rb") as file:
        content = file.read()
    header, *rows = content.splitlines(keepends=True) or [b""]
    kept = [row for row in rows if _is_row_before(row, start_epoch)]
    if not header.endswith(b"\n"):  # cut short by a crash, as rows can be; their epochs were not saved either
        os.remove(summary)
    elif len(kept) < len(rows):
        replace_file(os.path.join(folder, f"summary-before-epoch-{start_epoch}.csv"), content)
        replace_file(summary, b"".join([header, *kept]))


def _read_yaml(path: str) -> dict | None:
    """Return the content of args.yaml, or None where it is missing or cut short."""
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file)
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return None
    return values if isinstance(values, dict) else None


def _is_row_before(row: bytes, epoch: int) -> bool:
    number = row.split(b",")[0]
    return row.endswith(b"\n") and number.isdigit() and int(number) < epoch
