"""FLAC, Ogg, MP3 and other sounds with wrong headers: all samples or a refusal, never fewer."""

import os
import resource
import struct

import numpy as np
import pytest
from sound_files import (
    RATE,
    SOUND,
    chunk,
    decoded,
    encoded,
    mp3,
    refusal,
    wav,
    with_frames,
    with_sizes,
    with_total,
)

from furnace_hpc.data.decode.audio import SoundKnobs, read_sound, read_wave
from furnace_hpc.data.packing.rejects import Unusable

# --- FLAC ---


@pytest.mark.parametrize(
    ("subtype", "channels"), [("PCM_16", 1), ("PCM_16", 2), ("PCM_24", 2), ("PCM_S8", 1)]
)
def test_a_flac_with_a_wrong_total(tmp_path, subtype, channels):
    content = encoded("FLAC", subtype, 20_000, channels)
    whole = decoded(content, tmp_path)
    assert len(whole) == 20_000
    for samples in (0, 1, 4096, 19_999):
        np.testing.assert_array_equal(decoded(with_total(content, samples), tmp_path), whole)
    for samples in (20_001, 2**36 - 1):
        assert (
            refusal(with_total(content, samples), tmp_path).detail
            == f"20,000 of {samples:,} samples"
        )


def test_a_flac_with_missing_frames_is_refused(tmp_path):
    content = encoded("FLAC", "PCM_16", 80_000)
    head = content[(first := content.index(b"\xff\xf8")) : first + 4]
    places = [place for place in range(len(content)) if content.startswith(head, place)]
    assert len(places) == 19  # of 4,096 samples; the last one is shorter and has another head
    for declared in (80_000, 0):
        hole = with_total(content[: places[3]] + content[places[4] :], declared)
        assert refusal(hole, tmp_path).reason == "truncated"
        cut = with_total(content, declared)[:-300]
        assert refusal(cut, tmp_path).reason in ("truncated", "unreadable")
    assert refusal(content[: places[5]], tmp_path).reason == "truncated"
    later, whole = content[: places[0]] + content[places[2] :], decoded(content, tmp_path)
    for declared in (0, 80_000 - 2 * 4096):  # cut out of a longer file
        heard = decoded(with_total(later, declared), tmp_path)
        np.testing.assert_array_equal(heard, whole[2 * 4096 :])
    assert refusal(with_total(later, 80_000), tmp_path).reason == "truncated"
    np.testing.assert_array_equal(
        decoded(content + b"TAG" + bytes(125), tmp_path), decoded(content, tmp_path, "b.flac")
    )


# --- Ogg ---


