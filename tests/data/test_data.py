"""Columns, preprocessing and speech."""

import hashlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import librosa
import numpy as np
import pytest

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import Manifest
from furnace_hpc.data.columns import open_columns, write_columns
from furnace_hpc.data.decode.features import channel_statistics, mfcc, num_frames, to_uint8
from furnace_hpc.data.sets.tridigits import speech
from furnace_hpc.data.sets.tridigits.speech import (
    ACCENTS,
    VOICES,
    SpeechRequest,
    check_source,
    read_bank,
    synthesise,
)


@pytest.fixture
def tiny(tmp_path) -> Path:
    write_tiny(tmp_path / "tiny", 1)
    return tmp_path / "tiny"


def write_tiny(folder: Path, value: int, num_samples: int = 4) -> Manifest:
    column = np.full((num_samples, 3), value, np.int16)
    return write_columns(
        folder,
        splits={
            split: {"x": column, "sample_id": np.arange(num_samples)} for split in ("train", "val")
        },
        dataset="tiny",
        modalities=("image",),
        labels={},
        statistics={},
        vocab_size=None,
        preprocessing={"value": value},
    )


# --- columns ---


def test_columns_are_read_as_written(tiny):
    columns = open_columns(tiny, verify=True)
    train = columns.split("train")
    assert isinstance(train["x"], np.memmap)
    assert not train["x"].flags.writeable
    np.testing.assert_array_equal(train["x"], np.full((4, 3), 1, np.int16))
    assert columns.manifest.columns["x"].shape == (3,)
    assert columns.manifest.splits == {"train": 4, "val": 4}
    assert set(columns.manifest.versions) >= {
        "python",
        "numpy",
        "librosa",
        "scikit-learn",
        "soundfile",
    }


def test_fingerprint_is_of_the_contents_alone(tmp_path, tiny):
    first = open_columns(tiny).manifest.fingerprint
    assert len(first) == 16
    assert write_tiny(tmp_path / "elsewhere", 1).fingerprint == first
    assert write_tiny(tmp_path / "other", 2).fingerprint != first
    assert write_tiny(tmp_path / "longer", 1, num_samples=5).fingerprint != first


def test_a_new_pack_replaces_the_old_one(tiny):
    write_tiny(tiny, 7)
    assert open_columns(tiny, verify=True).split("val")["x"][0, 0] == 7
    assert [path.name for path in tiny.parent.iterdir()] == ["tiny"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: (f / "train/x.npy").unlink(),
            r"train/x\.npy is missing: pack the data set again",
        ),
        (
            lambda f: (f / "val/x.npy").write_bytes(b"short"),
            r"val/x\.npy holds 5 bytes, but the manifest has 152 bytes: pack",
        ),
        (lambda f: (f / "val/x.npy").write_bytes(b"0" * 152), r"val/x\.npy holds no npy header"),
        (
            lambda f: np.save(f / "val/x.npy", np.ones((3, 4), np.int16)),
            r"int16 \(3, 4\), .* int16 \(4, 3\)",
        ),
        (
            lambda f: np.save(f / "val/x.npy", np.ones((4, 3), np.uint16)),
            r"uint16 .* manifest has int16",
        ),
        (lambda f: (f / "manifest.json").unlink(), r"has no manifest\.json"),
        (lambda f: (f / "manifest.json").write_text("{}"), r"is not a readable manifest"),
    ],
)
def test_damaged_files_are_errors(tiny, damage, message):
    damage(tiny)
    with pytest.raises(ConfigError, match=message):
        open_columns(tiny)


def test_changed_contents_are_found_by_verify(tiny):
    path = tiny / "train" / "x.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    open_columns(tiny)
    with pytest.raises(
        ConfigError, match=r"train/x\.npy holds content hash .* pack the data set again"
    ):
        open_columns(tiny, verify=True)


def test_a_folder_with_other_files_is_kept(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(
        ConfigError, match=r"holds 'thesis\.tex', which is not part of a packed data set"
    ):
        write_tiny(tmp_path, 1)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


FILL = """
import sys
from pathlib import Path
import numpy as np
from furnace_hpc.data.columns import write_columns
from furnace_hpc.config.errors import ConfigError
try:
    write_columns(
        Path({folder!r}), splits={{"train": {{"x": np.zeros(10**7)}}}}, dataset="big",
        modalities=(), labels={{}}, statistics={{}}, vocab_size=None, preprocessing={{}},
    )
except ConfigError as error:
    sys.exit(str(error))
"""


def write_too_much(folder: Path, **options) -> str:
    code = FILL.format(folder=str(folder))
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, **options
    )
    assert child.returncode == 1
    return child.stderr


