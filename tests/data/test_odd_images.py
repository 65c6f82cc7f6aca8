"""Images of unusual colours and sizes, and files that are not images."""

import os
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from image_files import chunk, encoded, picture, png
from PIL import Image, ImageCms, features

from furnace_hpc.data.decode.images import ImageKnobs, read_image
from furnace_hpc.data.packing.rejects import Unusable

SMALL = ImageKnobs(size=16)


@pytest.fixture
def read(tmp_path):
    """Read an image of this content."""

    def from_bytes(content: bytes, knobs: ImageKnobs = SMALL) -> np.ndarray:
        (tmp_path / "image").write_bytes(content)
        return read_image(tmp_path / "image", knobs)

    return from_bytes


@pytest.fixture
def refused(read):
    """Why an image of this content is refused."""

    def from_bytes(content: bytes) -> tuple[str, str]:
        with pytest.raises(Unusable) as caught:
            read(content)
        return caught.value.reason, caught.value.detail

    return from_bytes


# --- colours ---


def test_transparency_of_every_depth_is_white(read):
    """One of two pixels has the transparent value. Both are far from white."""
    grey = lambda value: chunk(b"tRNS", struct.pack(">H", value))  # noqa: E731
    samples = {
        "16 bits": png(2, 16, 0, [struct.pack(">2H", 300, 20_000)], grey(300)),
        "8 bits": png(2, 8, 0, [bytes((1, 78))], grey(1)),
        "4 bits": png(2, 4, 0, [b"\x14"], grey(1)),
        "2 bits": png(2, 2, 0, [b"\x10"], grey(0)),
        "1 bit": png(2, 1, 0, [b"\x40"], grey(0)),
        "16 bits of colour": png(
            2,
            16,
            2,
            [struct.pack(">6H", 300, 5, 1000, 9, 9, 9)],
            chunk(b"tRNS", struct.pack(">3H", 300, 5, 1000)),
        ),
        "8 bits of colour": png(
            2, 8, 2, [bytes((1, 2, 3, 9, 9, 9))], chunk(b"tRNS", struct.pack(">3H", 1, 2, 3))
        ),
    }
    seen = {}
    for name, content in samples.items():
        made = read(content, ImageKnobs(size=8, fit="stretch", filter="bilinear"))
        seen[name] = (made[:, 4, 0].tolist(), made[:, 4, 7].tolist())
    first, second = [255] * 3, [78] * 3
    assert seen["16 bits"] == (first, second)
    assert seen["8 bits"] == (first, second)
    assert seen["4 bits"] == (first, [68] * 3)
    assert seen["2 bits"] == (first, [85] * 3)
    assert seen["1 bit"] == (first, first)  # the other one is white
    assert seen["16 bits of colour"] == (first, [0] * 3)
    assert seen["8 bits of colour"] == (first, [9] * 3)


def test_every_mode_has_its_colour(read):
    red = Image.new("RGB", (20, 20), (200, 10, 20))
    made = {
        "PNG": ["RGB", "RGBA", "P", "L", "LA", "1"],
        "TIFF": ["RGB", "RGBA", "P", "L", "LA", "CMYK", "YCbCr", "LAB", "RGBX"],
        "JPEG": ["RGB", "L", "CMYK", "YCbCr"],
    }
    for kind, modes in made.items():
        for mode in modes:
            if mode == "LAB":
                srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
                image = ImageCms.profileToProfile(red, srgb, lab, outputMode="LAB")
            elif mode == "LA":
                image = red.convert("L").convert("LA")
            else:
                image = red.convert(mode)
            colour = read(encoded(image, kind)).astype(float).mean((1, 2))
            wanted = {"L": [68] * 3, "LA": [68] * 3}.get(mode, [200, 10, 20])
            if mode != "1":
                np.testing.assert_allclose(colour, wanted, atol=6, err_msg=f"{kind} {mode}")


def test_sixteen_bits_of_both_byte_orders(read):
    values = np.full((20, 20), 90 * 257, np.uint16)
    big = Image.frombytes("I;16B", (20, 20), values.astype(">u2").tobytes())
    for image in (Image.fromarray(values), big):
        assert set(read(encoded(image, "TIFF")).flat) == {90}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["TIFF", "PPM"])
def test_a_float_image_that_is_not_finite_is_refused(refused, kind, value):
    pixels = np.full((20, 20), 0.5, np.float32)
    pixels[3, 4] = value
    assert refused(encoded(Image.fromarray(pixels), kind))[0] == "not finite"


# --- sizes ---


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 1)])
@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_thin_images_are_read(read, size, fit):
    image = Image.new("RGB", size, (10, 20, 30))
    for kind in ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF"):
        made = read(encoded(image, kind), ImageKnobs(size=16, fit=fit))
        np.testing.assert_allclose(made.mean((1, 2)), (10, 20, 30), atol=6)


def test_images_without_pixels_are_refused(refused):
    assert refused(png(0, 8, 2, []))[0] == "unreadable"
    assert refused(b"P6 0 0 255\n")[0] == "unreadable"
    assert refused(b"GIF89a" + bytes(20))[0] == "unreadable"


def test_moving_images_show_their_first_frame(read):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ((200, 0, 0), (0, 0, 200))]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        made = read(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
        assert made.reshape(3, -1).max(1).tolist() == [200, 0, 0]


# --- other files ---


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_is_read_whatever_its_name(tmp_path):
    (tmp_path / "poster.jpg").write_bytes(encoded(picture(), "AVIF", quality=95))
    made = read_image(tmp_path / "poster.jpg", SMALL).astype(int)
    assert np.abs(made[:, 1, 8] - (200, 0, 0)).max() < 12
    assert np.abs(made[:, -2, 8] - (0, 0, 200)).max() < 12


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "a HEIC image"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(100), "an MP4 video"),
        (b"\n<!DOCTYPE html><html>404</html>", "an HTML page"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><svg/>", "an SVG drawing"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"RIFF\0\0\0\0WAVEfmt ", "a WAV sound"),
        (b"\xff\x0a" + bytes(30), "a JPEG XL image"),
        (bytes(5000), "zeros"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "a damaged PNG image"),
        (b"hello", "no known image"),
    ],
)
def test_other_files_are_named(refused, content, kind):
    reason, detail = refused(content)
    assert (reason, detail.startswith(kind)) == ("unreadable", True)
    assert "wanted JPEG, PNG" in detail


def test_paths_that_are_no_files_are_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("gone")
    (tmp_path / "file").write_bytes(b"x")
    reasons = {}
    names = ["folder", "pipe", "loop", "nowhere", "gone", "file/below", "x" * 300, "a\0b", "\udc80"]
    for path in (*(tmp_path / name for name in names), Path("/dev/zero")):
        with pytest.raises(Unusable) as caught:
            read_image(path, SMALL)
        reasons[path.name] = (caught.value.reason, caught.value.detail)
    assert reasons["folder"] == ("unreadable", "a folder")
    assert reasons["pipe"] == reasons["zero"] == ("unreadable", "no regular file")
    assert reasons["loop"] == ("unreadable", "Too many levels of symbolic links")
    assert (
        reasons["nowhere"]
        == reasons["gone"]
        == reasons["below"]
        == reasons["\udc80"]
        == ("missing", "")
    )
    assert reasons["x" * 300] == ("unreadable", "File name too long")
    assert reasons["a\0b"] == ("unreadable", "ValueError: embedded null byte")


def test_warnings_as_errors_change_nothing(read):
    huge = Image.new("1", (11_000, 9_000))  # Pillow warns of it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not read(encoded(huge, "PNG")).any()
