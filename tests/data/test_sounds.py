"""Sound files whose headers are wrong: all samples, or a refusal that names what is wrong, and never fewer samples."""

import io
import os
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from furnace_hpc.data.decode.audio import SoundKnobs, read_sound, read_wave
from furnace_hpc.data.packing.rejects import Unusable

SOUND = SoundKnobs()
RATE = 16_000
NOISE = np.random.default_rng(0).normal(0, 0.1, 80_000).astype(np.float32)
UNKNOWN = (
    0,
    0x7FFF_F000,
    0x7FFF_F024,
    0x7FFF_FFFF,
    0x8000_0000,
    0x8000_0024,
    0xFFFF_FFF7,
    0xFFFF_FFFF,
)
WAV_SUBTYPES = ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW")


def encoded(
    kind: str, subtype: str, samples: int = 20_000, channels: int = 1, rate: int = RATE, **more
) -> bytes:
    soundfile.write(
        file := io.BytesIO(),
        np.stack([NOISE[:samples]] * channels, 1),
        rate,
        format=kind,
        subtype=subtype,
        **more,
    )
    return file.getvalue()


def mp3(
    mode: str = "VARIABLE", rate: int = RATE, samples: int = 80_000, channels: int = 1
) -> bytes:
    return encoded(
        "MP3", "MPEG_LAYER_III", samples, channels, rate, bitrate_mode=mode, compression_level=0.5
    )  # with an info frame


def decoded(content: bytes, tmp_path: Path, name: str = "a.bin") -> np.ndarray:
    (tmp_path / name).write_bytes(content)
    return read_wave(tmp_path / name, SOUND)


def refusal(content: bytes, tmp_path: Path) -> Unusable:
    with pytest.raises(Unusable) as caught:
        decoded(content, tmp_path)
    return caught.value


def with_sizes(content: bytes, riff: int | None = None, data: int | None = None) -> bytes:
    made, place = bytearray(content), content.index(b"data")
    for where, size in ((4, riff), (place + 4, data)):
        if size is not None:
            made[where : where + 4] = struct.pack("<I", size)
    return bytes(made)


def chunk(name: bytes, content: bytes, padding: bytes = b"") -> bytes:
    return name + struct.pack("<I", len(content)) + content + padding


def wav(*chunks: bytes, riff: int | None = None) -> bytes:
    """A WAV of these chunks behind the fmt chunk of 16-bit mono."""
    body = (
        b"WAVE"
        + chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16))
        + b"".join(chunks)
    )
    return b"RIFF" + struct.pack("<I", len(body) if riff is None else riff) + body


PCM = (NOISE[:4000] * 2**15).astype("<i2")
HEARD = PCM / np.float32(2**15)
DATA, LIST = (
    chunk(b"data", PCM.tobytes()),
    chunk(b"LIST", b"INFOISFT" + struct.pack("<I", 4) + b"me\0\0"),
)


# --- WAV ---


@pytest.mark.parametrize("subtype", WAV_SUBTYPES)
def test_a_wav_of_unknown_size_is_read_to_its_end(tmp_path, subtype):
    content = encoded("WAV", subtype, samples=2000)
    whole = decoded(content, tmp_path)
    assert len(whole) == 2000
    for riff in (None, *UNKNOWN, len(content)):
        for data in (None, *UNKNOWN):
            np.testing.assert_array_equal(decoded(with_sizes(content, riff, data), tmp_path), whole)


def test_a_wav_of_unknown_size_gives_what_there_is(tmp_path):
    for data in UNKNOWN:
        cut = with_sizes(wav(DATA), 0xFFFF_FFFF, data)[:-2001]  # in the middle of a sample
        np.testing.assert_array_equal(decoded(cut, tmp_path), HEARD[:2999])
        # RIFF's size is told
        assert refusal(with_sizes(wav(DATA), None, data)[:-2000], tmp_path).reason == "truncated"


@pytest.mark.parametrize("riff", [None, *UNKNOWN])
def test_a_cut_wav_is_refused_by_its_data_chunk(tmp_path, riff):
    error = refusal(with_sizes(wav(DATA), riff)[:-2001], tmp_path)
    assert (error.reason, error.detail) == ("truncated", "2,999 of 4,000 samples")


