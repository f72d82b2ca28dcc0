"""Images that cannot be read: named in an error or, where they are left out, reported and counted."""

import contextlib
import json
import os
import tempfile
import weakref
from collections.abc import Callable
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from hyena_vision.data import DataError
from hyena_vision.training.errors import one_line

_MAX_REPLACEMENTS = 100


class BadImages:
    """Images that could not be read, reported by the loader's processes and collected in the main one.

    The reports go through a file: a pipe that nobody empties, in a batch of nothing but such images, would block.
    """

    def __init__(self):
        """Make the file; it goes with this object."""
        descriptor, self.file = tempfile.mkstemp(prefix="bad-images-")
        os.close(descriptor)
        weakref.finalize(self, _remove, self.file, os.getpid())
        self.position = 0
        self.paths: set[str] = set()

    def report(self, message: str) -> None:
        """Tell the main process of one image."""
        with open(self.file, "ab", buffering=0) as file:
            file.write(json.dumps(message).encode() + b"\n")

    def collect(self, log: Callable[[str], Any]) -> None:
        """Take in what was reported; each image is passed to `log` once."""
        if os.path.getsize(self.file) == self.position:
            return
        with open(self.file, "rb") as file:
            file.seek(self.position)
            lines = file.read().splitlines(keepends=True)
        for line in lines:
            if not line.endswith(b"\n"):
                break  # somebody is writing it
            self.position += len(line)
            message = json.loads(line)
            if message not in self.paths:
                self.paths.add(message)
                log(message)


def _remove(file: str, process: int) -> None:
    if os.getpid() == process:  # not in the workers, which are copies
        with contextlib.suppress(FileNotFoundError):
            os.remove(file)


class TolerantDataset(Dataset):
    """A data set whose unreadable images are errors that name them, or are left out and reported.

    Args:
        dataset: Map-style data set with its transform set.
        bad_images: Where to report; None raises.
        replace: Training: the next readable image stands in. Otherwise a blank one does, with the target -1, which
            `validate` does not count.
    """

    def __init__(self, dataset: Dataset, bad_images: BadImages | None, replace: bool):
        """Wrap the data set."""
        self.dataset = dataset
        self.bad_images = bad_images
        self.replace = replace

    def __getitem__(self, index: int | tuple[int, int]) -> tuple:
        """Return the sample, or what stands in for it.

        Raises:
            DataError: An image cannot be read or, where they are left out, a hundred in a row cannot.
        """
        for _ in range(_MAX_REPLACEMENTS):
            # Scheduled image sizes index by (image, size)
            number, *rest = index if isinstance(index, tuple) else (index,)
            try:
                return self.dataset[index]
            except DataError as error:
                last = error
            except (OSError, SyntaxError) as error:  # of data sets that read for themselves
                last = DataError(f"cannot read image {number} of the data set: {one_line(error)}")
            if self.bad_images is None:
                raise last
            self.bad_images.report(str(last))
            if not self.replace:
                blank = Image.new(getattr(self.dataset, "input_img_mode", None) or "RGB", (256, 256))
                return self.dataset.transform(blank), -1
            number = (number + 1) % len(self.dataset)
            index = (number, *rest) if rest else number
        raise DataError(f"{_MAX_REPLACEMENTS} images in a row cannot be read, the last: {last}")

    def __len__(self) -> int:
        """Return the number of samples, unreadable ones included."""
        return len(self.dataset)
