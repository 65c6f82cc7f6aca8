"""WAV files with wrong sizes: all samples or a refusal, never fewer samples."""

import io
import struct

import numpy as np
import pytest
import soundfile
from sound_files import (
    DATA,
    HEARD,
    LIST,
    NOISE,
    PCM,
    RATE,
    UNKNOWN,
    WAV_SUBTYPES,
    chunk,
    decoded,
    encoded,
    refusal,
    wav,
    with_sizes,
)


@pytest.mark.parametrize("subtype", WAV_SUBTYPES)
def test_a_wav_of_unknown_size_is_read_to_its_end(tmp_path, subtype):
    content = encoded("WAV", subtype, samples=2000)
    whole = decoded(content, tmp_path)
    assert len(whole) == 2000
    for riff in (None, *UNKNOWN, len(content)):
        for data in (None, *UNKNOWN):
            np.testing.assert_array_equal(decoded(with_sizes(content, riff, data), tmp_path), whole)


def test_a_cut_wav_of_unknown_size_is_read(tmp_path):
    for data in UNKNOWN:
        cut = with_sizes(wav(DATA), 0xFFFF_FFFF, data)[:-2001]  # in the middle of a sample
        np.testing.assert_array_equal(decoded(cut, tmp_path), HEARD[:2999])
        # the size of the RIFF chunk is correct
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
        wav(DATA, LIST)[:-7],  # cut after the samples
        wav(DATA, riff=len(wav(DATA))),
        wav(DATA) + b"TAG" + bytes(125),
        wav(DATA) + b"junk" * 100,
        wav(DATA, riff=len(wav(DATA))) + b"junk" * 100,
        wav(DATA) + bytes(9000),
        b"ID3\4\0\0\0\0\x01\x00" + bytes(128) + wav(DATA),
    ],
)
def test_other_chunks_of_a_wav_are_ignored(tmp_path, content):
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
            "8,000 bytes after the samples are not a chunk",
        ),
        (with_sizes(wav(DATA), data=7000), "1,000 bytes after the samples are not a chunk"),
        (with_sizes(wav(DATA), data=7999), "7,999 bytes of samples, wanted a multiple of 2"),
        (wav(LIST), "no data chunk at byte 60"),
        (
            b"RIFF" + struct.pack("<I", len(DATA) + 4) + b"WAVE" + DATA,
            "no fmt chunk before the samples",
        ),
    ],
)
def test_a_wav_with_contradicting_sizes_is_refused(tmp_path, content, detail):
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
def test_a_value_that_is_not_finite_is_refused(tmp_path, value):
    wave = NOISE[:1000].copy()
    wave[500] = value
    for subtype in ("FLOAT", "DOUBLE"):
        soundfile.write(file := io.BytesIO(), wave, RATE, format="WAV", subtype=subtype)
        assert refusal(file.getvalue(), tmp_path).reason == "not finite"