@pytest.mark.parametrize(
    "content",
    [
        wav(LIST, DATA),
        wav(DATA, LIST),
        wav(LIST, DATA, LIST, chunk(b"id3 ", b"ID3")),  # the last one lacks its padding byte
        wav(chunk(b"junk", b"x" * 101, b"\0"), DATA),
        wav(chunk(b"junk", b"x" * 101), DATA),  # without padding
        wav(DATA, LIST)[:-7],  # cut behind the samples
        wav(DATA, riff=len(wav(DATA))),
        wav(DATA) + b"TAG" + bytes(125),
        wav(DATA) + b"junk" * 100,
        wav(DATA, riff=len(wav(DATA))) + b"junk" * 100,
        wav(DATA) + bytes(9000),
        b"ID3\4\0\0\0\0\x01\x00" + bytes(128) + wav(DATA),
    ],
)
def test_what_stands_beside_the_samples_does_no_harm(tmp_path, content):
    np.testing.assert_array_equal(decoded(content, tmp_path), HEARD)


def test_an_odd_number_of_bytes_is_padded_or_not(tmp_path):
    samples = (NOISE[:1001] * 100 + 128).astype(np.uint8)
    head = wav().replace(
        struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16),
        struct.pack("<HHIIHH", 1, 1, RATE, RATE, 1, 8),
    )
    for padding, behind in ((b"\0", LIST), (b"", LIST), (b"\0", b""), (b"", b"")):
        content = head + chunk(b"data", samples.tobytes(), padding) + behind
        heard = decoded(with_sizes(content, len(content) - 8), tmp_path)
        np.testing.assert_array_equal(heard, (samples.astype(np.float32) - 128) / 128)


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (wav(DATA, DATA), "a second data chunk at byte 8,044, wanted one"),
        (
            wav(DATA, riff=len(wav(DATA)) - 8) + PCM.tobytes(),
            "8,000 bytes behind the samples are no chunk",
        ),
        (with_sizes(wav(DATA), data=7000), "1,000 bytes behind the samples are no chunk"),
        (with_sizes(wav(DATA), data=7999), "7,999 bytes of samples, wanted a multiple of 2"),
        (wav(LIST), "no data chunk at byte 60"),
        (
            b"RIFF" + struct.pack("<I", len(DATA) + 4) + b"WAVE" + DATA,
            "no fmt chunk before the samples",
        ),
    ],
)
def test_a_wav_whose_sizes_contradict_is_refused(tmp_path, content, detail):
    error = refusal(content, tmp_path)
    assert error.reason == "unreadable"
    assert error.detail.startswith(detail)


def test_other_kinds_of_wav(tmp_path):
    whole = decoded(encoded("WAV", "PCM_16"), tmp_path)
    large = encoded("RF64", "PCM_16")
    size = large.index(b"ds64") + 16
    for content in (
        encoded("WAVEX", "PCM_16"),
        encoded("WAV", "PCM_16", endian="BIG"),
        large,
        b"BW64" + large[4:],
        large[:size] + bytes(8) + large[size + 8 :],
        large[:size] + b"\xff" * 8 + large[size + 8 :],
    ):
        np.testing.assert_array_equal(decoded(content, tmp_path), whole)
    assert refusal(large[:-3], tmp_path).detail == "19,998 of 20,000 samples"
    for subtype in ("IMA_ADPCM", "MS_ADPCM", "GSM610"):
        content = encoded("WAV", subtype)
        whole = decoded(content, tmp_path)
        assert len(whole) >= 20_000
        np.testing.assert_array_equal(decoded(with_sizes(content, 0, 0), tmp_path), whole)
        assert refusal(content[:-1000], tmp_path).reason == "truncated"


def test_a_wav_without_samples_is_empty(tmp_path):
    for content in (
        wav(chunk(b"data", b"")),
        wav(chunk(b"data", b""), LIST),
        wav(LIST, chunk(b"data", b"")),
    ):
        assert refusal(content, tmp_path).reason == "empty"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_float_that_is_no_number_is_refused(tmp_path, value):
    wave = NOISE[:1000].copy()
    wave[500] = value
    for subtype in ("FLOAT", "DOUBLE"):
        soundfile.write(file := io.BytesIO(), wave, RATE, format="WAV", subtype=subtype)
        assert refusal(file.getvalue(), tmp_path).reason == "not finite"


