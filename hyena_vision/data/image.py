"""Image files to 8-bit pictures: every format that Pillow reads, upright, with nothing clipped."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import numpy
from PIL import ExifTags, Image, ImageCms, features

# Pillow knows their names, and cannot read them alone: it needs Ghostscript, Windows or a handler for data
_NOT_READ = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
# The flat picture in a Photoshop file is often left out, and would be a white page
_NOT_READ |= {"PSD"}
_OPTIONAL = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}  # formats that Pillow may be built without

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
IMAGE_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by the channels of a model
_8BIT = {"1", "L", "LA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "P"}


class DataError(Exception):
    """A data set that cannot be read; the message names the file or folder."""


@cache
def image_extensions() -> tuple[str, ...]:
    """Return the file extensions, in lower case with their dot, of the images that `load_image` reads here."""
    Image.init()
    missing = {kind for kind, feature in _OPTIONAL.items() if kind in Image.OPEN and not features.check(feature)}
    kinds = set(Image.OPEN) - _NOT_READ - missing
    return tuple(sorted(extension for extension, kind in Image.registered_extensions().items() if kind in kinds))


@contextmanager
def large_pictures() -> Iterator[None]:
    """Let Pillow open and crop pictures of up to twice the size that it warns of; it refuses larger ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


@large_pictures()
def load_image(file: Any, mode: str = "RGB", exif: bool = True) -> Image.Image:
    """Read an image file as a person sees it.

    It is turned as its EXIF data say. Greys of more than 8 bits become 8 bits: 16 bits by their full range; whole
    numbers of 32 bits and floats by the first of the ranges 0..1, 0..255 and 0..65535 that holds them (with a tenth to
    spare), else from their least to their greatest value. Where `mode` has no alpha, what is transparent becomes white.
    Of several frames or pages the first is read.

    Args:
        file: Path, or file open for bytes.
        mode: PIL mode of the result. One of more than 8 bits gets the values as they are.
        exif: Whether to turn it.

    Raises:
        DataError: It cannot be read; the message names it.
    """
    is_path = isinstance(file, str | os.PathLike)
    try:
        # Opened here: Pillow maps a path into memory, and then scrambles uncompressed TIFF that lies on its side
        with open(file, "rb") if is_path else nullcontext(file) as opened, Image.open(opened) as image:
            image.load()
            turn = _UPRIGHT.get(_orientation(image)) if exif else None
            result = _convert(image, mode)
            return result if turn is None else result.transpose(turn)
    except Exception as error:  # decoders raise what they like: AVIF a RuntimeError, broken headers a struct.error
        raise unreadable(os.fspath(file) if is_path else getattr(file, "name", "of unknown name"), error) from error


def unreadable(name: str, error: BaseException) -> DataError:
    """Return the error for an image that cannot be read."""
    text = str(error).split(" <_io")[0]  # Pillow's message may end in the address of a file object
    text = error.strerror if isinstance(error, OSError) and error.strerror else text.replace(f" {name!r}", "")
    reason = " ".join(text.split()) or type(error).__name__
    return DataError(f"cannot read image {name}: {reason}")


def _orientation(image: Image.Image) -> int | None:
    if image.format == "TIFF":  # Pillow has turned it, and in older versions still says how
        return None
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # EXIF data that are damaged say nothing, and leave the pixels whole
        return None


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if mode not in _8BIT:
        return image.convert(mode)
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    elif image.mode == "LAB":
        image = ImageCms.profileToProfile(image, *map(ImageCms.createProfile, ("LAB", "sRGB")), outputMode="RGB")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert({"La": "LA"}.get(image.mode, "RGBA")).convert("RGBA")
        if mode not in ("LA", "RGBA"):
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    elif image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")  # Pillow converts few modes to each other without it
    return image.convert(mode)  # a copy where it has the mode


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Return greys of 16 bits, 32 bits or floats as `L`."""
    values = numpy.asarray(image).astype("float32" if image.mode.startswith("I;16") else "float64")
    # Pillow before 11 opens 16 bits of PNG as 32, and PGM is scaled to 16 bits in any version
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        low, high = 0.0, 65535.0
    else:
        low, high = _range(values)
    scaled = (numpy.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) * (255 / max(high - low, 1e-30))
    return Image.fromarray(scaled.clip(0, 255).round().astype("uint8"))


def _range(values: numpy.ndarray) -> tuple[float, float]:
    """Return the values of black and white."""
    finite = values[numpy.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    for white in (1.0, 255.0, 65535.0):
        if -0.1 * white <= low and high <= 1.1 * white:
            return 0.0, white
    return low, high
