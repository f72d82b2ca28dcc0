"""Pathfinder: are the two marks on the same path of dashes?"""

from functools import cache
from typing import ClassVar, NamedTuple

import numpy
from PIL import Image

from hyena_vision.data.tasks.drawn import DrawnDataset
from hyena_vision.data.tasks.paths import Dash, Paths, disc

_DISTRACTOR = 4  # dashes


class _Size(NamedTuple):
    """Parameters of one size, in pixels, which are those of the Long Range Arena."""

    padding: int
    length: int
    thickness: float
    margins: tuple[int, ...]  # one of them is drawn for each image
    distance: int
    radius: float
    continuity: float
    distractors: int
    brightness: float  # of dashes; that of marks is 1
    backtrack: bool = False


_SIZES = {
    32: _Size(1, 2, 0.5, (1,), 7, 1.5, 1.0, 5, 1.5),
    64: _Size(1, 5, 1, (1,), 12, 2.5, 1.8, 5, 0.8, backtrack=True),
    128: _Size(1, 5, 1.5, (2, 3), 20, 3, 1.8, 8, 0.9),
    256: _Size(22, 5, 2, (3,), 27, 5, 1.8, 7, 1.0),
}
_BRIGHT_DISTRACTORS = 2.0


class Pathfinder(DrawnDataset):
    """Two paths of dashes, two marks at their ends, shorter paths all around: do the marks lie on one path?

    After Linsley et al. (arXiv:1805.08315), with the parameters of the Long Range Arena; docs/tasks.md says where it
    differs. Its arguments are those of `DrawnDataset`, and these settings:

    Args:
        dashes: Dashes of each of both paths.
        cue: Whether distractors are brighter than the paths, as in the original at 32 pixels.
    """

    name = "pathfinder"
    default_size = 64
    counts: ClassVar = {"train": 160_000, "validation": 20_000, "test": 20_000}
    settings: ClassVar = {"dashes": 14, "cue": False}
    class_to_idx: ClassVar = {"apart": 0, "connected": 1}

    def __init__(self, *args, **kwargs):
        """Check what is asked for."""
        super().__init__(*args, **kwargs)
        if not 5 <= self.dashes <= 14:
            raise ValueError(f"dashes of hyena/pathfinder: expected 5 to 14, got {self.dashes}")

    def check_size(self, img_size: int) -> None:
        """Stop at other sizes than 32, 64, 128 and 256 pixels, and at a cue at other than 32."""
        if img_size not in _SIZES:
            raise ValueError(
                f"hyena/pathfinder is drawn at {', '.join(map(str, _SIZES))} pixels a side, got {img_size}"
            )
        if self.cue and img_size != 32:
            raise ValueError(f"cue of hyena/pathfinder: expected false but at 32 pixels, got true at {img_size}")

    def draw(self, rng: numpy.random.Generator, label: int) -> tuple[Image.Image, int]:
        """Return picture, (L) of (img_size, img_size), and label."""
        size = _SIZES[self.img_size]
        paths = _paths(self.img_size, int(rng.integers(len(size.margins))))
        pair = paths.pair(rng.random, self.dashes, size.distance)
        lines = list(pair)
        for _ in range(size.distractors):
            line = paths.distractor(rng.random, _DISTRACTOR, lines)
            lines += [] if line is None else [line]
        one = int(rng.integers(2))
        ends = paths.beginning(pair[one]), pair[one if label else 1 - one][-1][:2]
        return _render(paths, pair, lines[2:], ends, _BRIGHT_DISTRACTORS if self.cue else size.brightness), label


@cache
def _paths(img_size: int, margin: int) -> Paths:
    size = _SIZES[img_size]
    margin = size.margins[margin]
    return Paths(img_size, size.padding, size.length, size.thickness, margin, size.continuity, size.backtrack)


@cache
def _mark(img_size: int) -> numpy.ndarray:
    return disc(_SIZES[img_size].radius)


def _render(
    paths: Paths,
    pair: list[list[Dash]],
    distractors: list[list[Dash]],
    ends: tuple[tuple[int, int], ...],
    distractor_brightness: float,
) -> Image.Image:
    """Return the picture, as bright as 8 bits allow."""
    mark = _mark(paths.size)
    frame = max(paths.frame, len(mark))
    canvas = numpy.zeros((paths.size + 2 * frame,) * 2)

    def add(picture: numpy.ndarray, y: int, x: int, brightness: float) -> None:
        y, x = y + frame - len(picture) // 2, x + frame - len(picture) // 2
        part = canvas[y : y + len(picture), x : x + len(picture)]
        numpy.maximum(part, picture * brightness, out=part)

    groups = (pair, _SIZES[paths.size].brightness), (distractors, distractor_brightness)
    for lines, brightness in groups:
        for y, x, direction in (dash for line in lines for dash in line):
            add(paths.pictures[direction], y, x, brightness)
    for y, x in ends:
        add(mark, y, x, 1.0)
    picture = canvas[frame:-frame, frame:-frame]
    return Image.fromarray(numpy.floor(picture * (255 / picture.max()) + 0.5).astype("uint8"))
