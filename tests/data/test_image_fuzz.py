"""Damaged images of every format give an image, or a refusal with a reason."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import all_kinds, chunk, encoded, exif_of, picture, turned

from furnace_hpc.data.decode.images import ImageKnobs, read_image
from furnace_hpc.data.packing.rejects import Refusal, Unusable

SMALL = ImageKnobs(size=16)
KINDS = all_kinds()
BYTES = [
    b"",
    b"\0",
    b"\xff",
    b"\xff\xff\xff\xff",
    b"\0\0\0\0",
    b"\x7f\xff\xff\xff",
    b"\x80\0\0\0",
    b"\0\1",
]


def outcome(path) -> str:
    """The reason of a refusal, or "image". Any other exception fails the test."""
    try:
        pixels = read_image(path, SMALL)
    except Unusable as error:
        Refusal("train", "1", "image", path.name, error.reason, error.detail, False).line().decode()
        return error.reason
    assert pixels.shape == (3, 16, 16)
    assert pixels.dtype == np.uint8
    return "image"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "image"


@pytest.mark.parametrize("kind", KINDS)
def test_undamaged_images_are_read(path, kind):
    path.write_bytes(KINDS[kind])
    assert outcome(path) == "image"


@pytest.mark.fuzz
@given(st.sampled_from(list(KINDS)), st.data())
def test_damaged_images_give_an_image_or_a_refusal(path, kind, data):
    content = KINDS[kind]
    for _ in range(data.draw(st.integers(1, 4))):
        # Half of the places are in the header, where damage does most.
        at = data.draw(st.integers(0, 200) | st.integers(0, len(content)))
        new = data.draw(st.sampled_from(BYTES) | st.binary(max_size=8))
        drop = data.draw(st.sampled_from([len(new), 0, 1, 4, 100]))
        content = content[:at] + new + content[at + drop :]
    path.write_bytes(content)
    outcome(path)


@pytest.mark.fuzz
@given(st.sampled_from(list(KINDS)), st.floats(0, 1))
def test_cut_images_give_an_image_or_a_refusal(path, kind, part):
    path.write_bytes(KINDS[kind][: round(part * len(KINDS[kind]))])
    outcome(path)


TAGS = st.tuples(
    st.integers(0, 0xFFFF).filter(lambda tag: tag != 0x0112)
    | st.sampled_from([0x011A, 0x011B, 0x0128, 0x8769, 0x8825]),
    st.integers(0, 20),
    st.sampled_from([0, 1, 2, 4, 1000, 2**31, 2**32 - 1]),
    st.binary(min_size=4, max_size=4),
)


@pytest.mark.fuzz
@given(
    st.lists(TAGS, min_size=1, max_size=5),
    st.integers(1, 8),
    st.sampled_from("<>"),
    st.sampled_from(["JPEG", "PNG"]),
)
def test_other_exif_tags_do_not_change_the_image(path, tags, value, order, kind):
    path.write_bytes(encoded(picture(), kind, exif=exif_of(turned(value, order), order=order)))
    wanted = read_image(path, SMALL)
    path.write_bytes(
        encoded(picture(), kind, exif=exif_of(turned(value, order), *tags, order=order))
    )
    np.testing.assert_array_equal(read_image(path, SMALL), wanted)


@pytest.mark.fuzz
@given(st.lists(TAGS, min_size=1, max_size=4), st.sampled_from(["raw", "tiff_lzw"]))
def test_odd_tags_of_tiff_give_an_image_or_a_refusal(path, tags, compression):
    content = encoded(picture(), "TIFF", compression=compression)
    (start,) = struct.unpack("<I", content[4:8])
    (count,) = struct.unpack("<H", content[start : start + 2])
    entries = content[start + 2 : start + 2 + 12 * count]
    for tag in tags:
        entries += struct.pack("<HHI", *tag[:3]) + tag[3]
    table = struct.pack("<H", count + len(tags)) + entries + bytes(4)
    path.write_bytes(content[:4] + struct.pack("<I", len(content)) + content[8:] + table)
    outcome(path)


@pytest.mark.fuzz
@given(st.from_regex(rb"[a-zA-Z]{4}", fullmatch=True), st.binary(max_size=100), st.booleans())
def test_odd_chunks_of_png_give_an_image_or_a_refusal(path, name, body, is_broken):
    content = encoded(picture(), "PNG")
    made = chunk(name, body)
    path.write_bytes(content[:33] + (made[:-1] + b"\0" if is_broken else made) + content[33:])
    found = outcome(path)
    if name[:1].islower() and name not in (b"tRNS", b"fcTL", b"acTL", b"fdAT"):
        assert found == "image"  # not one of these chunks is needed for the pixels
