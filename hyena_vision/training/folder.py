"""The folder of a run: where it is, and that nothing in it is lost."""

import argparse
import csv
import logging
import os
from datetime import datetime

from timm.models import safe_model_name

from hyena_vision.training.config import dump_args
from hyena_vision.training.errors import ConfigError, UserError

_logger = logging.getLogger("train")


def choose_folder(args: argparse.Namespace) -> tuple[str | None, str]:
    """Return the folder of a named run (None where it gets a default name) and the checkpoint to resume, or ''.

    Raises:
        ConfigError: The folder holds another run, which would be overwritten.
    """
    folder = os.path.join(args.output or "./output/train", args.experiment) if args.experiment else None
    resume_from = args.resume
    if args.resume == "auto":
        resume_from = os.path.join(folder, "last.pth.tar")
        if not os.path.exists(resume_from):
            _logger.info(f"No {resume_from}: starting anew.")
            resume_from = ""
    if resume_from and not os.path.isfile(resume_from):
        raise UserError(f"no such checkpoint: {resume_from}")
    held = os.listdir(folder) if folder and os.path.isdir(folder) else []
    held = [name for name in held if name == "summary.csv" or name.endswith(".pth.tar")]
    continues = resume_from and os.path.abspath(os.path.dirname(resume_from)) == os.path.abspath(folder or "")
    if held and not continues:
        raise ConfigError(f"{folder} holds a run already: continue it with --resume auto, or name another --experiment")
    return folder, resume_from


def default_folder(args: argparse.Namespace, config: dict) -> str:
    """Return the folder of a run without a name: time, model and image size."""
    name = (datetime.now().strftime("%Y%m%d-%H%M%S"), safe_model_name(args.model))
    return os.path.join(args.output or "./output/train", "-".join([*name, str(config["input_size"][-1])]))


def open_folder(folder: str, args: argparse.Namespace, start_epoch: int) -> None:
    """Create the folder of a run or, resuming, drop the summary rows of epochs that will be trained again."""
    os.makedirs(folder, exist_ok=True)
    name = f"args-epoch-{start_epoch}.yaml" if start_epoch else "args.yaml"
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        file.write(dump_args(args))
    summary = os.path.join(folder, "summary.csv")
    if not os.path.exists(summary):
        return
    with open(summary, newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    kept = [row for row in rows if row and int(row[0]) < start_epoch]
    if len(kept) < len(rows):
        os.replace(summary, os.path.join(folder, f"summary-before-epoch-{start_epoch}.csv"))
        with open(summary, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *kept])
