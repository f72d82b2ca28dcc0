"""The data set factory: timm's, with scikit-learn's digits beside it and unreadable images named."""

from typing import Any

import timm.data

from hyena_vision.data.digits import Digits
from hyena_vision.data.image import load_image, unreadable


class ImageDataset(timm.data.ImageDataset):
    """timm's image data set, except that an unreadable image stops the run and is named.

    timm logs a warning and takes the next image in its place, so that a damaged data set trains in silence on
    duplicates. Images are read by `load_image`, upright where `exif` is set.
    """

    exif = True

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


def create_dataset(name: str, root: str | None = None, split: str = "validation", **kwargs: Any):
    """Create a data set by name.

    Args:
        name: `sklearn/digits`, or any name that `timm.data.create_dataset` knows; empty for a folder of images.
        root: Folder of the data set; not used by `sklearn/digits`.
        split: Name of the split.
        **kwargs: Arguments of `timm.data.create_dataset`.

    Returns:
        A data set with timm's `transform` attribute.

    Raises:
        ValueError: A `sklearn/` name other than `sklearn/digits`, or a split that it does not have.
        ImportError: scikit-learn is needed and missing.
    """
    if name.lower().startswith("sklearn/"):
        if name.lower() != "sklearn/digits":
            raise ValueError(f"unknown data set {name!r}: of scikit-learn there is only sklearn/digits")
        return Digits(split, input_img_mode=kwargs.get("input_img_mode", "L"))
    dataset = timm.data.create_dataset(name, root=root, split=split, **kwargs)
    if type(dataset) is timm.data.ImageDataset and not dataset.load_bytes:
        dataset = ImageDataset(root, reader=dataset.reader, input_img_mode=dataset.input_img_mode)
    return dataset
