"""From data sets to batches: timm's loaders, the augmentation and mixing of the arguments, sizes by a schedule."""

import logging
import math
from typing import NamedTuple

import torch
from timm.data import AugMixDataset, FastCollateMixup, Mixup, create_loader
from timm.data.auto_augment import posterize
from timm.data.loader import PrefetchLoader, fast_collate
from timm.utils import is_primary

from hyena_vision.data import DrawnDataset, target_channels
from hyena_vision.training.arguments import Arguments
from hyena_vision.training.bad_images import BadImages
from hyena_vision.training.balance import BalancedSampler, labels_of
from hyena_vision.training.errors import ConfigError, one_line
from hyena_vision.training.seeded_loader import TrainLoader, name_bad_images

_logger = logging.getLogger("train")


class Loaders(NamedTuple):
    """Loaders of a run.

    Args:
        train: Training batches.
        eval: Validation batches, or None.
        mixup: Mixing of batches that the loader has not mixed itself (no prefetcher), or None.
        batch_size: Images in a training batch; their mean under a schedule of sizes.
    """

    train: TrainLoader
    eval: torch.utils.data.DataLoader | None
    mixup: Mixup | None
    batch_size: float


def create_loaders(
    args: Arguments,
    data_config: dict,
    datasets: tuple,
    num_classes: int,
    device: torch.device,
    bad_images: BadImages,
) -> Loaders:
    """Create timm's loaders with the augmentation that the arguments ask for.

    Args:
        args: Arguments of the run.
        data_config: timm's data configuration of the model.
        datasets: Data sets to train and to validate on.
        num_classes: Classes of the model.
        device: Device that the batches go to.
        bad_images: Where unreadable images are reported under `--on-bad-image skip`.

    Raises:
        ConfigError: Fewer images than one batch, a schedule of sizes that timm refuses, or a task that is not drawn at
            the size of the model, or would be cropped.
    """
    dataset_train, dataset_eval = datasets[:2]
    if isinstance(dataset_train, DrawnDataset):
        _draw_at_size(args, data_config, dataset_train)
        if not args.no_aug:
            raise ConfigError(
                f"argument --no-aug: expected with {args.dataset}, whose labels a crop or flip would change"
            )
        if args.train_img_sizes:
            raise ConfigError(
                f"argument --train-img-sizes: expected none with {args.dataset}, which is drawn at --img-size, "
                f"got {args.train_img_sizes}"
            )
    prefetch, pictures = not args.no_prefetcher, target_channels(args.dataset) is not None
    if args.aug_splits > 1:
        dataset_train = AugMixDataset(dataset_train, num_splits=args.aug_splits)
    mixup = _create_mixup(args, num_classes) if mixup_active(args) else None
    fixed_interpolation = args.no_aug or not args.train_interpolation
    try:
        loader = create_loader(
            dataset_train,
            input_size=data_config["input_size"],
            batch_size=args.batch_size,
            num_workers=args.workers,
            is_training=True,
            no_aug=args.no_aug,
            re_prob=args.reprob,
            re_mode=args.remode,
            re_count=args.recount,
            re_split=args.resplit,
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
            num_aug_repeats=_aug_repeats(args),
            num_aug_splits=args.aug_splits,
            interpolation=data_config["interpolation"] if fixed_interpolation else args.train_interpolation,
            collate_fn=(collate_pictures if pictures else mixup) if prefetch else None,
            **_size_schedule(args),
            **_common(args, data_config, device),
        )
    except (ValueError, TypeError) as error:
        if args.train_img_sizes is None:
            raise
        raise ConfigError(f"argument --train-img-sizes: {one_line(error)}") from error
    for dataset in (dataset_train, loader.dataset):
        _mend_posterize(dataset)
    if args.balanced_sampler:
        labels = labels_of(datasets[0], "balanced-sampler")
        plain = loader.loader if isinstance(loader, PrefetchLoader) else loader
        plain.batch_sampler.sampler = BalancedSampler(labels, args.seed, args.rank, args.world_size)
    if len(loader) == 0:
        raise ConfigError(
            f"argument --batch-size: {args.batch_size} on each of {args.world_size} processes is more than "
            f"the {len(dataset_train)} training images"
        )
    _say_what_is_dropped(args, dataset_train, loader)
    skip = args.on_bad_image == "skip"
    train = TrainLoader(loader, args.seed, args.rank, bad_images if skip else None)
    sampler = getattr(train.batches, "batch_sampler", None)
    batch_size = getattr(sampler, "average_batch_size", float(args.batch_size))
    loader_eval = (
        None if dataset_eval is None else create_eval_loader(args, data_config, dataset_eval, device, bad_images)
    )
    return Loaders(train, loader_eval, None if prefetch else mixup, batch_size)


def _say_what_is_dropped(args: Arguments, dataset, loader) -> None:
    """Tell of the images that no batch of an epoch holds, as the last batch would not be whole."""
    if isinstance(dataset, torch.utils.data.IterableDataset) or args.train_img_sizes or args.aug_repeats:
        return
    if args.balanced_sampler:  # draws any number of times
        return
    dropped = math.ceil(len(dataset) / args.world_size) % args.batch_size * args.world_size
    if dropped and is_primary(args):
        _logger.info(
            f"An epoch is {len(loader)} batches of {args.batch_size * args.world_size}: {dropped} of the "
            f"{len(dataset)} training images are left out, others each time."
        )


