"""Folders of images, `ROOT/CLASS/**/IMAGE`: which files are read, which are left out, and fixed parts of them."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator

from timm.data.readers.class_map import load_class_map
from timm.data.readers.reader import Reader
from timm.utils.misc import natural_key

from hyena_vision.data.image import DataError, image_extensions

_SYNONYMS = (("train", "training"), ("val", "valid", "validation", "eval", "evaluation"))  # timm's
SPLIT_NAMES = {name for names in _SYNONYMS for name in names} | {"test"}
_SLICE = re.compile(r"\[(-?\d+(?:\.\d+)?%|-?\d+)?:(-?\d+(?:\.\d+)?%|-?\d+)?\]")


def find_split(root: str, split: str) -> str | None:
    """Return the folder of a split, or None where there is none (timm takes the root, and so everything).

    Args:
        root: Folder of the data set, or of the split itself if it has its name.
        split: Its name, or one that timm takes for the same (`val`, `validation`); `.` is the root.
    """
    if split == ".":
        return root
    names = [split, *(name for names in _SYNONYMS if split in names for name in names)]
    for name in names:
        if name and os.path.isdir(path := os.path.join(root, name)):
            return path
    return root if os.path.basename(os.path.abspath(root)) in names else None


class FolderReader(Reader):
    """Reads the images of class folders, as timm's `ReaderImageFolder` does, except for what that gets wrong.

    The class is the folder directly under the root, for images deeper down as well (timm takes the last folder, so that
    `cat/indoor` and `dog/indoor` are one class). All formats that Pillow reads are read. Classes are numbered, and
    images sorted, as by timm. Hidden files and folders (`.ipynb_checkpoints`) are left out.

    Args:
        root: Folder of the class folders.
        class_map: File of class names in the order of their indices, as timm reads it; '' numbers the folders.
        input_key: File extensions to read in place of all that Pillow reads, separated by `;`.
        labelled: Whether images have classes; without, all under the root are read, and have the index 0.

    Attributes:
        samples: Path and class index of each image.
        class_to_idx: Index of each class that has images or is in the class map.
        missing: Classes of the class map that have no images.

    Raises:
        DataError: Images outside of class folders, a folder that is reached twice by links, or no images.
    """

    def __init__(self, root: str, class_map: str = "", input_key: str | None = None, labelled: bool = True):
        super().__init__()
        self.root = root
        self._types = set(input_key.split(";") if input_key else image_extensions())
        self._not_read: Counter[str] = Counter()  # by extension
        self._unmapped: Counter[str] = Counter()  # by class
        self._hidden, self._empty, self.missing = 0, [], []
        self._seen: dict[str, str] = {}
        if not labelled:
            self.class_to_idx: dict[str, int] = {}
            self.samples = sorted(((path, 0) for path in self._images(root)), key=lambda sample: natural_key(sample[0]))
            if not self.samples:
                raise DataError(f"no images in {root}{self.left_out()}")
            return

        self._seen[os.path.realpath(root)] = root
        found: dict[str, list[str]] = {}
        beside = []
        for entry in self._list(root):
            if entry.is_dir():
                found[entry.name] = list(self._images(entry.path))
            elif self._is_image(entry):
                beside.append(entry.path)
        if beside:
            more = f" and {len(beside) - 1} more images lie" if len(beside) > 1 else " lies"
            raise DataError(f"{beside[0]}{more} beside the class folders: expected {root}/CLASS/IMAGE")
        self._empty = [name for name, paths in found.items() if not paths]
        found = {name: paths for name, paths in found.items() if paths}

        if class_map:
            self.class_to_idx = {name: index for name, index in load_class_map(class_map, root).items() if name != ""}
        else:
            self.class_to_idx = {name: index for index, name in enumerate(sorted(found, key=natural_key))}
        self._unmapped = Counter({name: len(found[name]) for name in found if name not in self.class_to_idx})
        self.samples = sorted(
            ((path, self.class_to_idx[name]) for name in found.keys() & self.class_to_idx for path in found[name]),
            key=lambda sample: natural_key(sample[0]),
        )
        self.missing = [name for name in self.class_to_idx if name not in found]
        if not self.samples:
            raise DataError(f"no images in class folders of {root}{self.left_out()}")

    def _list(self, folder: str) -> list[os.DirEntry]:
        with os.scandir(folder) as entries:
            shown = sorted(entries, key=lambda entry: entry.name)
        self._hidden += sum(entry.name.startswith(".") for entry in shown)
        return [entry for entry in shown if not entry.name.startswith(".")]

    def _images(self, folder: str) -> Iterator[str]:
        """Return the images in a folder and below it."""
        real = os.path.realpath(folder)
        if real in self._seen:
            raise DataError(f"{folder} and {self._seen[real]} are one folder by a link: images would be read twice")
        self._seen[real] = folder
        for entry in self._list(folder):
            if entry.is_dir():
                yield from self._images(entry.path)
            elif self._is_image(entry):
                yield entry.path

    def _is_image(self, entry: os.DirEntry) -> bool:
        extension = os.path.splitext(entry.name)[1].lower()
        if extension in self._types and (entry.is_file() or entry.is_symlink()):
            return True  # not a pipe, which would be waited for; a dead link is an unreadable image
        self._not_read[extension or "without extension"] += 1
        return False

    def left_out(self) -> str:
        """Return what was not read and why, as the end of a sentence; '' for nothing."""
        parts = [f"{count} {kind}" for kind, count in self._not_read.most_common()]
        parts = [f"{', '.join(parts)} (not an image that is read here)"] if parts else []
        parts += [f"{self._hidden} hidden"] if self._hidden else []
        parts += [f"{_short(self._empty)} (class folders without images)"] if self._empty else []
        if self._unmapped:
            names = _short([f"{name} {count}" for name, count in self._unmapped.items()])
            parts.append(f"{names} (not in the class map)")
        return f"; left out: {'; '.join(parts)}" if parts else ""

    def counts(self) -> dict[str, int]:
        """Return the number of images of each class by its name."""
        counts = Counter(index for _, index in self.samples)
        return {name: counts[index] for name, index in self.class_to_idx.items()}

    def slice(self, text: str) -> None:
        """Keep a part of the images: `[:80%]`, `[80%:]`, `[100:200]`, of an order that mixes the classes evenly.

        The order is that of checksums of the paths below the root, so it is the same on every machine.

        Raises:
            DataError: It is not a slice.
        """
        match = _SLICE.fullmatch(text)
        if match is None:
            raise DataError(f"cannot read the slice {text!r}: expected [FIRST:LAST], in images or per cent")
        order = sorted(  # of n images of a class, the first ones are at 1/2n, 3/2n, ... of the way
            ((2 * place + 1) / (2 * len(samples)), sample[1], sample)
            for samples in self._ranked("").values()
            for place, sample in enumerate(samples)
        )
        total = len(order)
        bounds = [
            bound and (round(total * float(bound[:-1]) / 100) if bound.endswith("%") else int(bound))
            for bound in match.groups()
        ]
        self._keep(sample for _, _, sample in order[slice(*bounds)])

    def hold_out(self, fraction: float, seed: int, held_out: bool) -> None:
        """Keep the images to train on, or those to validate on, of a split that follows from seed and file names.

        Args:
            fraction: Part of each class to validate on; at least one image of each class that has two.
            seed: Another seed gives another split.
            held_out: Whether to keep those to validate on.
        """
        kept = []
        for samples in self._ranked(str(seed)).values():
            number = min(max(round(fraction * len(samples)), 1), len(samples) - 1)
            kept += samples[:number] if held_out else samples[number:]
        self._keep(kept)

    def _ranked(self, key: str) -> dict[int, list[tuple[str, int]]]:
        """Return the samples of each class in the order of checksums of their paths below the root."""

        def checksum(sample: tuple[str, int]) -> bytes:
            name = os.path.relpath(sample[0], self.root).replace(os.sep, "/")
            return hashlib.sha256(f"{key}\n{name}".encode(errors="surrogateescape")).digest()

        classes: dict[int, list] = {}
        for sample in sorted(self.samples, key=checksum):
            classes.setdefault(sample[1], []).append(sample)
        return classes

    def _keep(self, samples) -> None:
        kept = set(samples)
        self.samples = [sample for sample in self.samples if sample in kept]

    def __getitem__(self, index: int) -> tuple:
        """Return (file open for bytes, class index)."""
        path, target = self.samples[index]
        return open(path, "rb"), target

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.samples)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        path = self.samples[index][0]
        if basename:
            return os.path.basename(path)
        return path if absolute else os.path.relpath(path, self.root)


def _short(names: list[str]) -> str:
    return ", ".join([*names[:5], *([f"{len(names) - 5} more"] if len(names) > 5 else [])])
