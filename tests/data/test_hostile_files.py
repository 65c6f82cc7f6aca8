"""Files with false sizes or with code give one error, start no program, and need little memory."""

import io
import json
import os
import resource
import shutil
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
from export_study import exported
from PIL import Image
from small_disk import only, small_file_system
from use_study import write_run

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.columns import open_columns
from furnace_hpc.data.decode.audio import SoundKnobs, read_sound
from furnace_hpc.data.decode.images import ImageKnobs, read_image
from furnace_hpc.data.packing.rejects import Unusable
from furnace_hpc.inference import Predictor, batch_predict, torch_export
from furnace_hpc.inference.batch_predict import answer_file
from furnace_hpc.inference.model_folder import CONFIG
from furnace_hpc.runs.folder import RunFolder

KNOBS = SoundKnobs(coefficients=8, frames=20)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, small_data: Path) -> RunFolder:
    return write_run(tmp_path_factory.mktemp("runs"), small_data)


@pytest.fixture(scope="module")
def model(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    exported(run.path, out := tmp_path_factory.mktemp("exported") / "model")
    return out


@pytest.fixture(scope="module")
def predictor(model: Path) -> Predictor:
    return Predictor.load(model, "cpu")


# --- images and sounds ---


def test_postscript_does_not_start_ghostscript(tmp_path, monkeypatch):
    """It is refused whatever its name is."""
    started = tmp_path / "started"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {started}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    Image.new("RGB", (16, 16)).save(tmp_path / "poster.eps")
    (tmp_path / "poster.eps").rename(tmp_path / "poster.jpg")
    with pytest.raises(Unusable, match="unreadable"):
        read_image(tmp_path / "poster.jpg", ImageKnobs(size=16))
    assert not started.exists()
    with Image.open(tmp_path / "poster.jpg") as image, suppress(OSError):
        image.load()
    assert started.exists()  # Pillow itself starts it


def test_a_header_with_a_wrong_rate_is_refused(tmp_path):
    """At 1 Hz a second becomes hours. The check comes before the resampling."""
    soundfile.write(tmp_path / "slow.wav", np.zeros(20_000, np.float32), 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Unusable, match="at 1 Hz are 6 hours"):
        read_sound(tmp_path / "slow.wav", KNOBS)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, "KiB"
    soundfile.write(tmp_path / "fast.wav", np.zeros(20_000, np.float32), 2**31 - 1)
    with pytest.raises(Unusable, match="are no sound"):
        read_sound(tmp_path / "fast.wav", KNOBS)


def test_a_very_long_silence_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("furnace_hpc.data.decode.audio._MAX_SAMPLES", 30_000)
    soundfile.write(tmp_path / "a.flac", np.zeros((16_000, 2), np.float32), 16_000)
    with pytest.raises(Unusable, match="more than 15,000 samples"):
        read_sound(tmp_path / "a.flac", KNOBS)
    soundfile.write(tmp_path / "b.flac", np.zeros((15_000, 2), np.float32), 16_000)
    read_sound(tmp_path / "b.flac", KNOBS)


# --- .npy ---


def header(shape: str) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def zipped() -> bytes:
    np.savez(file := io.BytesIO(), x=np.zeros(3))
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        zipped(),
        b"PK\x03\x04 and nothing more",
        b"\x80\x04K\x01.",
        header("(" * 2000),
        header("(10_000_000_000_000,)"),
        header("(-1,)"),
        header("'a'"),
    ],
)
def test_a_broken_array_file_is_one_error(tmp_path, predictor, content):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ConfigError, match="is unreadable") as refused:
        predictor.predict(audio=tmp_path / "a.npy")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [zipped(), header("(" * 2000), b"PK\x03\x04"])
def test_a_column_that_is_no_array_is_one_error(tmp_path, small_data, content):
    shutil.copytree(small_data, tmp_path / "pack")
    column = tmp_path / "pack" / "test" / "present.npy"
    size = column.stat().st_size
    column.write_bytes((content + bytes(size))[:size])
    with pytest.raises(
        ConfigError, match=r"present\.npy holds no npy header.*pack the data set again"
    ):
        open_columns(tmp_path / "pack")


# --- lines of samples ---