def test_a_small_file_that_promises_much_costs_no_memory(tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    samples = chunk(b"data", bytes(40_000))
    assert (
        refusal(with_sizes(wav(samples), 1_700_000_036, 1_700_000_000), tmp_path).reason
        == "truncated"
    )
    assert refusal(total(encoded("FLAC", "PCM_16"), 2**36 - 1), tmp_path).reason == "truncated"
    assert len(decoded(frames_told(mp3(), 2**32 - 1), tmp_path)) > 80_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "KiB"


# --- FLAC ---


def total(content: bytes, samples: int) -> bytes:
    """The FLAC file with so many samples in its header (36 bits)."""
    fields = int.from_bytes(content[18:26], "big")
    return content[:18] + (fields >> 36 << 36 | samples).to_bytes(8, "big") + content[26:]


@pytest.mark.parametrize(
    ("subtype", "channels"), [("PCM_16", 1), ("PCM_16", 2), ("PCM_24", 2), ("PCM_S8", 1)]
)
def test_a_flac_is_read_whatever_total_it_tells(tmp_path, subtype, channels):
    content = encoded("FLAC", subtype, 20_000, channels)
    whole = decoded(content, tmp_path)
    assert len(whole) == 20_000
    for samples in (0, 1, 4096, 19_999):
        np.testing.assert_array_equal(decoded(total(content, samples), tmp_path), whole)
    for samples in (20_001, 2**36 - 1):
        assert refusal(total(content, samples), tmp_path).detail == f"20,000 of {samples:,} samples"


def test_a_flac_with_a_hole_or_an_end_cut_off_is_refused(tmp_path):
    content = encoded("FLAC", "PCM_16", 80_000)
    head = content[(first := content.index(b"\xff\xf8")) : first + 4]
    places = [place for place in range(len(content)) if content.startswith(head, place)]
    assert len(places) == 19  # of 4,096 samples; the last one is shorter and has another head
    for told in (80_000, 0):
        hole = total(content[: places[3]] + content[places[4] :], told)
        assert refusal(hole, tmp_path).reason == "truncated"
        assert refusal(total(content, told)[:-300], tmp_path).reason in ("truncated", "unreadable")
    assert refusal(content[: places[5]], tmp_path).reason == "truncated"
    later, whole = content[: places[0]] + content[places[2] :], decoded(content, tmp_path)
    for told in (0, 80_000 - 2 * 4096):  # cut out of a longer file
        np.testing.assert_array_equal(decoded(total(later, told), tmp_path), whole[2 * 4096 :])
    assert refusal(total(later, 80_000), tmp_path).reason == "truncated"
    np.testing.assert_array_equal(
        decoded(content + b"TAG" + bytes(125), tmp_path), decoded(content, tmp_path, "b.flac")
    )


# --- Ogg ---


def pages(content: bytes) -> list[bytes]:
    starts = [place for place in range(len(content)) if content.startswith(b"OggS\0", place)]
    return [content[a:b] for a, b in zip(starts, [*starts[1:], len(content)], strict=True)]


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_that_lacks_a_page_is_refused(tmp_path, subtype):
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


def frames_told(content: bytes, frames: int) -> bytes:
    place = max(content.find(b"Xing"), content.find(b"Info")) + 8
    return content[:place] + struct.pack(">I", frames) + content[place + 4 :]


@pytest.mark.parametrize("mode", ["CONSTANT", "AVERAGE", "VARIABLE"])
def test_an_mp3_without_info_frame_gives_all_frames(tmp_path, mode):
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
    told = struct.unpack_from(">I", content, content.index(b"Xing") + 8)[0]
    knobs = SoundKnobs(sample_rate_hz=rate)
    heard = []
    for made in (
        content,
        *(frames_told(content, frames) for frames in (told // 2, told - 1, told + 1, 2**32 - 1)),
    ):
        (tmp_path / "a.mp3").write_bytes(made)
        heard.append(read_wave(tmp_path / "a.mp3", knobs))
    assert [len(wave) for wave in heard] == [20_000] + [
        told * (1152 if rate >= 32_000 else 576)
    ] * 4
    for wave in heard[1:]:
        np.testing.assert_allclose(wave[1105:21_105], heard[0], atol=1e-6)


def test_an_mp3_that_is_cut_or_damaged_is_refused(tmp_path):
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


def test_a_long_mp3_does_not_depend_on_how_it_is_read(tmp_path, monkeypatch):
    """soundfile seeks after each read, and what follows in MP3 is not what was encoded."""
    content = mp3()
    whole = decoded(content, tmp_path)
    monkeypatch.setattr("furnace_hpc.data.decode.audio._BLOCK", 5000)
    np.testing.assert_array_equal(decoded(content, tmp_path), whole)


# --- any file ---


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
def test_what_is_not_decoded_is_named(tmp_path, content, what):
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


FILES = {
    **{
        f"WAV {subtype}": encoded("WAV", subtype, 3000, 2)
        for subtype in (*WAV_SUBTYPES, "IMA_ADPCM", "MS_ADPCM")
    },
    "WAVEX": encoded("WAVEX", "PCM_16", 3000, 2),
    "RF64": encoded("RF64", "PCM_16", 3000, 2),
    "WAV with chunks": wav(LIST, DATA, LIST),
    "AIFF": encoded("AIFF", "PCM_16", 3000, 2),
    "AU": encoded("AU", "PCM_16", 3000, 2),
    "FLAC": encoded("FLAC", "PCM_16", 9000, 2),
    "Vorbis": encoded("OGG", "VORBIS", 9000),
    "Opus": encoded("OGG", "OPUS", 9000),
    "MP3": mp3(samples=9000),
    "MP3 at 44.1 kHz": mp3("CONSTANT", 44_100, 9000, 2),
}
HOLDS: dict[str, np.ndarray] = {}


def outcome(name: str, content: bytes, folder: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """(what the whole file gives, what this content gives, or None where it is refused)."""
    knobs = SoundKnobs(sample_rate_hz=44_100 if "44.1" in name else RATE)
    if name not in HOLDS:
        (folder / "whole").write_bytes(FILES[name])
        HOLDS[name] = read_wave(folder / "whole", knobs)
    (folder / "mutated").write_bytes(content)
    try:
        return HOLDS[name], read_wave(folder / "mutated", knobs)
    except Unusable:
        return HOLDS[name], None


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("sounds")


@pytest.mark.fuzz
@given(name=st.sampled_from(sorted(FILES)), part=st.floats(0, 1, exclude_max=True))
def test_fuzz_a_cut_file_is_whole_or_refused(name, part, folder):
    content = FILES[name]
    whole, heard = outcome(name, content[: int(part * len(content))], folder)
    if heard is not None:
        np.testing.assert_array_equal(heard, whole)


@pytest.mark.fuzz
@given(
    name=st.sampled_from([name for name in sorted(FILES) if name.startswith(("WAV", "RF64"))]),
    riff=st.integers(0, 2**32 - 1) | st.sampled_from(UNKNOWN),
    data=st.integers(0, 2**32 - 1) | st.integers(0, 20_000) | st.sampled_from(UNKNOWN),
    which=st.sampled_from(["RIFF", "data", "both"]),
)
def test_fuzz_wrong_sizes_lose_no_sample(name, riff, data, which, folder):
    content = with_sizes(
        FILES[name], riff if which != "data" else None, data if which != "RIFF" else None
    )
    whole, heard = outcome(name, content, folder)
    if heard is not None:
        # chunks behind the samples may be read as such
        np.testing.assert_array_equal(heard[: len(whole)], whole)


@pytest.mark.fuzz
@given(samples=st.integers(0, 2**36 - 1) | st.integers(0, 20_000))
def test_fuzz_a_wrong_total_of_flac_loses_no_sample(samples, folder):
    whole, heard = outcome("FLAC", total(FILES["FLAC"], samples), folder)
    assert (heard is None) == (samples > len(whole))
    if heard is not None:
        np.testing.assert_array_equal(heard, whole)


@pytest.mark.fuzz
@given(
    name=st.sampled_from(["MP3", "MP3 at 44.1 kHz"]),
    frames=st.integers(0, 2**32 - 1) | st.integers(0, 100),
)
def test_fuzz_a_wrong_number_of_frames_loses_no_sample(name, frames, folder):
    whole, heard = outcome(name, frames_told(FILES[name], frames), folder)
    if heard is not None and len(heard) != len(whole):
        np.testing.assert_allclose(heard[1105 : 1105 + len(whole)], whole, atol=1e-6)


@pytest.mark.fuzz
@given(
    name=st.sampled_from(sorted(FILES)),
    early=st.booleans(),
    part=st.floats(0, 1, exclude_max=True),
    byte=st.integers(0, 255),
    action=st.sampled_from(["change", "delete", "insert"]),
)
def test_fuzz_damage_is_refused_or_loses_no_sample(name, early, part, byte, action, folder):
    content = FILES[name]
    place = int(part * min(300 if early else len(content), len(content)))
    told = {
        "change": bytes([byte]) + content[place + 1 :],
        "delete": content[place + 1 :],
        "insert": bytes([byte]) + content[place:],
    }
    whole, heard = outcome(name, content[:place] + told[action], folder)
    another_format = name.startswith(("WAV", "RF64")) and place < content.index(
        b"data"
    )  # the same bytes, read otherwise
    if heard is not None and not another_format:
        assert len(heard) >= len(whole)
