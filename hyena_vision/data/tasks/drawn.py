"""What the generated tasks share: data sets whose pictures are drawn when they are asked for."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy
import torch
from PIL import Image

SPLITS = ("train", "validation", "test")
_SYNONYMS = {"training": "train", "val": "validation", "valid": "validation", "eval": "validation"}
_PICTURE, _LABELS = range(2)  # what random numbers are for


class DrawnDataset(torch.utils.data.Dataset, ABC):
    """Pictures that follow from seed, split and index alone, drawn at the size that the model takes.

    So the order, the number of workers and other images change nothing. Each class has the same number of images: one
    in each run of as many images as there are classes. A subclass draws, and says what it can be asked for.

    Args:
        split: `train`, `validation` or `test` (or one of timm's synonyms).
        img_size: Side of the pictures in pixels; None for `default_size`.
        num_samples: Images of the split; None for `counts`.
        input_img_mode: PIL mode of the images.
        transform: Called with each image; timm's loaders set it.
        **settings: Those of `settings` that are not their default.

    Raises:
        ValueError: A split, size or setting that there is not.
    """

    name: ClassVar[str]
    default_size: ClassVar[int]
    counts: ClassVar[dict[str, int]]
    settings: ClassVar[dict[str, Any]] = {}  # with their defaults; `seed` is one of every task
    class_to_idx: dict[str, int] | None = None

    def __init__(
        self,
        split: str = "train",
        img_size: int | None = None,
        num_samples: int | None = None,
        input_img_mode: str | None = None,
        transform: Callable | None = None,
        **settings: Any,
    ):
        """Check what is asked for; nothing is drawn yet."""
        self.split = _SYNONYMS.get(split, split)
        if self.split not in SPLITS:
            raise ValueError(f"hyena/{self.name} has the splits {', '.join(SPLITS)}, got {split!r}")
        defaults = {"seed": 0, **self.settings}
        for key, value in settings.items():
            if key not in defaults:
                raise ValueError(f"hyena/{self.name} has the settings {', '.join(defaults)}, got {key!r}")
            if type(value) is not (kind := type(defaults[key])):
                raise ValueError(f"{key} of hyena/{self.name}: expected {_KINDS[kind]}, got {value!r}")
        for key, value in (defaults | settings).items():
            setattr(self, key, value)
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed of hyena/{self.name}: expected 0 to 2147483647, got {self.seed}")
        self.num_samples = self.counts[self.split] if num_samples is None else num_samples
        self.input_img_mode = input_img_mode
        self.transform = transform
        self.target_transform: Callable | None = None
        self.img_size, self._checked = self.default_size, False  # the size of a model may follow
        if img_size is not None:
            self.set_img_size(img_size)

    @classmethod
    def target_channels(cls, settings: dict[str, Any]) -> int | None:
        """Return the channels of targets that are pictures, under settings as of the constructor; None for classes."""
        return None

    def set_img_size(self, img_size: int) -> None:
        """Draw pictures of another size from now on.

        Args:
            img_size: Side in pixels.

        Raises:
            ValueError: The task is not drawn at that size, or not with its settings.
        """
        self.check_size(img_size)
        self.img_size, self._checked = img_size, True

    @abstractmethod
    def check_size(self, img_size: int) -> None:
        """Stop at a size that there is not, or that the settings do not go with.

        Raises:
            ValueError: Such a size.
        """

    @abstractmethod
    def draw(self, rng: numpy.random.Generator, label: int) -> tuple[Image.Image, Any]:
        """Return picture and target.

        Args:
            rng: Random numbers of this image.
            label: Class that it should have.
        """

    def __getitem__(self, index: int) -> tuple:
        """Return (image, target) of one sample."""
        if not 0 <= index < self.num_samples:
            raise IndexError(f"expected 0 to {self.num_samples - 1}, got {index}")
        if not self._checked:
            self.set_img_size(self.img_size)
        image, target = self.draw(self._generator(_PICTURE, index), self._label(index))
        image = image.convert(self.input_img_mode or image.mode)
        target = target if self.target_transform is None else self.target_transform(target)
        return (image if self.transform is None else self.transform(image)), target

    def __len__(self) -> int:
        """Return the number of images of the split."""
        return self.num_samples

    def filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        """Return a name of one sample."""
        return f"{index:06d}" if basename else f"{self.name}/{self.split}/{index:06d}"

    def _label(self, index: int) -> int:
        classes = len(self.class_to_idx or "1")
        order = self._generator(_LABELS, index // classes).permutation(classes)
        return int(order[index % classes])

    def _generator(self, *purpose: int) -> numpy.random.Generator:
        words = self.seed, SPLITS.index(self.split), *purpose  # always four: zeros behind others would not count
        return numpy.random.Generator(numpy.random.PCG64(numpy.random.SeedSequence(words)))


_KINDS = {bool: "true or false", int: "an integer", str: "a name"}
