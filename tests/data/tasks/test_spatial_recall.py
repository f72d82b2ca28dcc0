import hashlib

import numpy
import pytest
import torch

from hyena_vision.data import create_dataset
from hyena_vision.data.tasks import mean_predictor_mse

# Of ten images; the same with NumPy 1.26 to 2.4 and Pillow 10 to 13
GOLDEN = {
    (64, ""): "3a1f6d5d36ee0c686af46c70970735702a58752810c2cc26f927383daf8db850",
    (32, ":fixed=true"): "846ee7d957d8d00a882486c3babd1fdcc2337626385c94c6c4e78d649df98588",
    (64, ":color=true,seed=1"): "5533b77771b8a16dfa22635bf137d3af29e8a0012fbef90aa436be7ada13e5f5",
}


@pytest.mark.parametrize(("size", "settings"), GOLDEN)
def test_same_bytes_on_all_machines(size, settings):
    dataset = create_dataset(f"hyena/spatial_recall{settings}", split="val", img_size=size)
    samples = [dataset[index] for index in range(10)]
    content = b"".join(image.tobytes() + target.numpy().astype("<f4").tobytes() for image, target in samples)
    assert hashlib.sha256(content).hexdigest() == GOLDEN[size, settings]


@pytest.mark.parametrize("size", [32, 64, 100, 128])
def test_the_target_is_the_one_place_with_ink(size):
    dataset = create_dataset("hyena/spatial_recall", split="train", img_size=size)
    places = set()
    for image, target in (dataset[index] for index in range(20)):
        pixels = numpy.asarray(image)
        assert target.shape == (1, 16, 16) and target.dtype == torch.float32 and target.max() > 0.5
        rows, columns = (numpy.flatnonzero(pixels.any(axis)) for axis in (1, 0))
        y, x = ((ink[0] + ink[-1] + 1) // 2 - 8 + (len(ink) % 2) for ink in (rows, columns))
        assert numpy.array_equal(pixels[y : y + 16, x : x + 16], (target[0] * 255).round().numpy())
        assert pixels.sum() == (target * 255).round().sum() and not pixels[-16:, -16:].any()
        places.add((y, x))
    assert len(places) > 10


def test_fixed_digits_lie_in_the_upper_left_corner():
    dataset = create_dataset("hyena/spatial_recall:fixed=true", split="train", img_size=64)
    for image, target in (dataset[index] for index in range(5)):
        assert numpy.array_equal(numpy.asarray(image)[:16, :16], (target[0] * 255).round().numpy())
        assert not numpy.asarray(image)[16:].any() and not numpy.asarray(image)[:, 16:].any()


@pytest.mark.parametrize("size", [48, 64, 128])
def test_the_colour_of_the_corner_names_the_digit(size):
    """The frame in the corner has the colour of one other: what is inside, in this colour, is the target."""
    dataset = create_dataset("hyena/spatial_recall:color=true", split="train", img_size=size, input_img_mode="RGB")
    for image, target in (dataset[index] for index in range(10)):
        pixels = numpy.asarray(image).astype(float)
        color = pixels[-1, -1]
        assert (pixels[-16:, -16] == color).all() and not pixels[-15:-1, -15:-1].any()
        found = []
        for y in range(size - 15):
            for x in range(size - 15):
                box = pixels[y : y + 16, x : x + 16]
                sides = numpy.concatenate([box[0], box[-1], box[:, 0], box[:, -1]])
                if (sides == sides[0]).all() and sides[0].any():
                    found.append((box[1:-1, 1:-1], sides[0]))
        assert len(found) == 5 and len({tuple(of) for _, of in found}) == 4
        ink = next(inside for inside, of in found if (of == color).all())
        expected = torch.zeros(3, 16, 16)
        expected[:, 1:-1, 1:-1] = torch.from_numpy(ink * color / 255**2).permute(2, 0, 1)
        assert ink.max() > 150 and torch.allclose(target, expected, atol=1e-6)


@pytest.mark.parametrize("settings", ["", ":color=true"])
def test_mean_predictor(settings):
    train, val = (
        create_dataset(f"hyena/spatial_recall{settings}", split=split, num_samples=300) for split in ("train", "val")
    )
    targets = [numpy.stack([dataset[index][1].numpy() for index in range(200)]) for dataset in (train, val)]
    expected = ((targets[1] - targets[0].mean(0, dtype="float64")) ** 2).mean()
    assert mean_predictor_mse(train, val, 200) == pytest.approx(expected, rel=1e-6)
    of_no_use = mean_predictor_mse(train, train)  # all 300
    assert of_no_use == pytest.approx(numpy.stack([train[i][1].numpy() for i in range(300)]).var(0).mean(), rel=1e-5)
