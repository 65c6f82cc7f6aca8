"""data/loading/ahead.py: advice on the samples of the next batches, only while the disk is read."""

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_loader import write_set

from furnace_hpc.config.manifest import Column, JpegStore
from furnace_hpc.data.columns import map_file, open_columns
from furnace_hpc.data.jpeg_images import JpegColumn
from furnace_hpc.data.loading import ahead
from furnace_hpc.data.loading.ahead import (
    BATCHES_AHEAD,
    QUIET_BATCHES,
    DiskWatch,
    Lookahead,
    MappedRows,
)
from furnace_hpc.data.loading.batches import BatchReader
from furnace_hpc.data.loading.prefetch import BatchPrefetcher, BatchRequest


class Disk:
    """A disk whose reads the test counts."""

    def __init__(self) -> None:
        self.num = 0

    def reads(self) -> tuple[int, int]:
        return 0, self.num


def test_advice_comes_some_batches_ahead():
    disk, log = Disk(), []
    requests = Lookahead(range(12), log.append, lambda: log.append("stop"), DiskWatch(disk.reads))
    assert next(requests) == 0
    assert log == []
    disk.num += 1
    assert next(requests) == 1
    assert log == [1, 2, 3, 4, 5]
    assert [next(requests) for _ in range(10)] == list(range(2, 12))
    assert log == list(range(1, 12))
    assert list(requests) == []


def test_advice_ends_when_all_is_in_memory():
    disk, log = Disk(), []
    requests = Lookahead(range(1000), log.append, lambda: log.append("stop"), DiskWatch(disk.reads))
    disk.num += 1
    for wanted in range(QUIET_BATCHES + 10):
        assert next(requests) == wanted
    advised = list(range(QUIET_BATCHES + BATCHES_AHEAD))
    assert log == [*advised, "stop"]
    disk.num += 1  # no sample is asked for twice
    assert next(requests) == QUIET_BATCHES + 10
    newest = QUIET_BATCHES + 10
    assert log == [*advised, "stop", *range(newest, newest + 1 + BATCHES_AHEAD)]


class FileMap:
    """Notes the calls of a memory map."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []

    def madvise(self, *given: int) -> None:
        self.calls.append(given)


def test_the_pages_of_rows_are_named():
    file_map = FileMap()
    rows = MappedRows(file_map, 128, 10_000)
    rows.advise(np.array([0, 3]))
    will = mmap.MADV_WILLNEED
    assert file_map.calls == [
        (mmap.MADV_RANDOM,),
        (will, 0, 10_128),
        (will, 28_672, 128 + 4 * 10_000 - 28_672),
    ]
    rows.stop()
    rows.stop()
    assert file_map.calls[3:] == [(mmap.MADV_NORMAL,)]


@pytest.mark.parametrize("view", [lambda a: a, lambda a: a.reshape(-1, 5000)[2:]])
def test_rows_are_found_in_the_file(tmp_path, view):
    """Reading the file at the place of a row gives the row."""
    np.save(tmp_path / "a.npy", np.arange(40_000, dtype=np.int32).reshape(8, 5000))
    array = view(np.asarray(map_file(tmp_path / "a.npy")))
    rows = MappedRows.of(array)
    start = rows._start + 3 * rows._row_bytes
    content = (tmp_path / "a.npy").read_bytes()[start : start + rows._row_bytes]
    assert np.array_equal(np.frombuffer(content, np.int32), array[3].ravel())
    rows.advise(np.array([0, 3, 5]))


def test_small_rows_and_memory_get_no_advice(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((100, 10)))
    assert MappedRows.of(map_file(tmp_path / "a.npy")) is None
    assert MappedRows.of(np.zeros((10, 10_000))) is None
    assert MappedRows.of(np.zeros(())) is None


def test_batches_are_the_same_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ahead, "MIN_ROW_BYTES", 1)
    columns = open_columns(write_set(tmp_path, frames=3))
    reader = BatchReader(columns, "train", ("text", "image"), (), torch.device("cpu"))
    assert {"text", "image"} <= reader.stored.keys()
    advised = {name: [] for name in reader.stored}
    for name, stored in reader.stored.items():
        monkeypatch.setattr(
            stored, "advise", lambda rows, name=name: advised[name].extend(rows.tolist())
        )
    requests = [BatchRequest(np.array(rows)) for rows in ([7, 1], [2, 5], [6, 7])]

    def read() -> list[Any]:
        with BatchPrefetcher(reader, requests) as batches:
            return [batch.inputs["image"].clone() for batch in batches]

    quiet = read()
    disk = Disk()

    def busy() -> tuple[int, int]:
        disk.num += 1
        return disk.reads()

    monkeypatch.setattr(ahead, "disk_reads", busy)
    assert all(map(torch.equal, quiet, read()))
    assert disk.num >= 3
    assert all(len(calls) == 6 for calls in advised.values()), "each sample once"


def test_files_of_jpeg_images_are_named(tmp_path, monkeypatch):
    (tmp_path / "image.jpeg").write_bytes(bytes(100))
    store = JpegStore(size=8, stored_size=8, quality=90)
    column = Column(dtype="uint8", shape=(3, 8, 8), jpeg=store)
    images = JpegColumn(tmp_path / "image.jpeg", np.array([30, 30, 70, 100]), column)
    calls = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, *given: calls.append(given))
    images.advise(np.array([3, 1, 0]))  # the second image is missing
    assert calls == [(70, 30, os.POSIX_FADV_WILLNEED), (0, 30, os.POSIX_FADV_WILLNEED)]
