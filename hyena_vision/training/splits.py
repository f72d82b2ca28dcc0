"""The splits of a data set that a run trains and validates on."""

import logging
import os
from typing import Any, NamedTuple

import torch
from timm.utils import is_primary

from hyena_vision.data import IMAGE_MODES, DataError, FolderReader, create_dataset, find_split
from hyena_vision.data.folder import SPLIT_NAMES
from hyena_vision.training.arguments import Arguments
from hyena_vision.training.classes import NOTHING_KNOWN, Classes, Known, classes_of, listed, match_labels
from hyena_vision.training.errors import ConfigError, UserError, one_line
from hyena_vision.training.model import in_chans
from hyena_vision.training.predictions import read_predictions

_logger = logging.getLogger("train")

_STREAMS = ("hfids/", "tfds/", "wds/")


class Datasets(NamedTuple):
    """The data of a run.

    Args:
        train: Data set to train on, or None.
        eval: Data set to validate on, or None.
        class_to_idx: Classes of the labels, or None where they have no names.
    """

    train: Any
    eval: Any
    class_to_idx: Classes | None


def create_datasets(args: Arguments, known: Known = NOTHING_KNOWN, train: bool = True) -> Datasets:
    """Create the data sets to train and to validate on.

    Args:
        args: Arguments of the run.
        known: Classes of the weights that it begins with, which labels are matched to by name.
        train: Whether to open what is trained on.

    Raises:
        ConfigError: A split that does not exist or is empty, images that have no class, other classes than those that
            are known, classes without images, or a flag that does not fit the data.
    """
    _check(args, train)
    held_out = _folder_to_divide(args, train)
    if held_out is not None and not train and args.trained.get("val_fraction"):
        for name in ("val_fraction", "seed"):
            if (before := args.trained.get(name)) != (now := getattr(args, name)):
                raise ConfigError(
                    f"argument --{name.replace('_', '-')}: expected {before}, as in the run of {known.source}, "
                    f"got {now}: images that it was trained on would be among those held out"
                )
    training = _open(args, "train", held_out) if train else None
    validation = _open(args, "val", held_out) if args.val_split else None
    if training is None and validation is None:
        raise ConfigError("argument --val-split: there is nothing to validate on")
    if isinstance(reader := getattr(training, "reader", None), FolderReader) and reader.missing:
        raise ConfigError(
            f"argument --class-map: {args.class_map} has classes without images in {reader.root}: "
            f"{listed(reader.missing)}"
        )
    classes = classes_of(training or validation)
    if training is not None and classes is not None and len(classes) == 1:
        folder = getattr(reader, "root", args.data_dir)
        raise ConfigError(
            f"expected two classes or more, got only {listed(classes)} in {folder}; class folders that lie in it are "
            f"read with --data-dir {os.path.join(folder or '', *classes)}"
        )
    if args.unlabelled:
        classes = known.classes
        if validation is not None:
            validation.target_transform = _no_label
    elif classes is not None:
        source = "the training split"
        if known.classes and (known.fixed or set(known.classes) == set(classes)):
            classes, source = known.classes, known.source
            if training is not None:
                match_labels(args, training, "the training split", classes, source, all_of_them=True)
        if validation is not None:
            match_labels(args, validation, "the validation split", classes, source, all_of_them=False)
        if known.source and not known.classes and known.fixed and is_primary(args):
            _logger.warning(f"{known.source} does not name its classes: labels go by their order, {listed(classes)}.")
    if is_primary(args):
        _warn_of_overlap(training, validation)
        _warn_of_splits_as_classes(training)
        if held_out is not None and known.source:
            _warn_of_moved_images(args, known.source, validation)
    return Datasets(training, validation, classes)