def create_eval_loader(
    args: Arguments, data_config: dict, dataset, device: torch.device, bad_images: BadImages
) -> torch.utils.data.DataLoader:
    """Create timm's loader for validation; its arguments are those of `create_loaders`."""
    if isinstance(dataset, DrawnDataset):
        _draw_at_size(args, data_config, dataset)
    iterable = isinstance(dataset, torch.utils.data.IterableDataset)
    prefetch_pictures = target_channels(args.dataset) is not None and not args.no_prefetcher
    loader = create_loader(
        dataset,
        input_size=data_config["input_size"],
        batch_size=args.validation_batch_size or args.batch_size,
        is_training=False,
        interpolation=data_config["interpolation"],
        crop_pct=data_config["crop_pct"],
        crop_mode=data_config["crop_mode"],
        # Each worker of an iterable data set may repeat images to make the processes even: timm takes two at most
        num_workers=min(2, args.workers) if args.distributed and iterable else args.workers,
        collate_fn=collate_pictures if prefetch_pictures else None,
        **_common(args, data_config, device),
    )
    return name_bad_images(loader, bad_images if args.on_bad_image == "skip" else None)


def collate_pictures(batch: list[tuple]) -> tuple[torch.Tensor, torch.Tensor]:
    """Put images and targets that are pictures into batches; timm's own function takes targets for class indices."""
    images, _ = fast_collate([(image, 0) for image, _ in batch])
    return images, torch.stack([target for _, target in batch])


def _draw_at_size(args: Arguments, data_config: dict, dataset: DrawnDataset) -> None:
    """Let a task be drawn at the size of the model, so that nothing has to be scaled or cut off."""
    _, height, width = data_config["input_size"]
    if height != width:
        raise ConfigError(f"argument --input-size: {args.dataset} has square pictures, got {height} x {width}")
    try:
        dataset.set_img_size(height)
    except ValueError as error:
        raise ConfigError(f"argument --img-size: {one_line(error)}") from error
    if data_config["crop_pct"] != 1:
        raise ConfigError(
            f"argument --crop-pct: {args.dataset} needs whole pictures: expected 1, got {data_config['crop_pct']}"
        )


def _common(args: Arguments, data_config: dict, device: torch.device) -> dict:
    """Return the arguments of timm's loader that training and validation share."""
    return dict(
        mean=data_config["mean"],
        std=data_config["std"],
        persistent_workers=args.workers > 0,
        distributed=args.distributed,
        pin_memory=args.pin_mem,
        img_dtype=getattr(torch, args.model_dtype or "float32"),
        device=device,
        use_prefetcher=not args.no_prefetcher,
    )


def mixup_active(args: Arguments) -> bool:
    """Return whether the arguments ask for mixup or cutmix."""
    return args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None


def _create_mixup(args: Arguments, num_classes: int) -> Mixup:
    return (Mixup if args.no_prefetcher else FastCollateMixup)(
        mixup_alpha=args.mixup,
        cutmix_alpha=args.cutmix,
        cutmix_minmax=args.cutmix_minmax,
        prob=args.mixup_prob,
        switch_prob=args.mixup_switch_prob,
        mode=args.mixup_mode,
        label_smoothing=args.smoothing,
        num_classes=num_classes,
    )


def _aug_repeats(args: Arguments) -> float:
    if args.aug_repeats and not args.distributed:
        _logger.warning("aug_repeats is for distributed training only: going on without it.")
        return 0
    return args.aug_repeats


def _size_schedule(args: Arguments) -> dict:
    """Return the arguments of timm's loader that change the image size from batch to batch."""
    if args.train_img_sizes is None:
        return {}
    return dict(
        input_size_choices=args.train_img_sizes,
        batch_size_choices=args.train_batch_sizes,
        batch_choice_weights=args.train_size_probs,
        batch_choice_seed=args.seed,
        batch_choice_schedule=args.train_size_schedule,
        batch_schedule_epochs=args.epochs if args.train_size_schedule == "progressive" else None,
        batch_schedule_spread=args.train_size_schedule_spread,
        batch_schedule_random_mix=args.train_size_random_mix,
        num_batches=args.train_batches_per_epoch,
    )


def _mend_posterize(dataset) -> None:
    """Let timm's strongest posterize (0 bits, a black image) run where Pillow 13 and later refuses it."""
    transforms = [getattr(dataset, name, None) for name in ("transform", "augmentation")]
    if isinstance(sizes := getattr(dataset, "transforms", None), tuple):  # one for each scheduled size
        transforms += sizes
    for part in (part for transform in transforms for part in getattr(transform, "transforms", [])):
        policies = [getattr(part, "ops", []), *getattr(part, "policy", [])]  # random and AugMix; AutoAugment
        for op in (op for ops in policies for op in ops):
            if getattr(op, "aug_fn", None) is posterize:
                op.aug_fn = _posterize


def _posterize(image, bits_to_keep: int, **kwargs):
    return image.point(lambda value: 0) if bits_to_keep < 1 else posterize(image, bits_to_keep, **kwargs)
