import hashlib
import math
from itertools import combinations

import numpy
import pytest
from scipy import ndimage

from hyena_vision.data import create_dataset
from hyena_vision.data.tasks import pathfinder

# Of ten images; the same with NumPy 1.26 to 2.4 and Pillow 10 to 13
GOLDEN = {
    (32, ""): "3c6a0a6caac4eea7b19384983d9596918bafa8872be88c08aac90786f9cfb775",
    (32, ":cue=true"): "9104c85a4512078329dde120165a7bfea309e23c36c87a79e4f2d1826942b314",
    (64, ""): "4e614b6990b0d1c8e3a2fec37c67624cbf1b14ccaa50b05af247c0e23b4f2089",
    (64, ":dashes=9,seed=1"): "3df78d81622af736cb8a57637cff20eaed061e1d0a1c5da86e0a2a4bd7f1685e",
    (128, ""): "cc2ae77d759dc8d834999b62b9a16c1fcf1e6ff06858bd377b43d3d5a5c2476b",
    (256, ""): "499909e06be35ee94e3b0bb41b4e969d6f84764897a41eecdefeb94fa05e79e7",
}


@pytest.mark.parametrize(("size", "settings"), GOLDEN)
def test_same_bytes_on_all_machines(size, settings):
    dataset = create_dataset(f"hyena/pathfinder{settings}", split="val", img_size=size)
    content = b"".join(image.tobytes() + bytes([label]) for image, label in (dataset[i] for i in range(10)))
    assert hashlib.sha256(content).hexdigest() == GOLDEN[size, settings]


def connected(picture: numpy.ndarray, margin: float, radius: int, length: int = 5, dashes: int = 14) -> bool:
    """Follow dashes from one mark: does a chain of the right length end at the other?

    Marks are what a disc fits into, dashes what hangs together elsewhere. A dash follows another where the lines along
    both meet in the middle of the gap. The marks hide the first and the last dash.
    """
    y, x = numpy.ogrid[-4:5, -4:5]
    marks = ndimage.binary_opening(picture > 128, y * y + x * x <= (radius - 1) ** 2)
    numbered, count = ndimage.label(marks)
    assert count == 2
    first, last = ndimage.center_of_mass(marks, numbered, [1, 2])
    numbered, count = ndimage.label((picture > 100) & ~ndimage.binary_dilation(marks, iterations=2), numpy.ones((3, 3)))
    begins, ends = [], []
    for points in (numpy.argwhere(numbered == number) for number in range(1, count + 1)):
        if len(points) >= 4:
            middle = points.mean(0)
            axis = numpy.linalg.svd(points - middle)[2][0]
            along = (points - middle) @ axis
            tips = [middle + axis * along.min(), middle + axis * along.max()]
            begins += tips
            ends += tips[::-1]
    begins, ends = numpy.array(begins), numpy.array(ends)
    ahead = (ends - begins) / numpy.linalg.norm(ends - begins, axis=1, keepdims=True)
    gaps = (ends + margin * ahead)[:, None] - (begins - margin * ahead)
    follows = (numpy.linalg.norm(gaps, axis=2) < 2.6) & (ahead @ ahead.T > math.cos(math.radians(60)))
    step = length + 2 * margin
    now = (abs(numpy.linalg.norm(begins - first, axis=1) - step) < 2.5) & (((begins - first) * ahead).sum(1) > step / 2)
    final = (abs(numpy.linalg.norm(last - ends, axis=1) - step) < 2.5) & (((last - ends) * ahead).sum(1) > step / 2)
    for _ in range(dashes - 3):
        now = (now[:, None] & follows).any(0)
    return bool((now & final).any())


@pytest.mark.parametrize(("size", "margin", "radius", "wrong"), [(256, 3, 5, 1), (128, 2.5, 3, 2)])
def test_labels_follow_from_the_pictures(size, margin, radius, wrong):
    dataset = create_dataset("hyena/pathfinder", split="train", img_size=size)
    samples = [dataset[index] for index in range(40)]
    labels = [label for _, label in samples]
    seen = [connected(numpy.asarray(image), margin, radius) for image, _ in samples]
    assert sum(labels) == 20 and sum(one != other for one, other in zip(labels, seen, strict=True)) <= wrong


