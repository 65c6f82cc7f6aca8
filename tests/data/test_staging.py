"""The copy of the data on a node's disk: made once, verified, and optional."""

import multiprocessing
import os
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.columns import open_columns
from furnace_hpc.data.loading import staging
from furnace_hpc.data.loading.staging import stage


def staged(data: Path, scratch: Path | str) -> tuple[Path, str]:
    columns, words = stage(open_columns(data), str(scratch))
    return columns.folder, words


def test_the_copy_is_made_once(small_data, tmp_path):
    first, words = staged(small_data, tmp_path)
    assert first.parent == tmp_path / f"furnace-{os.getuid()}"
    assert words == f"data: read from {first}, this node's copy of {small_data}"
    assert open_columns(first, verify=True).manifest == open_columns(small_data).manifest
    inode = (first / "train/image.npy").stat().st_ino
    assert staged(small_data, tmp_path)[0] == first
    assert (first / "train/image.npy").stat().st_ino == inode
    assert (first.parent.stat().st_mode & 0o777) == 0o700


def test_several_threads_read(small_data, tmp_path, monkeypatch):
    """Blocks are read at the same time, some of them in parts, and hashed in their order."""
    pread, lock, reading, most = os.pread, threading.Lock(), [], []

    def slow(descriptor: int, size: int, start: int) -> bytes:
        with lock:
            reading.append(start)
            most.append(len(reading))
        time.sleep(0.002 * (start % 3))
        with lock:
            reading.remove(start)
        return pread(descriptor, max(1, size // 2), start)

    monkeypatch.setattr(os, "pread", slow)
    monkeypatch.setattr(staging, "CHUNK_BYTES", 100_001)
    copy, words = staged(small_data, tmp_path)
    assert words.startswith("data: read from"), words
    monkeypatch.setattr(os, "pread", pread)
    assert open_columns(copy, verify=True).manifest == open_columns(small_data).manifest
    assert 4 < max(most) <= staging.NUM_THREADS


def rank(data: Path, scratch: Path, answers) -> None:
    progress: list[str] = []
    columns, words = stage(open_columns(data), str(scratch), progress.append)
    copied = any(line.startswith("copying") for line in progress)
    answers.put(
        (columns.folder, words, copied, np.asarray(columns.split("train")["sample_id"]).tolist())
    )


def run_ranks(data: Path, scratch: Path, number: int = 3) -> list[tuple]:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    ranks = [context.Process(target=rank, args=(data, scratch, answers)) for _ in range(number)]
    for process in ranks:
        process.start()
    got = [answers.get(timeout=60) for _ in ranks]
    for process in ranks:
        process.join(timeout=60)
    return got


def test_one_of_several_ranks_copies(small_data, tmp_path):
    answers = run_ranks(small_data, tmp_path)
    assert sum(copied for _, _, copied, _ in answers) == 1
    assert {folder.parent.parent for folder, *_ in answers} == {tmp_path}
    expected = np.asarray(open_columns(small_data).split("train")["sample_id"]).tolist()
    assert all(ids == expected for *_, ids in answers)


def test_incomplete_or_damaged_copies_are_replaced(small_data, tmp_path):
    copy, _ = staged(small_data, tmp_path)
    (copy / "val/text.npy").write_bytes(b"half")
    aside = copy.with_name(f"{copy.name}.tmp")
    shutil.copytree(copy, aside)
    assert staged(small_data, tmp_path)[0] == copy
    assert open_columns(copy, verify=True)
    assert not aside.exists()


def test_other_data_get_another_copy(small_data, tmp_path):
    first, _ = staged(small_data, tmp_path)
    other = tmp_path / "other"
    shutil.copytree(small_data, other)
    manifest = (other / "manifest.json").read_text()
    (other / "manifest.json").write_text(manifest.replace('"even"', '"gerade"'))
    assert staged(other, tmp_path)[0] != first


@pytest.mark.parametrize(
    ("scratch", "why"),
    [
        ("$NOT_SET_ANYWHERE/x", r"\$NOT_SET_ANYWHERE/x names a variable that is not set"),
        ("/not/there", "/not/there is not a folder on this node"),
        ("/proc", "No such file or directory|Permission denied|Operation not permitted"),
    ],
)
def test_without_a_copy_the_shared_set_is_read(small_data, scratch, why):
    folder, words = staged(small_data, scratch)
    assert folder == small_data
    assert words.startswith(
        f"WARNING: data: read from {small_data}, not from a copy in {scratch}: "
    )
    assert re.search(why, words), words


def test_a_file_with_a_wrong_hash_is_an_error(small_data, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(small_data, data)
    content = bytearray((data / "test/audio.npy").read_bytes())
    content[-3] ^= 4
    (data / "test/audio.npy").write_bytes(content)
    with pytest.raises(
        ConfigError, match=r"test/audio\.npy holds content hash .*: pack the data set again"
    ):
        staged(data, tmp_path)
    assert [path.suffix for path in (tmp_path / f"furnace-{os.getuid()}").iterdir()] == [".lock"]


def mounted(folder: Path, size: str) -> bool:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    return (
        os.geteuid() == 0
        and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    )


def test_on_a_full_disk_the_shared_set_is_read(small_data, tmp_path, monkeypatch):
    scratch = tmp_path / "small"
    if not mounted(scratch, "200k"):
        pytest.skip("mounting needs root")
    try:
        for folder, words, *_ in run_ranks(small_data, scratch):
            assert folder == small_data
            assert "GiB free, the data needs" in words
        # Another user fills the disk after the check of its free space.
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(
            "furnace_hpc.data.loading.staging.shutil.disk_usage", lambda place: usage
        )
        folder, words = staged(small_data, scratch)
        assert folder == small_data
        assert words.endswith("No space left on device")
        assert [path.suffix for path in (scratch / f"furnace-{os.getuid()}").iterdir()] == [".lock"]
    finally:
        subprocess.run(["umount", "-l", str(scratch)], check=True)
