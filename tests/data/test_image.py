import warnings

import numpy
import pytest
from PIL import Image, features

from hyena_vision.data import DataError, class_names, create_dataset, image_extensions, load_image

RAMP = numpy.linspace(0, 1, 12).reshape(3, 4)
WANTED = (RAMP * 255).round()


def pixels(path, mode: str = "RGB", **kwargs) -> numpy.ndarray:
    image = load_image(path, mode, **kwargs)
    assert image.mode == mode
    return numpy.asarray(image).astype(float)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_exif_data_say(tmp_path, orientation):
    upright = numpy.arange(6, dtype="uint8").reshape(2, 3) * 40
    # How a camera stores the picture that is to be seen as `upright`
    stored = {2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1], 5: lambda x: x.T}
    stored |= {6: lambda x: x.T[::-1], 7: lambda x: x[::-1, ::-1].T, 8: lambda x: x.T[:, ::-1]}
    image = Image.fromarray(numpy.ascontiguousarray(stored.get(orientation, lambda x: x)(upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.png", "a.tif", "a.webp") if features.check("webp") else ("a.png", "a.tif"):
        image.save(tmp_path / name, exif=exif, lossless=True)
        assert (pixels(tmp_path / name, "L") == upright).all(), name
    assert (pixels(tmp_path / "a.png", "L", exif=False) == numpy.asarray(image)).all()


DEEP = {
    "16.png": (RAMP * 65535).round().astype("uint16"),
    "16.pgm": (RAMP * 65535).round().astype("int32"),
    "16.tif": (RAMP * 65535).round().astype("uint16"),
    "float.tif": RAMP.astype("float32"),
    "float overshoot.tif": (RAMP * 1.02 - 0.01).astype("float32"),
    "float of 8 bits.tif": (RAMP * 255).astype("float32"),
    "float of 16 bits.tif": (RAMP * 65535).astype("float32"),
    "float of any range.tif": (RAMP * 3e6 - 1e6).astype("float32"),
    "32.tif": (RAMP * 65535).round().astype("int32"),
    "32 of 8 bits.tif": (RAMP * 255).round().astype("int32"),
}


@pytest.mark.parametrize("name", DEEP)
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_greys_of_more_than_8_bits_are_scaled(tmp_path, name, mode):
    Image.fromarray(DEEP[name]).save(tmp_path / name)
    found = pixels(tmp_path / name, mode)
    grey = found if mode == "L" else found[..., 0]
    assert numpy.abs(grey - WANTED).max() <= (3 if "overshoot" in name else 1)
    assert mode != "RGBA" or (found[..., 3] == 255).all()


def test_values_that_are_not_finite_spoil_no_others(tmp_path):
    values = RAMP.astype("float32")
    values[0, 1], values[0, 2] = numpy.nan, numpy.inf
    Image.fromarray(values).save(tmp_path / "a.tif")
    found = pixels(tmp_path / "a.tif", "L")
    assert found[0, 1] == 0 and found[0, 2] == 255 and numpy.abs(found[1:] - WANTED[1:]).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "tRNS"])
def test_what_is_transparent_becomes_white_or_stays_alpha(tmp_path, mode):
    image = Image.new("RGBA", (3, 2), (0, 0, 0, 0))  # black that nobody sees
    image.putpixel((0, 0), (90, 90, 90, 255))
    if mode == "tRNS":
        image = Image.new("RGB", (3, 2), (1, 2, 3))
        image.putpixel((0, 0), (90, 90, 90))
        image.info["transparency"] = (1, 2, 3)
        image.save(tmp_path / "a.png", transparency=(1, 2, 3))
    elif mode == "P":
        palette = Image.new("P", (3, 2), 0)
        palette.putpalette([0, 0, 0, 90, 90, 90])
        palette.putpixel((0, 0), 1)
        palette.save(tmp_path / "a.png", transparency=b"\x00\xff")
    else:
        image.convert(mode).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for shown in ("RGB", "L"):
            found = pixels(tmp_path / "a.png", shown).reshape(6, -1)
            assert (found[0] == 90).all() and (found[1:] == 255).all()
        alpha = pixels(tmp_path / "a.png", "RGBA")[..., 3]
    assert alpha[0, 0] == 255 and alpha.sum() == 255


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "LAB"])
def test_every_colour_mode_becomes_every_mode_of_training(tmp_path, mode):
    white = {"LAB": (255, 128, 128), "CMYK": (0, 0, 0, 0), "RGB": (255, 255, 255)}.get(mode, 255)
    image = Image.new("L", (2, 2), 255).convert("P") if mode == "P" else Image.new(mode, (2, 2), white)
    image.save(tmp_path / "a.tif")
    for wanted in ("L", "RGB", "RGBA"):
        assert pixels(tmp_path / "a.tif", wanted).min() >= 253


def test_an_unreadable_file_is_named_whatever_its_decoder_raises(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("Failed to decode frame 0")

    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    for name in ("empty.webp", "text.jpg", "missing.bmp"):
        if not name.startswith("missing"):
            (tmp_path / name).write_bytes(b"" if name.startswith("empty") else b"text")
        with pytest.raises(DataError, match=f"^cannot read image {tmp_path}/{name}: "):
            load_image(tmp_path / name)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with pytest.raises(DataError, match=f"cannot read image {tmp_path}/a.png: Failed to decode frame 0"):
        load_image(str(tmp_path / "a.png"))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_exif_data_that_are_damaged_leave_the_pixels(tmp_path):
    Image.new("L", (4, 2), 7).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert load_image(tmp_path / "a.jpg").size == (4, 2)


def test_extensions_are_those_of_formats_that_pillow_reads_here(tmp_path):
    found = image_extensions()
    assert {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".pgm", ".tif", ".tiff", ".tga"} <= set(found)
    assert not {".psd", ".mpg", ".h5", ".eps", ".txt", ".pdf"} & set(found)
    assert (".webp" in found) == features.check("webp") and (".avif" in found) == bool(features.check("avif"))


def test_names_of_classes_by_their_index():
    assert class_names({"b": 1, "a": 0}) == ["a", "b"]
    assert class_names({"a": 0, "c": 2, "cc": 2}) == ["a", "1", "c/cc"]


def test_a_large_picture_is_no_warning(tmp_path, monkeypatch, recwarn):
    """Nor is its crop, which Pillow warns of again."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    Image.new("L", (5, 5)).save(tmp_path / "large.png")
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "large.png").rename(tmp_path / "images" / "a" / "large.png")
    dataset = create_dataset("", root=str(tmp_path / "images"), split=".")
    dataset.transform = lambda image: image.crop((0, 0, 5, 5))
    assert dataset[0][0].size == (5, 5) and not recwarn.list
    Image.new("L", (9, 9)).save(tmp_path / "bomb.png")
    with pytest.raises(DataError, match=r"bomb\.png.*exceeds limit of 40 pixels"):
        load_image(tmp_path / "bomb.png")