def pages(content: bytes) -> list[bytes]:
    starts = [place for place in range(len(content)) if content.startswith(b"OggS\0", place)]
    return [content[a:b] for a, b in zip(starts, [*starts[1:], len(content)], strict=True)]


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_with_a_missing_page_is_refused(tmp_path, subtype):
    content = encoded("OGG", subtype, 80_000)
    whole = decoded(content, tmp_path)
    assert len(whole) == 80_000
    np.testing.assert_array_equal(decoded(content + b"junk" * 100, tmp_path), whole)
    parts = pages(content)
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 1
    for broken, reason, detail in (
        (b"".join(parts[:-1]), "truncated", "the last page is missing"),
        (content[:-5], "truncated", "the last page is cut"),
        (content[: len(content) // 2], "truncated", "the last page is cut"),
        (b"".join(parts[:3] + parts[4:]), "truncated", "page 3 is missing: page 4 follows"),
        (bytes(damaged), "unreadable", "page "),
        (content + content, "unreadable", "several streams in one file"),
    ):
        error = refusal(broken, tmp_path)
        assert error.reason == reason
        assert error.detail.startswith(detail)


# --- MP3 ---


def frame_sizes(content: bytes) -> list[int]:
    """Sizes of the frames of an MPEG 2 layer III file at 16 kHz, which begins with one."""
    rates, place, sizes = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160), 0, []
    while place < len(content):
        sizes.append(
            72_000 * rates[content[place + 2] >> 4] // RATE + (content[place + 2] >> 1 & 1)
        )
        place += sizes[-1]
    return sizes


@pytest.mark.parametrize("mode", ["CONSTANT", "AVERAGE", "VARIABLE"])
def test_an_mp3_without_info_frame_is_read(tmp_path, mode):
    content = mp3(mode)
    whole = decoded(content, tmp_path)
    assert len(whole) == 80_000
    sizes = frame_sizes(content)
    heard = decoded(content[sizes[0] :], tmp_path)
    assert len(heard) == 576 * (len(sizes) - 1)
    np.testing.assert_array_equal(heard[1105:81_105], whole)  # encoder and decoder begin late


@pytest.mark.parametrize("rate", [8000, 24_000, 32_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_mp3_of_every_rate(tmp_path, rate, channels):
    content = mp3("VARIABLE", rate, 20_000, channels)
    declared = struct.unpack_from(">I", content, content.index(b"Xing") + 8)[0]
    knobs = SoundKnobs(sample_rate_hz=rate)
    heard = []
    wrong = (declared // 2, declared - 1, declared + 1, 2**32 - 1)
    for made in (content, *(with_frames(content, frames) for frames in wrong)):
        (tmp_path / "a.mp3").write_bytes(made)
        heard.append(read_wave(tmp_path / "a.mp3", knobs))
    frame = 1152 if rate >= 32_000 else 576
    assert [len(wave) for wave in heard] == [20_000] + [declared * frame] * 4
    for wave in heard[1:]:
        np.testing.assert_allclose(wave[1105:21_105], heard[0], atol=1e-6)


def test_a_cut_or_damaged_mp3_is_refused(tmp_path):
    content = mp3()
    sizes = frame_sizes(content)
    middle = sum(sizes[:70])
    for broken in (
        content[:-1],
        content[: sum(sizes[:-1])],
        content[:middle],
        content[: middle + 1],
    ):
        assert refusal(broken, tmp_path).reason == "truncated"
    assert refusal(content[sizes[0] :][:-1], tmp_path).detail.endswith("is cut")
    for broken in (
        content[:middle] + b"x" + content[middle + 1 :],
        content[:middle] + b"junk" + content[middle:],
    ):
        assert refusal(broken, tmp_path).detail.startswith(f"no frame at byte {middle:,}")
    gap = content[:middle] + content[sum(sizes[:71]) :]
    assert refusal(gap, tmp_path).detail == f"{len(sizes) - 2} of {len(sizes) - 1} frames"


def test_tags_and_several_mp3s_in_one_file(tmp_path):
    content = mp3()
    whole, sizes = decoded(content, tmp_path), frame_sizes(content)
    size = 2_000_000
    id3 = (
        b"ID3\4\0\0"
        + bytes(size >> shift & 127 for shift in (21, 14, 7, 0))
        + b"\xff\xfb" * (size // 2)
    )
    ape = b"APETAGEX" + struct.pack("<IIII", 2000, 42, 0, 0) + bytes(8 + 42)
    tag = b"TAG" + bytes(125)
    for made in (
        id3 + content,
        content + tag,
        content + ape + tag,
        content + b"junk" * 100,
        content + bytes(5000),
    ):
        np.testing.assert_array_equal(decoded(made, tmp_path), whole)
    bare = content[sizes[0] :]
    every = decoded(bare, tmp_path)
    for made in (id3 + bare, bare + tag, bare + ape + tag, bare + bytes(5000)):
        np.testing.assert_array_equal(decoded(made, tmp_path), every)
    assert refusal(bare + b"junk" * 100, tmp_path).detail.startswith("no frame at byte")
    for made in (content + content, content + tag + id3 + content, bare + content):
        twice = decoded(made, tmp_path)
        assert len(twice) == 2 * len(every)
        np.testing.assert_array_equal(twice[: len(every)], every)
        np.testing.assert_allclose(twice[-70_000:], every[-70_000:], atol=1e-6)


def test_a_long_mp3_is_read_in_blocks(tmp_path, monkeypatch):
    """soundfile would seek after each read, which changes the following samples of an MP3."""
    content = mp3()
    whole = decoded(content, tmp_path)
    monkeypatch.setattr("furnace_hpc.data.decode.audio._BLOCK", 5000)
    np.testing.assert_array_equal(decoded(content, tmp_path), whole)


# --- any file ---


def test_a_small_file_with_large_sizes_needs_no_memory(tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    samples = chunk(b"data", bytes(40_000))
    assert (
        refusal(with_sizes(wav(samples), 1_700_000_036, 1_700_000_000), tmp_path).reason
        == "truncated"
    )
    assert refusal(with_total(encoded("FLAC", "PCM_16"), 2**36 - 1), tmp_path).reason == "truncated"
    assert len(decoded(with_frames(mp3(), 2**32 - 1), tmp_path)) > 80_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "KiB"


def test_aiff_and_au(tmp_path):
    whole = decoded(encoded("WAV", "PCM_16"), tmp_path)
    for kind in ("AIFF", "AU"):
        content = encoded(kind, "PCM_16")
        np.testing.assert_array_equal(decoded(content, tmp_path), whole)
        assert refusal(content[:-1000], tmp_path).reason == "truncated"
    for size in (b"\xff" * 4, bytes(4)):
        np.testing.assert_array_equal(decoded(content[:8] + size + content[12:], tmp_path), whole)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\0\0\0\x20ftypM4A \0\0\0\0", "MPEG-4"),
        (b"\x1a\x45\xdf\xa3webm", "Matroska or WebM"),
        (b"\xff\xf1\x50\x80\x1b\x7f\xfc", "AAC"),
        (b"<!DOCTYPE html><html>", "HTML or XML"),
        (b"nothing of all that", "neither WAV, FLAC, Ogg nor MP3"),
    ],
)
def test_other_formats_are_refused_by_name(tmp_path, content, what):
    error = refusal(content, tmp_path)
    assert error.reason == "unreadable"
    assert error.detail.startswith(what)
    assert error.detail.endswith("convert it to FLAC, e.g. ffmpeg -i FILE out.flac")


def test_only_a_regular_file_is_opened(tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    (tmp_path / "b.wav").mkdir()
    for name in ("a.wav", "b.wav"):
        with pytest.raises(Unusable, match="unreadable.*no regular file"):
            read_sound(tmp_path / name, SOUND)
