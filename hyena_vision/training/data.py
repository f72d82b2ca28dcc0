"""Data sets, loaders, mixing and loss of a run, from its arguments."""

import argparse
import logging
import os
from typing import NamedTuple

import torch
from timm.data import FastCollateMixup, Mixup, create_loader
from timm.data.auto_augment import posterize
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn

from hyena_vision.data import create_dataset
from hyena_vision.training.errors import ConfigError, one_line

_logger = logging.getLogger("train")


class Loaders(NamedTuple):
    """Loaders of a run; `mixup` is for batches that the loader has not mixed itself (no prefetcher)."""

    train: torch.utils.data.DataLoader
    eval: torch.utils.data.DataLoader | None
    mixup: Mixup | None


def create_datasets(args: argparse.Namespace, data_config: dict, model_classes: int) -> tuple:
    """Create the data sets to train and to validate on; the second is None without `--val-split`.

    Args:
        args: Parsed arguments.
        data_config: timm's data configuration of the model.
        model_classes: Classes of the model's head.

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
    )
    train = _open(
        args,
        args.train_split,
        is_training=True,
        seed=args.seed,
        repeats=args.epoch_repeats,
        num_samples=args.train_num_samples,
        **common,
    )
    val = None
    if args.val_split:
        val = _open(args, args.val_split, is_training=False, num_samples=args.val_num_samples, **common)
        for dataset, split in ((train, args.train_split), (val, args.val_split)):
            # timm takes the root itself for a split that has no folder, and then trains or validates on everything
            if _root(dataset) is not None and os.path.samefile(_root(dataset), args.data_dir):
                raise ConfigError(f"no folder for the split {split!r} in {args.data_dir}")
        _check_same_classes(train, val)
    classes, name = _num_classes(train), args.dataset or args.data_dir
    if classes is not None and classes != model_classes:
        if args.num_classes is not None or classes > model_classes:
            raise ConfigError(f"argument --num-classes: {name} has {classes} classes, the model {model_classes}")
        _logger.warning(f"{name} has {classes} classes, {args.model} {model_classes}: --num-classes {classes} fits it.")
    return train, val


def create_loaders(args: argparse.Namespace, data_config: dict, datasets: tuple, device: torch.device) -> Loaders:
    """Create timm's loaders with the augmentation that the arguments ask for.

    Args:
        args: Parsed arguments.
        data_config: timm's data configuration of the model.
        datasets: Data sets to train and to validate on.
        device: Device that the batches go to.

    Raises:
        ConfigError: Fewer images than one batch.
    """
    dataset_train, dataset_eval = datasets
    prefetch = not args.no_prefetcher
    aug_repeats = args.aug_repeats
    if aug_repeats and not args.distributed:
        _logger.warning("aug_repeats is for distributed training only: going on without it.")
        aug_repeats = 0
    mixup = None
    if mixup_active(args):
        mixup = (FastCollateMixup if prefetch else Mixup)(
            mixup_alpha=args.mixup,
            cutmix_alpha=args.cutmix,
            cutmix_minmax=args.cutmix_minmax,
            prob=args.mixup_prob,
            switch_prob=args.mixup_switch_prob,
            mode=args.mixup_mode,
            label_smoothing=args.smoothing,
            num_classes=args.num_classes,
        )
    common = dict(
        input_size=data_config["input_size"],
        mean=data_config["mean"],
        std=data_config["std"],
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
        distributed=args.distributed,
        pin_memory=args.pin_mem,
        img_dtype=getattr(torch, args.model_dtype or "float32"),
        device=device,
        use_prefetcher=prefetch,
    )
    fixed_interpolation = args.no_aug or not args.train_interpolation
    loader_train = create_loader(
        dataset_train,
        batch_size=args.batch_size,
        is_training=True,
        no_aug=args.no_aug,
        re_prob=args.reprob,
        re_mode=args.remode,
        re_count=args.recount,
        train_crop_mode=args.train_crop_mode,
        scale=args.scale,
        ratio=args.ratio,
        hflip=args.hflip,
        vflip=args.vflip,
        color_jitter=args.color_jitter,
        color_jitter_prob=args.color_jitter_prob,
        grayscale_prob=args.grayscale_prob,
        gaussian_blur_prob=args.gaussian_blur_prob,
        auto_augment=args.aa,
        num_aug_repeats=aug_repeats,
        interpolation=data_config["interpolation"] if fixed_interpolation else args.train_interpolation,
        collate_fn=mixup if prefetch else None,
        worker_seeding=args.worker_seeding,
        **common,
    )
    _mend_posterize(dataset_train.transform)
    if len(loader_train) == 0:
        raise ConfigError(
            f"argument --batch-size: {args.batch_size} on each of {args.world_size} processes is more than "
            f"the {len(dataset_train)} training images"
        )
    loader_eval = dataset_eval and create_loader(
        dataset_eval,
        batch_size=args.validation_batch_size or args.batch_size,
        is_training=False,
        interpolation=data_config["interpolation"],
        crop_pct=data_config["crop_pct"],
        **common,
    )
    return Loaders(loader_train, loader_eval, None if prefetch else mixup)


def create_loss(args: argparse.Namespace) -> nn.Module:
    """Create the training loss: softmax or binary cross entropy, for soft targets where mixup makes them."""
    if args.bce_loss:
        return BinaryCrossEntropy(
            smoothing=0.0 if mixup_active(args) else args.smoothing,
            target_threshold=args.bce_target_thresh,
            sum_classes=args.bce_sum,
            pos_weight=args.bce_pos_weight,
        )
    if mixup_active(args):  # the targets are smoothed where they are mixed
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(args.smoothing) if args.smoothing else nn.CrossEntropyLoss()


def mixup_active(args: argparse.Namespace) -> bool:
    """Return whether the arguments ask for mixup or cutmix."""
    return args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None


def _open(args: argparse.Namespace, split: str, **kwargs):
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


def _mend_posterize(transform) -> None:
    """Let timm's strongest posterize (0 bits, a black image) run where Pillow 13 and later refuses it."""
    for part in getattr(transform, "transforms", []):
        policies = [getattr(part, "ops", []), *getattr(part, "policy", [])]  # random and AugMix; AutoAugment
        for op in (op for ops in policies for op in ops):
            if getattr(op, "aug_fn", None) is posterize:
                op.aug_fn = _posterize


def _posterize(image, bits_to_keep: int, **kwargs):
    return image.point(lambda value: 0) if bits_to_keep < 1 else posterize(image, bits_to_keep, **kwargs)


def _root(dataset) -> str | None:
    """Return the folder that a folder data set reads."""
    root = getattr(getattr(dataset, "reader", None), "root", None)
    return root if root is not None and os.path.isdir(root) else None


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
