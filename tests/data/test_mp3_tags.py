"""Tags and other bytes around the frames of an MP3 lose no sample."""

import os
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sound_files import decoded, mp3, refusal

from furnace_hpc.data.packing.rejects import Unusable

SHORT = mp3(samples=9000)  # a clip of half a second
INFO_BYTES = 288  # of its first frame, which has no sound
BARE = SHORT[INFO_BYTES:]


def id3(size: int, body: bytes, flags: int = 0) -> bytes:
    """A tag with this size in its header."""
    return b"ID3\4\0" + bytes([flags, *(size >> shift & 127 for shift in (21, 14, 7, 0))]) + body


def ape(flags: int, size: int, items: int = 1) -> bytes:
    """The header or footer of an APE tag."""
    return b"APETAGEX" + struct.pack("<IIII", 2000, size, items, flags) + bytes(8)


ITEM = b"\5\0\0\0\0\0\0\0Title\0hello"
FOOTER = ape(0, len(ITEM) + 32)
TAG = b"TAG" + b"title".ljust(125, b"\0")
LYRICS = b"LYRICSBEGININD00002000LYR00005hello000035LYRICS200"
AFTER = {
    "ID3v1": TAG,
    "APE with footer": ITEM + FOOTER,
    "APE with footer, then ID3v1": ITEM + FOOTER + TAG,
    "APE with header and footer": ape(0xA000_0000, len(ITEM) + 32)
    + ITEM
    + ape(0x8000_0000, len(ITEM) + 32),
    "lyrics": LYRICS + TAG,
    "extended ID3v1": b"TAG+" + bytes(223) + TAG,
    "ID3 with footer": id3(100, b"a" * 100, 16) + b"3DI\4\0\x10\0\0\0\x64",
    "ID3 with unmarked footer": id3(100, b"a" * 100) + b"3DI\4\0\0\0\0\0\x64",
    "zeros": bytes(5000),
    "ID3v1, then zeros": TAG[:-1] + b"\1" + bytes(77),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Samples of the short MP3, with and without its info frame."""
    folder = tmp_path_factory.mktemp("mp3")
    return {content: decoded(content, folder) for content in (SHORT, BARE)}


@pytest.mark.parametrize("content", [SHORT, BARE], ids=["info", "bare"])
@pytest.mark.parametrize("after", AFTER)
def test_tags_after_the_frames(tmp_path, whole, content, after):
    np.testing.assert_array_equal(decoded(content + AFTER[after], tmp_path), whole[content])


@pytest.mark.parametrize("content", [SHORT, BARE], ids=["info", "bare"])
@pytest.mark.parametrize(
    "before",
    [
        id3(500, b"a" * 500),
        id3(500, b"a" * 500) + id3(30, b"b" * 30),
        id3(200, b"a" * 200) + bytes(999),
        bytes(500),
        ape(0xA000_0000, 42) + b"x" * 10 + ape(0x8000_0000, 42),
    ],
    ids=["ID3", "two ID3", "padding", "zeros", "APE"],
)
def test_tags_before_the_frames(tmp_path, whole, content, before):
    np.testing.assert_array_equal(decoded(before + content, tmp_path), whole[content])


@pytest.mark.parametrize("size", [0, 300, 700, 2**27], ids=["0", "too small", "too large", "huge"])
def test_a_wrong_size_of_id3(tmp_path, whole, size):
    """The info frame counts the frames. Without it, a frame may be among the extra bytes."""
    tag = id3(size, b"a" * 500)
    np.testing.assert_array_equal(
        decoded(tag + SHORT, tmp_path)[-9000:][:8000], whole[SHORT][:8000]
    )
    if size > 500:
        np.testing.assert_array_equal(decoded(tag + BARE, tmp_path), whole[BARE])
    else:
        assert "before the first whole frame" in refusal(tag + BARE, tmp_path).detail


def test_a_cut_beginning_is_refused(tmp_path):
    for cut in (1, 3, 100, INFO_BYTES + 1, INFO_BYTES + 100):
        assert refusal(SHORT[cut:], tmp_path).reason == "unreadable"


def test_a_file_of_macos_beside_an_mp3(tmp_path, whole, monkeypatch):
    """libsndfile looks for `._NAME`, also in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("._", "._a.bin"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7" + bytes(78))
    for content in (SHORT, BARE):
        np.testing.assert_array_equal(decoded(content, tmp_path), whole[content])
    for name in ("._", "._a.bin"):
        (tmp_path / name).unlink()
        os.mkfifo(tmp_path / name)  # opening it would wait
    np.testing.assert_array_equal(decoded(SHORT, tmp_path), whole[SHORT])


@pytest.mark.fuzz
@given(
    before=st.lists(st.binary(max_size=40) | st.sampled_from([id3(20, b"a" * 20)]), max_size=3),
    after=st.lists(st.binary(max_size=40) | st.sampled_from(list(AFTER.values())), max_size=3),
    has_info=st.booleans(),
)
def test_fuzz_other_bytes_lose_no_sample(tmp_path_factory, before, after, has_info, whole):
    content = SHORT if has_info else BARE
    try:
        heard = decoded(b"".join((*before, content, *after)), tmp_path_factory.getbasetemp())
    except Unusable:
        return
    assert len(heard) >= len(whole[content])