def answered(predictor: Predictor, path: Path) -> tuple[int, list[str], str]:
    out, errors = io.StringIO(), io.StringIO()
    failed = answer_file(predictor, path, out, errors, None, False, 8)
    out.getvalue().encode()  # nothing in it is no character
    return failed, out.getvalue().splitlines(), errors.getvalue()


def test_ids_are_escaped(tmp_path, predictor):
    ids = ["\x1b]0;title\x07", "two\nlines", "\ud800", "\u202eturned", {"a": [1]}, "grün"]
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"id": i, "text": "it is even"}) + "\n" for i in ids)
    )
    failed, lines, _ = answered(predictor, tmp_path / "a.jsonl")
    shown = ["\\x1b]0;title\\x07", "two\\nlines", "\\ud800", "\\u202eturned", "{'a': [1]}", "grün"]
    assert (failed, [line.partition("  digit:")[0] for line in lines]) == (0, shown)


def test_a_very_long_line_is_not_read_completely(tmp_path, predictor, monkeypatch):
    monkeypatch.setattr(batch_predict, "MAX_LINE_BYTES", 1000)
    longest = 0

    class Watched(io.FileIO):
        def readline(self, size: int = -1, /) -> bytes:
            nonlocal longest
            line = super().readline(size)
            longest = max(longest, len(line))
            return line

    good = b'{"text": "it is even"}\n'
    (tmp_path / "a.jsonl").write_bytes(
        good + b'{"text": "' + b"x" * 50_000 + b'"}\n' + good + b"y" * 3000
    )
    monkeypatch.setattr(Path, "open", lambda path, mode: Watched(path, mode.replace("b", "")))
    failed, lines, errors = answered(predictor, tmp_path / "a.jsonl")
    assert (failed, [line.partition("  ")[0] for line in lines]) == (2, ["1", "3"])
    assert "a.jsonl:2: the line has more than 1,000 bytes" in errors
    assert "a.jsonl:4: the line has more than 1,000 bytes" in errors
    assert longest == 1001


# --- exported models ---


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("data.columns.image.dtype", "\x1b[31m"),
        ("data.columns.text.shape", []),
        ("data.columns.image.shape", [1, 10**12, 10**12]),
        ("data.columns.image.shape", [0, 32, 32]),
        ("data.preprocessing", {}),
        ("data.preprocessing.image", "x"),
        ("data.preprocessing.audio.hop", 1.5),
        ("data.statistics", {}),
        ("data.statistics.audio.std", [1.0, 1.0]),
        ("data.labels", {}),
    ],
)
def test_an_inconsistent_config_is_one_error(tmp_path, model, place, value):
    shutil.copytree(model, tmp_path / "model")
    content = inner = json.loads((model / CONFIG).read_text())
    *path, last = place.split(".")
    for key in path:
        inner = inner[key]
    inner[last] = value
    (tmp_path / "model" / CONFIG).write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="Export the model again") as refused:
        Predictor.load(tmp_path / "model", "cpu")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04torn", b"\x80\x04K\x01.", b"\x93NUMPY\x01\x00", zipped()]
)
def test_export_reports_damaged_predictions(tmp_path, run, content):
    run.predictions("test").parent.mkdir(exist_ok=True)
    run.predictions("test").write_bytes(content)
    try:
        made, _ = exported(run.path, tmp_path / "model")
    finally:
        run.predictions("test").unlink()
    assert made.provenance.compared.startswith("not compared with the run's own (test.npz:")


@pytest.mark.parametrize(("free_kib", "with_program"), [(8, False), (84, False), (100, True)])
def test_a_full_disk_is_one_error_and_leaves_no_file(
    tmp_path, run, monkeypatch, free_kib, with_program
):
    # Tracing takes ten seconds; what counts is that torch gives bytes: its own zip writer aborts on
    # a full disk.
    monkeypatch.setattr(torch_export, "_traced", lambda model, exported: bytes(200_000))
    with small_file_system(tmp_path / "small") as disk, only(disk, free_kib):
        # cli makes one sentence of both
        with pytest.raises((ConfigError, OSError), match="No space left"):
            exported(run.path, disk / "model", with_program=with_program)
        assert [path.name for path in disk.iterdir()] == ["ballast"]
