"""The data set factory: timm's, with scikit-learn's digits beside it and unreadable images named."""

from typing import Any

import timm.data
from PIL import Image

from hyena_vision.data.digits import Digits


class DataError(Exception):
    """A data set that cannot be read; the message names the file or folder."""


class ImageDataset(timm.data.ImageDataset):
    """timm's image data set, except that an unreadable image stops the run and is named.

    timm logs a warning and takes the next image in its place, so that a damaged data set trains in silence on
    duplicates.
    """

    def __getitem__(self, index: int) -> tuple:
        """Return (image, target, *features) of one sample.

        Raises:
            DataError: The image cannot be read; the message names its file.
        """
        try:
            image, target, *features = self.reader[index]
            image = Image.open(image)
            image = image.convert(self.input_img_mode) if self.input_img_mode else image.copy()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # all of Pillow's
            # Pillow's message may end in the address of a file object, which says nothing
            reason = str(error).split(" <_io")[0]
            raise DataError(f"cannot read image {self.filename(index, absolute=True)}: {reason}") from error
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
