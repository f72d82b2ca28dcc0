"""Image files behind the paths that people give: folders, files and globs."""

import glob
import os
from collections.abc import Iterable

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
    """Return the images under a folder, sorted; each folder is read once, whatever links lead to it."""
    extensions, found, seen = image_extensions(), [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        found += [os.path.join(place, name) for name in sorted(names) if name.lower().endswith(extensions)]
    return found
