"""Image files behind the paths that people give: folders, files and globs."""

import glob
import os
from collections.abc import Iterable

from timm.utils.misc import natural_key

from hyena_vision.data.image import DataError, image_extensions


def find_files(paths: Iterable[str | os.PathLike]) -> list[str]:
    """Return the files that paths stand for, each once.

    Args:
        paths: Folders, of which all images are taken at any depth, by name; files, which are taken whatever their
            name; globs, of whose matches the same holds (`**` stands for any depth).

    Raises:
        DataError: There is nothing of such a path.
    """
    files: dict[str, None] = {}
    for path in map(os.fspath, paths):
        matches = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
        if not matches:
            raise DataError(f"no such file or folder: {path}")
        found = [file for match in matches for file in (_images_in(match) if os.path.isdir(match) else [match])]
        if not found:
            raise DataError(f"no images in {path}")
        files |= dict.fromkeys(found)
    return list(files)


def _images_in(folder: str) -> list[str]:
    """Return the images under a folder, in the order of training; each folder is read once, whatever links lead to it.

    Hidden files and folders are left out, as in training.
    """
    extensions, found, seen = set(image_extensions()), [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        shown = [name for name in names if not name.startswith(".")]
        found += [os.path.join(place, name) for name in shown if os.path.splitext(name)[1].lower() in extensions]
    return sorted(found, key=natural_key)