def _check(args: Arguments, train: bool) -> None:
    """Stop on arguments that do not fit together before any data are read."""
    if args.dataset.lower() in ("", "folder"):
        if not args.data_dir:
            raise ConfigError("argument --data-dir: the folder of the data set is missing")
        if not os.path.exists(args.data_dir):
            raise ConfigError(f"argument --data-dir: no such folder: {args.data_dir}")
    if args.dataset.lower() in ("", "folder") and os.path.isfile(args.data_dir):
        for flag in ("train", "val") if train else ("val",):
            split = getattr(args, f"{flag}_split")
            if split not in {*SPLIT_NAMES, ".", ""}:
                raise ConfigError(f"argument --{flag}-split: {args.data_dir} is one split, it has no {split!r}")
    if not train:
        return
    if args.val_fraction:
        if not _is_folder(args):
            raise ConfigError(
                f"argument --val-fraction: divides folders of images, got {args.dataset or args.data_dir}; "
                "--val-fraction 0 takes its own splits"
            )
        if not args.val_split or "[" in args.train_split + args.val_split:
            raise ConfigError(
                f"argument --val-fraction: expected no slices and no empty split with it, got --train-split "
                f"{args.train_split!r} --val-split {args.val_split!r}; --val-fraction 0 takes these"
            )
    if args.unlabelled and not _is_folder(args):
        raise ConfigError(
            f"argument --unlabelled: reads folders of images, got {args.dataset or args.data_dir}, which has labels"
        )
    channels = in_chans(args)
    for flag in ("aa", "grayscale_prob"):
        if channels not in (1, 3) and getattr(args, flag):
            flag = flag.replace("_", "-")
            raise ConfigError(f"argument --{flag}: works on images of 1 or 3 channels, the model takes {channels}")
    if not args.train_split:
        raise ConfigError("argument --train-split: expected the name of a split, got ''")
    if args.val_split and args.dataset.lower() in ("", "folder") and os.path.isfile(args.data_dir or ""):
        # timm reads all of it for either split
        raise ConfigError(f"argument --val-split: {args.data_dir} is one split; train on it with --val-split ''")
    if not args.dataset.lower().startswith(_STREAMS):
        counts = () if args.dataset.lower().startswith("hyena/") else ("train_num_samples", "val_num_samples")
        for flag in (*counts, "epoch_repeats"):
            if value := getattr(args, flag):
                raise ConfigError(
                    f"argument --{flag.replace('_', '-')}: has no effect on {args.dataset or 'a folder of images'}, "
                    f"got {value}; it is for streams ({', '.join(_STREAMS)})"
                )


def _no_label(target: int) -> int:
    """Return what stands for no label in validation."""
    return -1


def _is_folder(args: Arguments) -> bool:
    return args.dataset.lower() in ("", "folder") and os.path.isdir(args.data_dir or "")


def _folder_to_divide(args: Arguments, train: bool) -> str | None:
    """Return the folder that `--val-fraction` divides, or None.

    `--eval` has the flag from the run that it validates, and a validation folder of its own is not divided.
    """
    root = args.data_dir
    if not args.val_fraction or not _is_folder(args) or "[" in args.val_split:
        return None
    validation, training = find_split(root, args.val_split), find_split(root, args.train_split)
    if validation is not None and validation != training:
        if train:
            raise ConfigError(
                f"argument --val-fraction: got {args.val_fraction}, and there is a validation split already: "
                f"{validation}; --val-fraction 0 takes that"
            )
        return None
    if not train and args.val_split not in SPLIT_NAMES:
        raise _no_split(args, args.val_split)
    if training is None:
        splits = [name for name in _folders(root) if name in SPLIT_NAMES]
        if splits or args.train_split not in SPLIT_NAMES:
            raise _no_split(args, args.train_split)
    return training or root


def _open(args: Arguments, kind: str, divided: str | None):
    """Open the split `train` or `val`, with what is wrong with it said in one line."""
    is_training, root = kind == "train", args.data_dir
    split = args.train_split if is_training else args.val_split
    if divided is not None:
        root, split = divided, "."
    elif _is_folder(args) and find_split(root, split.partition("[")[0]) is None:
        raise _no_split(args, split)
    own = dict(seed=args.seed, repeats=args.epoch_repeats) if is_training else {}
    try:
        dataset = create_dataset(
            args.dataset,
            root=root,
            split=split,
            is_training=is_training,
            num_samples=args.train_num_samples if is_training else args.val_num_samples,
            class_map=args.class_map,
            download=args.dataset_download,
            batch_size=args.batch_size,
            input_img_mode=args.input_img_mode or IMAGE_MODES[in_chans(args)],
            input_key=args.input_key,
            target_key=args.target_key,
            trust_remote_code=args.dataset_trust_remote_code,
            exif=not args.no_exif,
            labelled=not args.unlabelled,
            **own,
        )
    except (DataError, RuntimeError, ValueError, OSError, ImportError, AssertionError) as error:
        where = f"{args.dataset or 'image folder'} in {root}" if root else args.dataset
        raise ConfigError(f"cannot open the split {split!r} of {where}: {one_line(error)}") from error
    part = ""
    if divided is not None:
        dataset.reader.hold_out(args.val_fraction, args.seed, held_out=not is_training)
        part = f"{'all but ' if is_training else ''}{args.val_fraction} of "
    if isinstance(dataset, torch.utils.data.Dataset) and hasattr(dataset, "__len__") and len(dataset) == 0:
        raise ConfigError(f"the split {split!r} of {args.dataset or root} has no images")
    if is_primary(args):
        verb = "Training" if is_training else "Validating"
        _logger.info(f"{verb} on {part}{_described(dataset, args.dataset, split)}.")
    return dataset


