"""The classes of a run by their names: those of the data, those of trained weights, and labels matched to them."""

import json
import logging
import os
from typing import Any, NamedTuple

from timm.utils import is_primary

from hyena_vision.data import FolderReader, class_names
from hyena_vision.training.arguments import Arguments
from hyena_vision.training.checkpoint_files import read_checkpoint
from hyena_vision.training.errors import ConfigError, UserError, one_line

_logger = logging.getLogger("train")

Classes = dict[str, int]  # index of each class by its name


class Known(NamedTuple):
    """The classes of the weights that a run begins with.

    Args:
        classes: None where they have no names.
        source: Where the weights lie.
        fixed: Whether the head is used as it is; else one for other classes starts anew.
        settings: Arguments of the run that trained them, as far as they are known.
    """

    classes: Classes | None
    source: str
    fixed: bool = True
    settings: dict[str, Any] = {}  # noqa: RUF012  nobody writes to it


NOTHING_KNOWN = Known(None, "")


def classes_of(dataset: Any) -> Classes | None:
    """Return the classes of a data set, or None where they have no names."""
    reader = getattr(dataset, "reader", None)
    for owner, name in ((dataset, "class_to_idx"), (reader, "class_to_idx"), (reader, "class_name_to_idx")):
        found = getattr(owner, name, None)
        if isinstance(found, dict) and found:
            return {name: index for index, name in enumerate(class_names(found))}
    return None


def known_classes(args: Arguments, resume_from: str = "", resumed: dict | None = None) -> Known:
    """Return the classes of the weights that a run begins with.

    Args:
        args: Arguments of the run.
        resume_from: Path of the checkpoint that it resumes, if any.
        resumed: Content of that.

    Raises:
        UserError: A file cannot be read.
    """
    if resumed is not None:
        return Known(resumed.get("class_to_idx") or None, resume_from)
    path = args.eval or args.initial_checkpoint
    if path.endswith(".safetensors"):
        return Known(label_names(os.path.dirname(path)), path)
    if path:
        checkpoint = read_checkpoint(path)
        settings = checkpoint.get("args")
        settings = settings if isinstance(settings, dict) else {}
        return Known(checkpoint.get("class_to_idx") or None, path, settings=settings)
    if args.pretrained and args.model.startswith("local-dir:"):
        return Known(label_names(args.model.removeprefix("local-dir:")), args.model, fixed=False)
    return NOTHING_KNOWN


def label_names(folder: str) -> Classes | None:
    """Return the classes that the `config.json` of an exported model names, or None.

    Raises:
        UserError: The file cannot be read.
    """
    path = os.path.join(folder, "config.json")
    if not os.path.isfile(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        names = config.get("label_names") or config.get("pretrained_cfg", {}).get("label_names")
        pairs = names.items() if isinstance(names, dict) else enumerate(names or ())
        return {str(name): int(index) for index, name in pairs} or None
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"cannot read the label names in {path}: {one_line(error)}") from error


def match_labels(args: Arguments, dataset: Any, name: str, known: Classes, source: str, all_of_them: bool) -> None:
    """Give the labels of a data set the indices that other classes of the same names have.

    Args:
        args: Arguments of the run.
        dataset: Data set with named classes; its `target_transform` is set where the indices differ.
        name: What to call it.
        known: Classes of the model, or of the training split.
        source: What to call those.
        all_of_them: Whether each must be there.

    Raises:
        ConfigError: Other classes, or some are missing; the message names them.
    """
    own = classes_of(dataset)
    if own is None:
        return
    reader = getattr(dataset, "reader", None)
    without = set(reader.missing) if isinstance(reader, FolderReader) else set()
    own = {name: index for name, index in own.items() if name not in without}
    if unknown := [each for each in own if each not in known]:
        raise ConfigError(f"{name} has classes that {source} has not: {listed(unknown)}; it has {listed(known)}")
    if missing := [each for each in known if each not in own]:
        if all_of_them:
            raise ConfigError(f"{name} has no images of the classes {listed(missing)} of {source}")
        if is_primary(args):
            _logger.warning(f"{name} has no images of {len(missing)} of {len(known)} classes: {listed(missing)}.")
    table = {index: known[each] for each, index in own.items()}
    if any(index != target for index, target in table.items()):
        _logger.info(f"{name} numbers its classes in another order than {source}: labels are matched by name.")
        dataset.target_transform = table.__getitem__


def fit_head(args: Arguments, known: Known, classes: Classes | None) -> Arguments:
    """Return arguments for a head of the run's classes, where they leave their number open and the classes have names.

    Args:
        args: Arguments of the run.
        known: Classes of the weights that it begins with.
        classes: Classes of the run.
    """
    changes: dict[str, Any] = {}
    if classes is not None and args.num_classes is None and "num_classes" not in args.model_kwargs:
        _logger.info(f"--num-classes is not given: the model has {len(classes)}, one for each class.")
        changes["num_classes"] = len(classes)
    if known.classes and not known.fixed and classes != known.classes:
        _logger.info(f"{known.source} knows other classes ({listed(known.classes)}): its head starts anew.")
        changes["pretrained_cfg_overlay"] = {**args.pretrained_cfg_overlay, "num_classes": -1}
    return Arguments(**{**vars(args), **changes}) if changes else args


def check_head(args: Arguments, classes: Classes | None, model_classes: int) -> Classes | None:
    """Stop where a model has another number of classes than the data, or warn where that was the model's own choice.

    Returns:
        The classes, or None where they do not name all of the model's.

    Raises:
        ConfigError: It was given, or is too small.
    """
    if classes is None or len(classes) == model_classes:
        return classes
    data = f"{args.dataset or args.data_dir} has {len(classes)} classes"
    if args.num_classes is not None or len(classes) > model_classes:
        raise ConfigError(f"argument --num-classes: {data}, the model {model_classes}: {listed(classes)}")
    _logger.warning(f"{data}, {args.model} {model_classes}: --num-classes {len(classes)} fits it.")
    return None


def listed(names) -> str:
    """Return names as a list that is not too long."""
    names = list(names)
    return ", ".join([*map(str, names[:8]), *([f"{len(names) - 8} more"] if len(names) > 8 else [])])
