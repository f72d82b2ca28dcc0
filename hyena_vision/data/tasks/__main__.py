"""Sample sheets of the generated tasks.

python -m hyena_vision.data.tasks pathfinder --img-sizes 32 64 128 256 --output pathfinder.png
"""

import argparse
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw

from hyena_vision.data.tasks import TASKS, DrawnDataset, create_task

_GAP, _CAPTION = 6, 14  # pixels
_GROUND, _INK = (70, 90, 120), (255, 255, 255)


def draw_sheet(name: str, img_sizes: Sequence[int], count: int = 6, cell: int = 160, split: str = "train"):
    """Return a picture of the first images of a task, a row for each size, with their labels.

    Args:
        name: As of `create_task`.
        img_sizes: Sides in pixels.
        count: Images of a row.
        cell: Side of each in the sheet; pixels of small images become squares.
        split: Split to take them from.
    """
    rows = [_row(create_task(name, split, img_size=size, input_img_mode="RGB"), count, cell) for size in img_sizes]
    height = sum(row.height for row in rows) + _GAP
    sheet = Image.new("RGB", (max(row.width for row in rows), height), _GROUND)
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def _row(dataset: DrawnDataset, count: int, cell: int) -> Image.Image:
    scale = cell / dataset.img_size
    cells = []
    for index in range(count):
        image, target = dataset[index]
        pictures, caption = [_scaled(image, scale)], f"{dataset.img_size} px"
        if isinstance(target, torch.Tensor):
            pictures.append(_scaled(dataset.picture(target), scale))
        else:
            caption += f": {list(dataset.class_to_idx)[target]}"
        cells.append((pictures, caption))
    widths = [sum(picture.width + _GAP for picture in pictures) for pictures, _ in cells]
    row = Image.new("RGB", (sum(widths) + _GAP, cell + _CAPTION + _GAP), _GROUND)
    left = _GAP
    for pictures, caption in cells:
        ImageDraw.Draw(row).text((left, _GAP - 3), caption, fill=_INK)
        for picture in pictures:
            row.paste(picture, (left, _GAP + _CAPTION))
            left += picture.width + _GAP
    return row


def _scaled(image: Image.Image, scale: float) -> Image.Image:
    side = round(image.width * scale)
    return image.resize((side, side), Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX)


def main(argv: Sequence[str] | None = None) -> None:
    """Write a sheet."""
    parser = argparse.ArgumentParser(prog="hyena_vision.data.tasks", description="Draw sample sheets of a task.")
    parser.add_argument("task", metavar="TASK", help=f"one of {', '.join(TASKS)}, with settings: TASK:key=value,...")
    parser.add_argument("--img-sizes", type=int, nargs="+", metavar="N", help="sides in pixels (default: the task's)")
    parser.add_argument("--count", type=int, default=6, metavar="N", help="images of each size")
    parser.add_argument("--cell", type=int, default=160, metavar="N", help="side of an image in the sheet, in pixels")
    parser.add_argument("--split", default="train", metavar="NAME", help="split to take them from")
    parser.add_argument("--output", required=True, metavar="FILE", help="PNG to write")
    args = parser.parse_args(argv)
    try:
        sizes = args.img_sizes or [create_task(args.task, args.split).img_size]
        sheet = draw_sheet(args.task, sizes, args.count, args.cell, args.split)
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    sheet.save(args.output, optimize=True)


if __name__ == "__main__":
    main()