def _no_split(args: Arguments, split: str) -> ConfigError:
    flag = "train" if split == args.train_split else "val"
    folders = _folders(args.data_dir)
    return ConfigError(
        f"argument --{flag}-split: no folder for the split {split!r} in {args.data_dir}, which has "
        f"{listed(folders) if folders else 'no folders'}; if those are classes, --val-fraction 0.2 divides them, and "
        f"--train-split . --val-split '' trains on all of them"
        + (" (to validate on all: --val-split .)" if args.eval else "")
    )


def _folders(root: str) -> list[str]:
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _described(dataset: Any, name: str, split: str) -> str:
    """Return what was found: images, classes with their counts, and what was left out."""
    reader, classes = getattr(dataset, "reader", None), classes_of(dataset)
    images = f"{len(dataset)} images" if not isinstance(dataset, torch.utils.data.IterableDataset) else "a stream"
    if not isinstance(reader, FolderReader):
        return f"{name or 'a tar file'} {split}: {images}" + (f" of {len(classes)} classes" if classes else "")
    counts = reader.counts()
    part = split.partition("[")
    if not counts:
        return f"{reader.root}{''.join(part[1:])}: {images} without classes{reader.left_out()}"
    shown = [f"{each} {count}" for each, count in counts.items()]
    if len(shown) > 10:
        fewest, most = (choose(counts, key=counts.get) for choose in (min, max))
        span = f", from {fewest} {counts[fewest]} to {most} {counts[most]}" if counts[fewest] < counts[most] else ""
        shown = [*shown[:5], f"{len(shown) - 5} more{span or f' of {counts[most]} each'}"]
    return (
        f"{reader.root}{''.join(part[1:])}: {images} of {len(counts)} classes ({', '.join(shown)}){reader.left_out()}"
    )


def _warn_of_splits_as_classes(training: Any) -> None:
    """Warn where all classes have the same folders in them: they may be splits, such as `Training` and `Testing`."""
    reader = getattr(training, "reader", None)
    if not isinstance(reader, FolderReader) or not reader.class_to_idx:
        return
    inside: dict[str, set[str]] = {}
    for path, _ in reader.samples:
        first, *folders, _ = os.path.relpath(path, reader.root).split(os.sep)
        if not folders:
            return
        inside.setdefault(first, set()).add(folders[0])
    folders = next(iter(inside.values()))
    if len(folders) > 1 and all(other == folders for other in inside.values()):
        _logger.warning(
            f"Each of {listed(inside)} has the same folders: {listed(sorted(folders))}. If these are the classes, name "
            f"the splits: --train-split {max(inside)} --val-split {min(inside)} --val-fraction 0."
        )


def _warn_of_moved_images(args: Arguments, checkpoint: str, validation: Any) -> None:
    """Warn where `--val-fraction` holds out others than in the run of a checkpoint, as images were added since.

    Args:
        args: Arguments of the run.
        checkpoint: Its path; the run's predictions.csv lies beside it, unless it was copied alone.
        validation: What is held out now.
    """
    path = os.path.join(os.path.dirname(checkpoint), "predictions.csv")
    try:
        before = {row.file for row in read_predictions(path)}
    except UserError:  # missing, or a file of another program
        return
    files = set(validation.filenames())
    others = files - before if args.on_bad_image == "stop" else set()  # what was skipped is in no prediction
    if 0 < len(others) < len(files):  # else the same, or other data
        _logger.warning(
            f"--val-fraction {args.val_fraction} holds out {len(others)} images of {len(files)} that were not held out "
            f"when {path} was written: the data have changed, and the model may have been trained on them."
        )


def _warn_of_overlap(training: Any, validation: Any) -> None:
    """Warn of images that are both trained and validated on."""
    readers = [getattr(dataset, "reader", None) for dataset in (training, validation)]
    if not all(isinstance(reader, FolderReader) for reader in readers):
        return
    first, second = (os.path.join(os.path.abspath(reader.root), "") for reader in readers)
    if first.startswith(second) or second.startswith(first):
        trained, validated = ({os.path.abspath(path) for path, _ in reader.samples} for reader in readers)
        if both := len(trained & validated):
            _logger.warning(f"{both} of the {len(validated)} images to validate on are trained on as well.")
