"""Paths of dashes for Pathfinder: their geometry on whole pixels, and where they find room.

A mask is a Python integer with a bit for each pixel of the picture and of a frame around it. So "is there room for this
dash" is one shift and one `and`, whatever its angle, and gives the same on every machine.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy
from PIL import Image, ImageDraw

Random = Callable[[], float]  # from 0 to below 1

_DEGREES = 360
_ANTIALIAS = 2  # dashes are drawn so many times larger
_OCCUPIED = 217  # of 255: the original lets masks overlap where the sum of both is below 1.8
_DRAWS = 3  # for each dash of a path, before all begins anew
_PATHS, _PLACES = 5, 200  # that are tried for a distractor and for its first dash


class Dash(NamedTuple):
    """A dash of a path, by the end that points away from where the path began.

    Args:
        y: Row of that end, in pixels.
        x: Its column.
        direction: Index in the tables of `Paths`; those of a first dash are its degrees.
    """

    y: int
    x: int
    direction: int


class Paths:
    """Lays paths of dashes that keep their distance, in pictures of one size.

    After a dash comes a pivot, `margin` away; the next dash begins `margin` beyond it, in a direction that is drawn
    with the weight cos^2(min(continuity * turn, 90 degrees)) among those whose end is free. Dashes widened by `margin`
    overlap with no other but the one before.

    Args:
        size: Side of the picture, in pixels.
        padding: Pixels at its edges that stay free.
        length: Of a dash, in pixels.
        thickness: Of a dash, in pixels; a multiple of a half.
        margin: In pixels.
        continuity: The larger, the straighter.
        backtrack: Whether a dash that leads nowhere is taken back; else the paths begin anew.
    """

    def __init__(
        self, size: int, padding: int, length: int, thickness: float, margin: int, continuity: float, backtrack: bool
    ):
        """Make the tables: each direction's picture, masks, and what may follow it."""
        self.size, self.length, self.margin, self.backtrack = size, length, margin, backtrack
        self.frame = length + math.ceil(thickness) + 2 * margin  # all that a dash can reach
        self.stride = size + 2 * self.frame
        radius = length + margin
        # Ends about a pivot: one direction for each pixel of the circle, and where they lie
        ends = sorted({_polar(radius, step / radius) for step in range(math.ceil(2 * math.pi * radius))})
        angles = [math.radians(degree) for degree in range(_DEGREES)] + [math.atan2(y, x) for y, x in ends]
        drawn = [_polar(-_ANTIALIAS * length, angle) for angle in angles]
        self.pictures = [_draw(end, thickness, self.frame) for end in drawn]
        wide = [_draw(end, thickness, self.frame, margin) >= _OCCUPIED for end in drawn]
        self.wide = [self._mask(pixels) for pixels in wide]
        self.wider = [self._mask(_dilate(pixels, margin)) for pixels in wide]
        self.edge, self.wide_edge = self._edge(padding), self._edge(padding + margin)
        pivots = [_polar(margin, angle) for angle in angles[:_DEGREES]]
        for (y, x), angle in zip(ends, angles[_DEGREES:], strict=True):
            dy, dx = _polar(radius + margin, angle)
            pivots.append((dy - y, dx - x))
        self.turns = []  # (weight, bit of the end, direction, rows to it, columns to it)
        for angle, (dy, dx) in zip(angles, pivots, strict=True):
            turns = []
            for number, (y, x) in enumerate(ends, _DEGREES):
                if weight := _weight(angle - angles[number], continuity):
                    bit = 1 << (self.stride * (self.frame + dy + y) + self.frame + dx + x)
                    turns.append((weight, bit, number, dy + y, dx + x))
            self.turns.append(turns)

    def pair(self, random: Random, count: int, distance: int) -> list[list[Dash]]:
        """Lay two paths of `count` dashes, which grow in turn.

        Args:
            random: Numbers from 0 to below 1.
            count: Dashes of a path.
            distance: Between the beginnings of both, in pixels; the first lies twice as far from the edges.
        """
        inside = self.size - 4 * distance
        while True:
            y, x = (2 * distance + int(inside * random()) for _ in "yx")
            dy, dx = _polar(distance, math.radians(int(_DEGREES * random())))
            paths = [[self._first(random, y, x)], [self._first(random, y + dy, x + dx)]]
            one, other = (self._at(self.wide, path[0]) for path in paths)
            if not (one & other or (one | other) & self.edge):
                if self._grow(random, paths, count, self.edge, self.wide_edge):
                    return paths

    def distractor(self, random: Random, count: int, others: list[list[Dash]]) -> list[Dash] | None:
        """Lay one path of `count` dashes in the room that others leave; None where none was found."""
        taken, near = self.edge, self.wide_edge
        for dash in (dash for path in others for dash in path):
            taken |= self._at(self.wide, dash)
            near |= self._at(self.wider, dash)
        for _ in range(_PATHS):
            dash = self._first(random, 0, 0)
            for _ in range(_PLACES):
                dash = Dash(int(self.size * random()), int(self.size * random()), dash.direction)
                if not self._at(self.wide, dash) & taken:
                    path = [dash]
                    if self._grow(random, [path], count, taken, near):
                        return path
                    break
        return None

    def beginning(self, path: list[Dash]) -> tuple[int, int]:
        """Return row and column of the first end of a path."""
        y, x, degree = path[0]
        dy, dx = _polar(self.length, math.radians(degree))
        return y - dy, x - dx

    def _first(self, random: Random, y: int, x: int) -> Dash:
        """Return a first dash that begins at a place."""
        degree = int(_DEGREES * random())
        dy, dx = _polar(self.length, math.radians(degree))
        return Dash(y + dy, x + dx, degree)

    def _grow(self, random: Random, paths: list[list[Dash]], count: int, taken: int, near: int) -> bool:
        """Add dashes to each path in turn until each has `count`.

        Args:
            random: Numbers from 0 to below 1.
            paths: Their first dashes.
            count: Dashes of a path.
            taken: Mask of where no widened dash may lie.
            near: Mask of where no dash may end.

        Returns:
            Whether all found room; else the paths are as they were.
        """
        draws = _DRAWS * count * len(paths)

        def extend(left: int, taken: int, near: int) -> bool:
            # The masks lack the newest dash of each path, which the next dash of the same path may come close to
            nonlocal draws
            if not left:
                return True
            path = paths[-left % len(paths)]
            y, x, direction = newest = path[-1]
            room, ends = taken, near
            for other in paths:
                if other is not path:
                    room |= self._at(self.wide, other[-1])
                    ends |= self._at(self.wider, other[-1])
            ends >>= self.stride * y + x
            turns = [turn for turn in self.turns[direction] if not ends & turn[1]]
            total = sum([turn[0] for turn in turns])
            for _ in range(min(3, len(turns))):
                draws -= 1
                if draws < 0:
                    return False
                place, number = total * random(), -1
                while place >= 0:
                    number += 1
                    place -= turns[number][0]
                weight, _, direction, dy, dx = turns.pop(number)
                total -= weight
                dash = Dash(y + dy, x + dx, direction)
                if not self._at(self.wide, dash) & room:
                    path.append(dash)
                    if extend(left - 1, taken | self._at(self.wide, newest), near | self._at(self.wider, newest)):
                        return True
                    path.pop()
            draws = draws if self.backtrack else 0
            return False

        return extend((count - 1) * len(paths), taken, near)

    def _at(self, masks: list[int], dash: Dash) -> int:
        """Return the mask of a dash in its place."""
        y, x, direction = dash
        return masks[direction] << (self.stride * y + x)

    def _mask(self, pixels: numpy.ndarray) -> int:
        """Return pixels, (H, W) bool, as a number with bit `stride * y + x` for each."""
        rows = numpy.zeros((len(pixels), self.stride), dtype=bool)
        rows[:, : pixels.shape[1]] = pixels
        return int.from_bytes(numpy.packbits(rows.ravel(), bitorder="little").tobytes(), "little")

    def _edge(self, width: int) -> int:
        """Return the mask of the frame and of `width` pixels at each edge of the picture."""
        pixels = numpy.ones((self.stride, self.stride), dtype=bool)
        inner = slice(self.frame + width, self.frame + self.size - width)
        pixels[inner, inner] = False
        return self._mask(pixels)


