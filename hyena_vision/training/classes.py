"""The classes of a run by their names: those of the data, those of trained weights, and labels matched to them."""

import logging
import os
from typing import Any, NamedTuple

from timm.utils import is_primary

from hyena_vision.data import FolderReader, class_names, target_channels
from hyena_vision.training.arguments import Arguments
from hyena_vision.training.checkpoint_files import read_checkpoint, read_exported
from hyena_vision.training.errors import ConfigError, UserError

_logger = logging.getLogger("train")

Classes = dict[str, int]  # index of each class by its name


class Known(NamedTuple):
    """The classes of the weights that a run begins with.

    Args:
        classes: None where they have no names.
        source: Where the weights lie.
        fixed: Whether the head is used as it is; else one for other classes starts anew.
    """

    classes: Classes | None
    source: str
    fixed: bool = True


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
    path = args.eval or args.teacher_path or args.initial_checkpoint
    if path.endswith(".safetensors"):
        return Known(exported_classes(os.path.dirname(path)), path)
    if path:
        return Known(read_checkpoint(path).get("class_to_idx") or None, path)
    if args.pretrained and args.model.startswith("local-dir:"):
        return Known(exported_classes(args.model.removeprefix("local-dir:")), args.model, fixed=False)
    return NOTHING_KNOWN


def exported_classes(folder: str) -> Classes | None:
    """Return the classes that the `config.json` of an exported model names; None without one, or one of timm's kind."""
    try:
        names = label_names(read_exported(os.path.join(folder, "config.json"))[2])
    except UserError:
        return None
    return {name: index for index, name in enumerate(names)} if names else None


def label_names(config: dict[str, Any]) -> list[str] | None:
    """Return the names of the classes by index that a configuration of timm has, or None.

    Args:
        config: With `label_names`: a list, or names by index, whose gaps are named by their number.

    Raises:
        UserError: It has something else.
    """
    names = config.get("label_names")
    if not names:
        return None
    try:
        by_index = names.items() if isinstance(names, dict) else enumerate(names)
        named = {int(index): str(name) for index, name in by_index}
    except (ValueError, TypeError) as error:
        raise UserError(f"expected label_names by the index of their class, got {str(names)[:100]}") from error
    return [named.get(index, str(index)) for index in range(max(named) + 1)]


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
        The classes, or None where they do not name all of the model's, or targets are pictures.

    Raises:
        ConfigError: It was given, or is too small.
    """
    if target_channels(args.dataset):
        return None
    given = args.num_classes is not None or "num_classes" in args.model_kwargs
    if classes is None and not given and not args.eval and is_primary(args):
        _logger.warning(
            f"--num-classes is not given, and {args.dataset} does not name its classes: the model has its own "
            f"number, {model_classes}."
        )
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