def test_a_full_disk_leaves_the_old_pack(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting needs root; the file size limit below is the same path")
    try:
        write_tiny(tmp_path / "tiny", 1)
        message = write_too_much(tmp_path / "tiny")
        assert "cannot be written (No space left on device)" in message
        assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
        assert open_columns(tmp_path / "tiny", verify=True).split("train")["x"][0, 0] == 1
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_file_size_limit_leaves_the_old_pack(tiny):
    limit = (100_000, 100_000)
    message = write_too_much(
        tiny, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    )
    assert "cannot be written (File too large)" in message
    assert [path.name for path in tiny.parent.iterdir()] == ["tiny"]
    assert open_columns(tiny, verify=True).split("train")["x"][0, 0] == 1


def test_an_interrupt_leaves_the_old_pack(tiny, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("furnace_hpc.data.columns.fingerprint", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_tiny(tiny, 2)
    assert [path.name for path in tiny.parent.iterdir()] == ["tiny"]
    assert open_columns(tiny, verify=True).split("train")["x"][0, 0] == 1


# --- preprocessing and speech ---


def test_batched_mfcc_equals_librosas():
    rng = np.random.default_rng(0)
    waves = rng.standard_normal((3, 20_000)).astype(np.float32) * np.array(
        [[1e-4], [1], [30]], np.float32
    )
    coefficients = mfcc(waves)
    assert coefficients.shape == (3, 40, num_frames(20_000)) == (3, 40, 40)
    for wave, got in zip(waves, coefficients, strict=True):
        np.testing.assert_allclose(
            got, librosa.feature.mfcc(y=wave, sr=16_000, n_mfcc=40), atol=1e-3
        )


def test_to_uint8_and_statistics():
    values = np.array([-9.0, -1.0, 0.5, 2.0, 9.0])
    assert to_uint8(values, low=-1.0, high=2.0).tolist() == [0, 0, 128, 255, 255]
    statistics = channel_statistics(np.array([[[0, 2], [5, 5]], [[0, 2], [5, 5]]], np.uint8))
    assert statistics.mean == (1.0, 5.0)
    assert statistics.std == (1.0, 1e-6)


def test_bank_has_every_voice_accent_and_digit_once():
    bank = read_bank()
    keys = [(u.voice, u.accent, u.digit) for u in bank]
    assert keys == [(v, a, d) for v in VOICES for a in ACCENTS for d in range(10)]
    lengths = [len(u.waveform) for u in bank]
    assert max(lengths) <= 20_000
    assert min(lengths) > 1_600
    assert {u.waveform.dtype for u in bank} == {np.dtype(np.float32)}
    assert 0.5 < np.median([np.abs(u.waveform).max() for u in bank]) <= 1.1


def test_espeak_and_bank_have_the_same_format():
    pytest.importorskip("espeakng_loader")
    first, again = (
        synthesise([SpeechRequest("f2", "en-gb-scotland", 7, 150, 50)])[0] for _ in range(2)
    )
    np.testing.assert_array_equal(first.waveform, again.waveform)
    banked = next(
        u for u in read_bank() if (u.voice, u.accent, u.digit) == ("f2", "en-gb-scotland", 7)
    )
    assert (first.voice, first.accent, first.digit) == (banked.voice, banked.accent, banked.digit)
    assert first.waveform.dtype == banked.waveform.dtype == np.float32
    assert 3_000 < len(first.waveform) <= 20_000


def test_espeak_is_an_error_if_it_is_missing(monkeypatch):
    assert check_source("bank") == "bank"
    monkeypatch.setattr(speech, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"espeakng_loader is not installed: install furnace"):
        check_source("espeak")
    assert check_source("bank") == "bank"


def test_the_bank_has_the_recorded_bytes():
    """The same bytes came with glibc 2.36 and Python 3.11, and with glibc 2.43 and Python 3.14."""
    digest = hashlib.sha256(b"".join(u.waveform.tobytes() for u in read_bank())).hexdigest()
    assert digest == "321645554da500c0b4ca53132a2378ddc583f463b7948f3a4dbcbea35150673b"


def test_a_slow_voice_fits_into_the_window():
    pytest.importorskip("espeakng_loader")
    slow = synthesise([SpeechRequest("Marco", "en-us", 0, 100, 50)])[0]
    assert 15_000 < len(slow.waveform) <= 20_000


@pytest.mark.parametrize(
    ("voice", "accent", "message"),
    [
        ("f33", "en-us", "voice 'f33' does not exist: did you mean"),
        ("f3", "en-gb", "accent 'en-gb' does not exist"),
    ],
)
def test_an_invalid_voice_is_an_error(voice, accent, message):
    pytest.importorskip("espeakng_loader")
    with pytest.raises(ConfigError, match=message):
        synthesise(
            [SpeechRequest("f1", "en-us", 1, 150, 50), SpeechRequest(voice, accent, 1, 150, 50)]
        )
