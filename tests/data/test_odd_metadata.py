"""Images with broken or very large metadata are read, upright by the orientation only."""

import struct
import zlib

import numpy as np
import pytest
from image_files import chunk, encoded, exif_of, picture, turned, with_chunk
from PIL import Image

from furnace_hpc.data.decode.images import ImageKnobs, read_image
from furnace_hpc.data.packing.rejects import Unusable

SMALL = ImageKnobs(size=16)
WHOLE = ImageKnobs(size=16, fit="stretch")


@pytest.fixture
def read(tmp_path):
    """Read an image of this content."""

    def from_bytes(content: bytes, knobs: ImageKnobs = SMALL) -> np.ndarray:
        (tmp_path / "image").write_bytes(content)
        return read_image(tmp_path / "image", knobs)

    return from_bytes


# --- EXIF ---


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("value", range(1, 9))
def test_all_orientations_are_turned_upright(read, kind, value):
    """Pillow's transpose is the reference. Every corner has another colour."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20, :30], pixels[:20, 30:], pixels[20:, :30], pixels[20:, 30:] = (
        (200, 0, 0),
        (0, 200, 0),
        (0, 0, 200),
        200,
    )
    upright = Image.fromarray(pixels)
    # Transpose that makes an upright picture one of this value
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright if value == 1 else upright.transpose(Image.Transpose(undo[value]))
    options = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    if kind == "TIFF":
        content = encoded(stored, kind, tiffinfo={274: value})
    else:
        content = encoded(
            stored, kind, exif=exif_of(turned(value))[0 if kind == "JPEG" else 6 :], **options
        )
    made = read(content, WHOLE).astype(int)
    wanted = np.asarray(upright.resize((16, 16)), int).transpose(2, 0, 1)
    assert np.abs(made - wanted)[:, [2, 2, -3, -3], [2, -3, 2, -3]].max() < 30


def test_a_resolution_as_text_leaves_the_image(read):
    """The example of a public bug report."""
    broken = encoded(picture(), "JPEG", exif=exif_of(turned(6), (0x011A, 2, 4, b"300\0")))
    sound = encoded(picture(), "JPEG", exif=exif_of(turned(6)))
    np.testing.assert_array_equal(read(broken), read(sound))


@pytest.mark.parametrize("kind", range(21))
@pytest.mark.parametrize("order", ["<", ">"])
def test_tags_of_every_type_leave_the_image(read, kind, order):
    sound = read(encoded(picture(), "JPEG", exif=exif_of(turned(8, order), order=order)))
    for tag in (
        0x0100,
        0x0102,
        0x010F,
        0x011A,
        0x011B,
        0x0128,
        0x0132,
        0x0213,
        0x8298,
        0x8769,
        0x8825,
        0xA005,
    ):
        for count in (1, 2, 2**32 - 1):
            exif = exif_of(turned(8, order), (tag, kind, count, b"\xff\xff\xff\xff"), order=order)
            np.testing.assert_array_equal(read(encoded(picture(), "JPEG", exif=exif)), sound)


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0II",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0no TIFF",
        exif_of(turned(0)),
    ],
)
def test_broken_exif_is_ignored(read, exif):
    np.testing.assert_array_equal(
        read(encoded(picture(), "JPEG", exif=exif)), read(encoded(picture(), "JPEG"))
    )


@pytest.mark.parametrize(
    "tag",
    [
        (0x0112, 2, 2, b"6\0"),
        (0x0112, 5, 1, b"\x08\0\0\0"),
        (0x0112, 3, 1, b"\x09\0"),
        (0x0112, 4, 1, b"\xff" * 4),
    ],
)
def test_an_invalid_orientation_is_ignored(read, tag):
    np.testing.assert_array_equal(
        read(encoded(picture(), "JPEG", exif=exif_of(tag))), read(encoded(picture(), "JPEG"))
    )


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


@pytest.mark.parametrize(
    "broken",
    [
        segment(
            0xE2,
            b"MPF\0II*\0\x08\0\0\0\1\0" + struct.pack("<HHI", 0xB001, 2, 4) + b"abc\0" + bytes(4),
        ),
        segment(
            0xE2,
            b"MPF\0II*\0\x08\0\0\0\1\0" + struct.pack("<HHI", 0xB000, 7, 4) + b"0100" + bytes(4),
        ),
        segment(0xE2, b"MPF\0"),
        segment(0xE2, b"ICC_PROFILE\0"),
        segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\xff\xff\xff\xff"),
        segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed"),
        segment(0xE0, b"JFIF"),
        segment(0xFE, b""),
    ],
)
def test_broken_segments_of_a_jpeg_leave_the_image(read, broken):
    exif = exif_of(turned(6), (0x011A, 2, 4, b"300\0"))
    sound = encoded(picture(), "JPEG", exif=exif)
    np.testing.assert_array_equal(read(sound[:2] + broken + sound[2:]), read(sound))


# --- metadata of PNG and TIFF ---


def profile(size: int) -> bytes:
    return b"name\0\0" + zlib.compress(bytes(size))


@pytest.mark.parametrize(
    ("name", "body"),
    [
        (b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 2_000_000)),
        (b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(b"x" * 2_000_000)),
        (b"tEXt", b"Comment\0" + b"x" * 2_000_000),
        (b"iCCP", profile(5_000_000)),
        (b"iCCP", b"name\0\7nothing known"),
        (b"zTXt", b"Comment\0\5nothing known"),
        (b"pHYs", b"\0"),
        (b"eXIf", b"II*\0\xff"),
        (b"gAMA", b""),
        (b"cHRM", b"\0"),
        (b"acTL", b"\xff"),
    ],
)
def test_metadata_of_a_png_leaves_the_image(read, name, body):
    sound = encoded(picture(), "PNG", exif=exif_of(turned(6))[6:])
    np.testing.assert_array_equal(read(with_chunk(sound, name, body)), read(sound))
    if name == b"eXIf":
        return  # a file has one
    behind = sound[:-12] + chunk(name, body) + sound[-12:]  # many programs write text there
    np.testing.assert_array_equal(read(behind), read(sound))


def test_a_wrong_checksum_of_text_leaves_the_image(read):
    sound = encoded(picture(), "PNG")
    text = chunk(b"tEXt", b"Comment\0text")
    np.testing.assert_array_equal(read(sound[:33] + text[:-1] + b"\0" + sound[33:]), read(sound))
    pixels = sound.replace(b"IDAT", b"IDAT\1", 1)
    with pytest.raises(Unusable):
        read(pixels)


def test_broken_tags_of_a_tiff_leave_the_image(read):
    content = encoded(picture(), "TIFF", tiffinfo={282: 72.0, 283: 72.0, 296: 3})
    sound = read(content)
    (start,) = struct.unpack("<I", content[4:8])
    (count,) = struct.unpack("<H", content[start : start + 2])
    places = {
        struct.unpack("<H", content[at : at + 2])[0]: at
        for at in range(start + 2, start + 2 + 12 * count, 12)
    }
    text = struct.pack("<HHI4s", 282, 2, 4, b"300\0")
    np.testing.assert_array_equal(
        read(content[: places[282]] + text + content[places[282] + 12 :]), sound
    )


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_a_turned_tiff_of_every_mode_is_upright(tmp_path, mode):
    """Pillow maps such files into memory, with width and height exchanged."""
    pixels = np.zeros((40, 60), np.uint8)
    pixels[:20] = 200
    upright = Image.fromarray(pixels)
    made = (
        Image.fromarray(pixels.astype(np.uint16) * 257) if mode == "I;16" else upright.convert(mode)
    )
    made.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.tiff", tiffinfo={274: 6})
    seen = read_image(tmp_path / "a.tiff", WHOLE)
    assert seen[:, 1].min() >= 198
    assert seen[:, -2].max() <= 2


# --- WebP ---


def webp_chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    """Name and content of each chunk of a WebP."""
    chunks, at = [], 12
    while at < len(content):
        name, size = struct.unpack_from("<4sI", content, at)
        chunks.append((name, content[at + 8 : at + 8 + size]))
        at += 8 + size + size % 2
    return chunks


def riff(chunks: list[tuple[bytes, bytes]]) -> bytes:
    body = b"".join(
        struct.pack("<4sI", name, len(part)) + part + bytes(len(part) % 2) for name, part in chunks
    )
    return struct.pack("<4sI4s", b"RIFF", 4 + len(body), b"WEBP") + body


@pytest.mark.parametrize("lossless", [True, False])
def test_broken_metadata_of_a_webp_leaves_the_image(read, lossless):
    image = picture()
    image.putalpha(Image.new("L", image.size, 255))
    whole = encoded(
        image, "WEBP", lossless=lossless, exif=exif_of(turned(6), (0x011A, 2, 4, b"300"))
    )
    chunks, wanted = webp_chunks(whole), read(whole)
    flags = bytes([chunks[0][1][0] | 0x24]) + chunks[0][1][1:]  # colour profile and XMP
    for content in (
        whole[:-12],  # cut inside of EXIF, after the orientation
        *(whole[:4] + size + whole[8:] for size in (bytes(4), b"\xff" * 4, b"\0\0\0\1")),
        whole + b"junk" * 100,
        riff([(b"VP8X", flags), (b"ICCP", b"\xff" * 3_000_000), *chunks[1:], (b"XMP ", b"<x")]),
        riff([*chunks[:-1], (b"EXIF", b"Exif\0\0" + chunks[-1][1])]),
    ):
        np.testing.assert_array_equal(read(content), wanted)


def test_a_webp_with_cut_pixels_is_refused(read):
    whole = encoded(picture(), "WEBP", lossless=True, exif=exif_of(turned(6)))
    pixels = whole.index(b"VP8L")
    with pytest.raises(Unusable, match="unreadable"):
        read(whole[: pixels + 20])
