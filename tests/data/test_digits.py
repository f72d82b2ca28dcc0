import hashlib
import sys

import numpy
import pytest
import timm.data
import torch
from PIL import Image
from timm.data import create_loader

from hyena_vision.data import DataError, ImageDataset, create_dataset
from hyena_vision.data.digits import digit_images


def test_split_is_fixed_and_stratified():
    train, val = (create_dataset("sklearn/digits", split=split) for split in ("train", "validation"))
    assert (len(train), len(val)) == (1442, 355)
    positions = [{index for index, _ in dataset.samples} for dataset in (train, val)]
    assert positions[0] | positions[1] == set(range(1797)) and not positions[0] & positions[1]
    shares = numpy.bincount([target for _, target in val.samples]) / numpy.bincount(
        [target for dataset in (train, val) for _, target in dataset.samples]
    )
    assert ((shares > 0.19) & (shares <= 0.2)).all()
    content = b"".join(val[i][0].tobytes() + bytes([val[i][1]]) for i in range(len(val)))
    assert hashlib.sha256(content).hexdigest() == "26059b618b5798f07821372253c1d516da2bc6f5eef23cbd71498575f4525676"


def test_images_and_names():
    dataset = create_dataset("SKLearn/digits", split="val", input_img_mode="RGB")
    image, target = dataset[3]
    assert isinstance(image, Image.Image) and image.mode == "RGB" and image.size == (8, 8)
    assert dataset.class_to_idx == {str(n): n for n in range(10)} and target in range(10)
    assert dataset.filename(0) != dataset.filename(1)
    assert numpy.asarray(create_dataset("sklearn/digits", split="train")[0][0]).max() == 239  # 15 of 16


def test_timm_loader_serves_batches():
    dataset = create_dataset("sklearn/digits", split="train", input_img_mode="L")
    loader = create_loader(
        dataset,
        (1, 16, 16),
        32,
        is_training=True,
        mean=(0.5,),
        std=(0.5,),
        num_workers=0,
        persistent_workers=False,
        device=torch.device("cpu"),
    )
    images, targets = next(iter(loader))
    assert images.shape == (32, 1, 16, 16) and images.dtype == torch.float32 and targets.dtype == torch.int64
    assert -1 <= images.min() < images.max() <= 1


def test_unknown_names_and_splits_are_refused():
    with pytest.raises(ValueError, match="sklearn/digits"):
        create_dataset("sklearn/iris")
    with pytest.raises(ValueError, match="train and validation"):
        create_dataset("sklearn/digits", split="holdout")


def test_missing_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    digit_images.cache_clear()
    with pytest.raises(ImportError, match=r"hyena-vision\[train\]"):
        create_dataset("sklearn/digits")


def test_other_names_are_those_of_timm(tmp_path):
    (tmp_path / "val" / "a").mkdir(parents=True)
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "val" / "a" / "0.png")
    dataset = create_dataset("", root=str(tmp_path), split="validation")
    assert type(dataset) is ImageDataset and isinstance(dataset, timm.data.ImageDataset)
    image, target = dataset[0]
    assert image.getpixel((0, 0)) == (1, 2, 3) and target == 0
    (tmp_path / "val" / "a" / "0.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match="0.png"):
        dataset[0]