def detour(picture: numpy.ndarray, pitch: int = 7, dashes: int = 14) -> float:
    """How much worse the best chain from one mark to the other is than the best that ends anywhere.

    Where dashes have no shape of their own, all chains of steps of the right length are weighed: by the light along
    them and how they turn. NaN where the marks touch.
    """
    numbered, count = ndimage.label(picture > 225, numpy.ones((3, 3)))
    if count != 2:
        return math.nan
    first, last = numpy.round(ndimage.center_of_mass(numbered > 0, numbered, [1, 2])).astype(int)
    dy, dx = (each.ravel() for each in numpy.mgrid[-pitch - 1 : pitch + 2, -pitch - 1 : pitch + 2])
    dy, dx = (each[abs(numpy.hypot(dy, dx) - pitch) <= 0.6] for each in (dy, dx))
    angle = numpy.arctan2(dy, dx)
    turn = abs((angle[:, None] - angle + math.pi) % (2 * math.pi) - math.pi)
    cost = numpy.where(turn < math.radians(70), turn**2, numpy.inf).astype("float32")
    n, edge = len(picture), pitch + 1
    y, x = numpy.mgrid[:n, :n] + edge
    light = numpy.pad(numpy.minimum(picture / 204, 1), edge)
    gain = [
        sum(ndimage.map_coordinates(light, [y - a * t, x - b * t], order=1) for t in numpy.arange(pitch) / pitch)
        for a, b in zip(dy, dx, strict=True)
    ]
    gain = numpy.log(0.03 + numpy.stack(gain) / pitch).astype("float32")  # of arriving at a place by a step

    def arrive(before):
        after = numpy.full((len(dy), n + 2 * edge, n + 2 * edge), -numpy.inf, "float32")
        for index, (a, b) in enumerate(zip(dy, dx, strict=True)):
            after[index, edge + a : edge + a + n, edge + b : edge + b + n] = before[index]
        return after[:, edge:-edge, edge:-edge] + gain

    start = numpy.full((n, n), -numpy.inf, "float32")
    start[tuple(first)] = 0
    value, ends = arrive([start] * len(dy)), []
    near = numpy.hypot(*(numpy.mgrid[:n, :n] - last[:, None, None])) <= 2
    for step in range(2, dashes + 1):
        value = arrive([(value - each[:, None, None]).max(0) for each in cost.T])
        ends += [(value.max() / step, value[:, near].max() / step)] if step >= dashes - 2 else []
    anywhere, there = numpy.max(ends, axis=0)
    return anywhere - there


def test_labels_follow_from_pictures_of_64_pixels():
    """The images are others than those that the limit was found on; by chance 17 of 20 are right in 0.1 % of cases."""
    dataset = create_dataset("hyena/pathfinder", split="validation", img_size=64)
    samples = [dataset[index] for index in range(20)]
    assert sum((detour(numpy.asarray(image)) < 0.06) == label for image, label in samples) >= 17


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_dashes_keep_their_distance(size):
    paths, rng = pathfinder._paths(size, 0), numpy.random.default_rng(0)
    distance = pathfinder._SIZES[size].distance
    for _ in range(3):
        pair = paths.pair(rng.random, 14, distance)
        assert [len(path) for path in pair] == [14, 14]
        begins = numpy.array([paths.beginning(path) for path in pair])
        assert abs(numpy.linalg.norm(begins[0] - begins[1]) - distance) <= 1
        assert begins[0].min() >= 2 * distance and begins[0].max() < size - 2 * distance
        lines = list(pair)
        for _ in range(5):
            lines += [line] if (line := paths.distractor(rng.random, 4, lines)) else []
        assert len(lines) > 4 and all(len(line) == 4 for line in lines[2:])
        masks = [[paths._at(paths.wide, dash) for dash in line] for line in lines]
        for line in masks:
            assert not any(
                one & other for one, other in combinations(line, 2) if line.index(other) > line.index(one) + 1
            )
            assert not any(mask & paths.edge for mask in line)
        for line, other in combinations(masks, 2):
            assert not any(one & two for one in line for two in other)


def test_cue_makes_distractors_brighter_than_paths_and_marks():
    plain, cued = (create_dataset(f"hyena/pathfinder{cue}", split="train", img_size=32) for cue in ("", ":cue=true"))
    for index in range(5):
        (one, label), (other, same) = plain[index], cued[index]
        one, other = (numpy.asarray(image) for image in (one, other))
        assert label == same and ((one > 9) == (other > 9)).mean() > 0.97
        assert other[one == 255].max() < 255 and one[other == 255].max() < 255
