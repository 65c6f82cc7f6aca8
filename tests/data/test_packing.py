"""Packs that are killed, fill the disk, or refuse too many files, with real processes and files."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked_commands
import numpy as np
import psutil
import pytest
from raw_sets import MOVIES, write_avmnist, write_mmimdb, write_vocab
from small_disk import only, small_file_system

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.columns import open_columns
from furnace_hpc.data.packing.pack import pack_files
from furnace_hpc.data.packing.resumable_writer import ResumableWriter
from furnace_hpc.data.packing.sample import Draft, blank_sample
from furnace_hpc.data.packing.statistics import measure
from furnace_hpc.data.sets.avmnist import plan_avmnist


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "furnace_hpc.pack", *map(str, arguments)]


def run(code: int, *arguments: object) -> str:
    child = forked_commands.run(command(*arguments))
    assert child.returncode == code, child.stderr
    assert "Traceback" not in child.stderr
    return child.stdout + child.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def ignore(what: str, done: int, total: int) -> None:
    assert 0 <= done <= total, what


@pytest.fixture(scope="module")
def avmnist(tmp_path_factory) -> Path:
    return write_avmnist(tmp_path_factory.mktemp("sets") / "avmnist", train=3000, test=500)


@pytest.fixture(scope="module")
def whole(avmnist, tmp_path_factory) -> Path:
    """A pack without interruptions."""
    out = tmp_path_factory.mktemp("packs") / "whole"
    pack_files(plan_avmnist(avmnist), out, ignore, workers=1, max_refused=0.05, force=False)
    return out


class Killed(BaseException):
    pass


@pytest.mark.slow
def test_a_stopped_pack_ends_with_the_same_bytes(avmnist, whole, tmp_path):
    """The pack stops after each recorded chunk. Bytes are appended, as a kill may leave them."""
    out, stops = tmp_path / "set", 0

    def stop_at_next(what: str, done: int, total: int) -> None:
        if what == "samples" and done > seen:
            raise Killed

    while True:
        folder = tmp_path / "set.packing"
        seen = 0
        if folder.exists():
            seen = sum(json.loads((folder / "progress.json").read_text())["rows"].values())
        try:
            pack_files(
                plan_avmnist(avmnist), out, stop_at_next, workers=2, max_refused=0.05, force=False
            )
            break
        except Killed:
            stops += 1
            for path in folder.rglob("*.npy"):
                with path.open("ab") as file:
                    file.write(b"torn")
            with (folder / "columns" / "refused.jsonl").open("ab") as file:
                file.write(b"torn")
    assert stops == 11 + 1 + 2  # 2,750 + 250 + 500 rows in chunks of 256
    assert contents(out) == contents(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.slow
def test_a_killed_pack_leaves_no_process_and_resumes(avmnist, whole, tmp_path):
    out = tmp_path / "set"
    child = subprocess.Popen(command("avmnist", "--source", avmnist, "--out", out, "--workers", 2))
    columns = tmp_path / "set.packing" / "columns" / "train" / "image.npy"
    until(lambda: columns.exists() and columns.stat().st_size > 100_000)
    family = psutil.Process(child.pid).children(recursive=True)
    child.kill()
    child.wait()
    until(
        lambda: not any(process.is_running() and process.status() != "zombie" for process in family)
    )
    assert not out.exists()
    assert "packed into" in run(0, "avmnist", "--source", avmnist, "--out", out)
    assert contents(out) == contents(whole)


def until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_ctrl_c_keeps_the_progress(avmnist, whole, tmp_path):
    out = tmp_path / "set"
    child = subprocess.Popen(
        command("avmnist", "--source", avmnist, "--out", out, "--workers", 2),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    columns = tmp_path / "set.packing" / "columns" / "train" / "image.npy"
    second_chunk = 256 * 28 * 28 + 4096  # its bytes are there, so the first chunk counts as done
    until(lambda: columns.exists() and columns.stat().st_size > second_chunk)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does
    said, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "Run the same command to resume." in said
    assert "Traceback" not in errors
    done = json.loads((tmp_path / "set.packing" / "progress.json").read_text())["rows"]["train"]
    assert done >= 256
    run(0, "avmnist", "--source", avmnist, "--out", out)
    assert contents(out) == contents(whole)


@pytest.mark.slow
def test_a_pack_resumes_after_a_full_disk(avmnist, whole, tmp_path):
    with small_file_system(tmp_path / "disk", "90m") as disk:
        with only(disk, 12_000):
            said = run(2, "avmnist", "--source", avmnist, "--out", disk / "set")
        assert "cannot be written (No space left on device) after " in said
        assert "Free disk space and run the same command; the pack resumes." in said
        assert not (disk / "set").exists()
        done = json.loads((disk / "set.packing" / "progress.json").read_text())["rows"]["train"]
        assert done >= 256
        run(0, "avmnist", "--source", avmnist, "--out", disk / "set")
        assert contents(disk / "set") == contents(whole)


def test_workers_change_no_byte(avmnist, whole, tmp_path):
    pack_files(
        plan_avmnist(avmnist), tmp_path / "set", ignore, workers=3, max_refused=0.05, force=False
    )
    assert contents(tmp_path / "set") == contents(whole)


def test_an_unfinished_pack_with_other_settings(avmnist, tmp_path):
    other = write_avmnist(tmp_path / "other")
    writer = ResumableWriter(tmp_path / "set", plan_avmnist(other))
    writer.begin(force=False)
    writer.record()
    with pytest.raises(ConfigError, match="is being packed by another process"):
        pack_files(
            plan_avmnist(other), tmp_path / "set", ignore, workers=1, max_refused=0, force=False
        )
    writer.close()
    with pytest.raises(ConfigError, match=r"unfinished pack with other settings \(labels, rows\)"):
        pack_files(
            plan_avmnist(avmnist), tmp_path / "set", ignore, workers=1, max_refused=0, force=False
        )
    pack_files(plan_avmnist(other), tmp_path / "set", ignore, workers=1, max_refused=0, force=False)
    assert open_columns(tmp_path / "set").manifest.splits["train"] == 55
    with pytest.raises(
        ConfigError, match="with other settings: choose another --out, or replace it with --force"
    ):
        pack_files(
            plan_avmnist(avmnist), tmp_path / "set", ignore, workers=1, max_refused=0, force=False
        )


@pytest.mark.slow
def test_too_many_refused_files_fail_at_the_end(tmp_path):
    raw, vocab, out = (
        write_mmimdb(tmp_path / "raw"),
        write_vocab(tmp_path / "vocab"),
        tmp_path / "set",
    )
    (raw / "dataset" / f"{MOVIES[0]}.jpeg").unlink()
    options = (
        "mmimdb",
        "--source",
        raw,
        "--out",
        out,
        "--tokenizer",
        vocab,
        "--image-size",
        32,
        "--workers",
        1,
    )
    said = run(2, *options)
    assert (
        "1 of 12 samples have a file that could not be read "
        "(8.3%; --max-refused is 5.0%): image missing 1."
    ) in said
    assert "accept them with --max-refused 0.09." in said
    assert not out.exists()
    said = run(0, *options, "--max-refused", "0.09", "--verify")
    assert "not read: image missing 1" in said
    assert "verified: 21 files have the hashes in the manifest" in said
    assert "nothing done" in run(0, *options)
    path = out / "test" / "image.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "holds content hash" in run(2, *options, "--verify")


@pytest.mark.parametrize("name", ["twelve_bytes", "zero_at_end\0", "ünfünfünf"])
def test_a_sample_id_too_long_for_its_column(name):
    blank = blank_sample(11, ("image",))
    assert (
        Draft.begin("val", "eleven_byte", ("image",), blank).values["source_id"].item()
        == b"eleven_byte"
    )
    with pytest.raises(ConfigError, match=re.escape(f"val: sample id {name!r} has ")):
        Draft.begin("val", name, ("image",), blank)


def test_moments_are_of_present_and_valid_values():
    rng = np.random.default_rng(0)
    columns = {
        "image": rng.integers(0, 256, (5, 2, 3, 4, 4), dtype=np.uint8),  # N, F, C, H, W
        "audio": rng.normal(3, 2, (5, 4, 6)).astype(np.float16),
        "audio_length": np.array([6, 2, 1, 3, 5], np.int16),
        "present": np.array([[1, 1], [0, 1], [1, 0], [1, 1], [0, 0]], np.uint8),
    }
    found = {
        name: moments.statistics() for name, moments in measure(columns, ("image", "audio")).items()
    }
    image = columns["image"][[0, 2, 3]].astype(np.float64)
    np.testing.assert_allclose(found["image"].mean, image.mean((0, 1, 3, 4)))
    np.testing.assert_allclose(found["image"].std, image.std((0, 1, 3, 4)))
    audio = np.concatenate(
        [columns["audio"][n, :, :length] for n, length in ((0, 6), (1, 2), (3, 3))], axis=1
    )
    np.testing.assert_allclose(found["audio"].mean, audio.astype(np.float64).mean(1), rtol=1e-6)
    np.testing.assert_allclose(found["audio"].std, audio.astype(np.float64).std(1), rtol=1e-6)
    columns["present"][:] = 0
    assert measure(columns, ("image", "audio"))["image"].statistics().std == (1.0, 1.0, 1.0)
