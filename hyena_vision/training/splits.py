"""The splits of a data set that a run trains and validates on."""

import logging
import os

import torch
from timm.data.readers.reader_image_folder import ReaderImageFolder

from hyena_vision.data import create_dataset
from hyena_vision.training.arguments import Arguments
from hyena_vision.training.errors import ConfigError, one_line

_logger = logging.getLogger("train")


def create_datasets(args: Arguments, data_config: dict, model_classes: int, train: bool = True) -> tuple:
    """Create the data sets to train and to validate on; the second is None without `--val-split`.

    Args:
        args: Arguments of the run.
        data_config: timm's data configuration of the model.
        model_classes: Classes of the model's head.
        train: Whether the first is wanted; else it is None.

    Raises:
        ConfigError: A missing or empty folder, different classes in the splits, more classes than the model has, or
            other than `--num-classes` says.
    """
    common = dict(
        class_map=args.class_map,
        download=args.dataset_download,
        batch_size=args.batch_size,
        input_img_mode=args.input_img_mode or ("RGB" if data_config["input_size"][0] == 3 else "L"),
        input_key=args.input_key,
        target_key=args.target_key,
        trust_remote_code=args.dataset_trust_remote_code,
    )
    if train and args.val_split and args.dataset in ("", "folder") and os.path.isfile(args.data_dir or ""):
        # timm reads all of it for either split
        raise ConfigError(f"argument --val-split: {args.data_dir} is one split; train on it with --val-split ''")
    training = validation = None
    if train:
        own = dict(seed=args.seed, repeats=args.epoch_repeats, num_samples=args.train_num_samples)
        training = _open(args, args.train_split, is_training=True, **own, **common)
    if args.val_split:
        validation = _open(args, args.val_split, is_training=False, num_samples=args.val_num_samples, **common)
        for dataset, split in ((training, args.train_split), (validation, args.val_split)):
            # timm takes the root itself for a split that has no folder, and then trains or validates on everything
            if train and _root(dataset) is not None and os.path.samefile(_root(dataset), args.data_dir):
                raise ConfigError(f"no folder for the split {split!r} in {args.data_dir}")
        _check_same_classes(training, validation)
    if training is None and validation is None:
        raise ConfigError("argument --val-split: there is nothing to validate on")
    classes, name = _num_classes(training or validation), args.dataset or args.data_dir
    if classes is not None and classes != model_classes:
        if args.num_classes is not None or classes > model_classes:
            raise ConfigError(f"argument --num-classes: {name} has {classes} classes, the model {model_classes}")
        _logger.warning(f"{name} has {classes} classes, {args.model} {model_classes}: --num-classes {classes} fits it.")
    return training, validation


def _open(args: Arguments, split: str, **kwargs):
    """Open one split, with what is wrong with it said in one line."""
    if args.dataset in ("", "folder"):
        if not args.data_dir:
            raise ConfigError("argument --data-dir: the folder of the data set is missing")
        if not os.path.exists(args.data_dir):
            raise ConfigError(f"argument --data-dir: no such folder: {args.data_dir}")
    try:
        dataset = create_dataset(args.dataset, root=args.data_dir, split=split, **kwargs)
    except (RuntimeError, ValueError, OSError, ImportError, AssertionError) as error:
        where = f"{args.dataset or 'image folder'} in {args.data_dir}" if args.data_dir else args.dataset
        raise ConfigError(f"cannot open the split {split!r} of {where}: {one_line(error)}") from error
    if isinstance(dataset, torch.utils.data.Dataset) and hasattr(dataset, "__len__") and len(dataset) == 0:
        raise ConfigError(f"the split {split!r} of {args.dataset or args.data_dir} has no images")
    return dataset


def _root(dataset) -> str | None:
    """Return the folder that an image folder data set reads."""
    reader = getattr(dataset, "reader", None)
    return reader.root if isinstance(reader, ReaderImageFolder) else None


def _class_to_idx(dataset) -> dict[str, int] | None:
    found = getattr(dataset, "class_to_idx", None) or getattr(getattr(dataset, "reader", None), "class_to_idx", None)
    return found if isinstance(found, dict) and found else None


def _num_classes(dataset) -> int | None:
    classes = _class_to_idx(dataset)
    return max(classes.values()) + 1 if classes else None


def _check_same_classes(train, val) -> None:
    """Stop where the splits number their classes differently: every label of the second would be wrong."""
    first, second = _class_to_idx(train), _class_to_idx(val)
    if first and second and first != second:
        different = sorted(map(str, set(first) ^ set(second))) or sorted(map(str, first))
        raise ConfigError(
            f"the training split has {len(first)} classes and the validation split {len(second)}; "
            f"they differ in {', '.join(different[:5])}"
        )
