import random

import pytest
import torch
from PIL import Image
from trainer import arguments

from hyena_vision.data import create_dataset
from hyena_vision.training.bad_images import BadImages
from hyena_vision.training.classes import check_head
from hyena_vision.training.pipeline import create_loaders
from hyena_vision.training.splits import create_datasets
from hyena_vision.training.task import create_loss

CONFIG = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "crop_pct": 1.0}
CONFIG |= {"crop_mode": "center"}


def loaders(*argv: str):
    args = arguments("--dataset", "sklearn/digits", "-j", "0", *argv)
    datasets = [create_dataset("sklearn/digits", split=split, input_img_mode="RGB") for split in ("train", "val")]
    return create_loaders(args, CONFIG, datasets, 10, torch.device("cpu"), BadImages())


@pytest.mark.parametrize("aa", ["rand-m10-n12-inc1", "rand-m0-n12", "original-mstd0.5", "augmix-m10", "3a"])
def test_every_strength_of_augmentation_runs(aa):
    random.seed(0)
    transform = loaders("--aa", aa).train.dataset.dataset.dataset.transform
    image = Image.linear_gradient("L").resize((32, 32)).convert("RGB")
    for _ in range(60):
        assert transform(image).shape == (3, 32, 32)


def test_head_larger_than_the_data_set_is_pointed_out(caplog):
    args = arguments("--dataset", "sklearn/digits")
    train, val, classes = create_datasets(args)
    assert (len(train), len(val), len(classes)) == (1442, 355, 10)
    check_head(args, classes, 1000)
    assert "sklearn/digits has 10 classes, resnet50 1000: --num-classes 10 fits it" in caplog.text


@pytest.mark.parametrize("prefetch", [[], ["--no-prefetcher"]])
def test_mixed_targets_are_smoothed_once(prefetch):
    made = loaders("--mixup", "0.8", "--cutmix", "1", "--smoothing", "0.1", "-b", "16", *prefetch)
    images, targets = next(iter(made.train))
    if prefetch:
        images, targets = made.mixup(images, targets)
    assert (made.mixup is None) == (not prefetch)
    assert images.shape == (16, 3, 32, 32)
    torch.testing.assert_close(targets.sum(1), torch.ones(16))
    assert targets.min().item() == pytest.approx(0.01) and targets.max().item() <= 0.9 + 0.01 + 1e-6


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        ([], "LabelSmoothingCrossEntropy"),
        (["--smoothing", "0"], "CrossEntropyLoss"),
        (["--mixup", "0.8"], "SoftTargetCrossEntropy"),
        (["--cutmix-minmax", "0.2", "0.8"], "SoftTargetCrossEntropy"),
        (["--bce-loss", "--mixup", "0.8"], "BinaryCrossEntropy"),
        (["--jsd-loss", "--aug-splits", "3"], "JsdCrossEntropy"),
    ],
)
def test_loss_follows_the_targets(argv, name):
    assert type(create_loss(arguments(*argv))).__name__ == name