def disc(radius: float) -> numpy.ndarray:
    """Return the picture of a disc, (side, side) uint8 with the centre in its middle pixel."""
    reach = math.ceil(radius) + 1
    place = numpy.arange(-_ANTIALIAS * reach, _ANTIALIAS * (reach + 1))
    inside = place[:, None] ** 2 + place**2 <= (_ANTIALIAS * radius) ** 2
    return _shrink(inside, 2 * reach + 1)


def _polar(length: float, angle: float) -> tuple[int, int]:
    """Return rows and columns to go; the last digits of a sine, in which machines differ, are no matter."""
    y, x = (math.floor(round(length * part, 9) + 0.5) for part in (math.sin(angle), math.cos(angle)))
    return y, x


def _weight(turn: float, continuity: float) -> int:
    turn = abs(turn) % (2 * math.pi)
    turn = min(turn, 2 * math.pi - turn)
    return round(2**16 * math.cos(min(continuity * turn, math.pi / 2)) ** 2)


def _draw(end: tuple[int, int], thickness: float, reach: int, margin: int = 0) -> numpy.ndarray:
    """Return the picture of a dash from its middle to `end` (in antialiased pixels), widened by `margin`."""
    middle = _ANTIALIAS * reach
    large = Image.new("1", (2 * middle + 1, 2 * middle + 1))
    line = [(middle, middle), (middle + end[1], middle + end[0])]
    ImageDraw.Draw(large).line(line, fill=1, width=round(_ANTIALIAS * thickness))
    return _shrink(_dilate(numpy.asarray(large), _ANTIALIAS * margin), 2 * reach + 1)


def _shrink(pixels: numpy.ndarray, side: int) -> numpy.ndarray:
    image = Image.fromarray(pixels.astype("uint8") * 255)
    return numpy.asarray(image.resize((side, side), Image.Resampling.LANCZOS))


def _dilate(pixels: numpy.ndarray, radius: int) -> numpy.ndarray:
    """Return pixels, (H, W) bool, widened by a disc; those at the edges must be free."""
    sideways = [pixels]
    for x in range(1, radius + 1):
        sideways.append(sideways[-1] | numpy.roll(pixels, x, 1) | numpy.roll(pixels, -x, 1))
    result = numpy.zeros_like(pixels)
    for y in range(-radius, radius + 1):
        result |= numpy.roll(sideways[math.isqrt(radius**2 - y**2)], y, 0)
    return result
