"""Damaged sound files of every format give all samples or a refusal."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sound_files import (
    DATA,
    LIST,
    RATE,
    UNKNOWN,
    WAV_SUBTYPES,
    encoded,
    mp3,
    wav,
    with_frames,
    with_sizes,
    with_total,
)

from furnace_hpc.data.decode.audio import SoundKnobs, read_wave
from furnace_hpc.data.packing.rejects import Unusable

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
    """The samples of the whole file, and those of this content. None if it is refused."""
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
        # chunks after the samples may be read as samples
        np.testing.assert_array_equal(heard[: len(whole)], whole)


@pytest.mark.fuzz
@given(samples=st.integers(0, 2**36 - 1) | st.integers(0, 20_000))
def test_fuzz_a_wrong_total_of_flac_loses_no_sample(samples, folder):
    whole, heard = outcome("FLAC", with_total(FILES["FLAC"], samples), folder)
    assert (heard is None) == (samples > len(whole))
    if heard is not None:
        np.testing.assert_array_equal(heard, whole)


@pytest.mark.fuzz
@given(
    name=st.sampled_from(["MP3", "MP3 at 44.1 kHz"]),
    frames=st.integers(0, 2**32 - 1) | st.integers(0, 100),
)
def test_fuzz_a_wrong_number_of_frames_loses_no_sample(name, frames, folder):
    whole, heard = outcome(name, with_frames(FILES[name], frames), folder)
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
    changed = {
        "change": bytes([byte]) + content[place + 1 :],
        "delete": content[place + 1 :],
        "insert": bytes([byte]) + content[place:],
    }
    whole, heard = outcome(name, content[:place] + changed[action], folder)
    another_format = name.startswith(("WAV", "RF64")) and place < content.index(
        b"data"
    )  # the same bytes, read otherwise
    if heard is not None and not another_format:
        assert len(heard) >= len(whole)
