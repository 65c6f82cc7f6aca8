"""data/loading/ahead.py: samples of the next batches come from the file while the disk is read."""

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
    FileRows,
    Lookahead,
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
    requests = Lookahead(range(12), log.append, DiskWatch(disk.reads))
    assert next(requests) == 0
    assert (log, requests.is_reading) == ([], False)
    disk.num += 1
    assert next(requests) == 1
    assert requests.is_reading
    assert log == [1, 2, 3, 4, 5]
    assert [next(requests) for _ in range(10)] == list(range(2, 12))
    assert log == list(range(1, 12))
    assert list(requests) == []


def test_advice_ends_when_all_is_in_memory():
    disk, log = Disk(), []
    requests = Lookahead(range(1000), log.append, DiskWatch(disk.reads))
    disk.num += 1
    for wanted in range(QUIET_BATCHES + 10):
        assert next(requests) == wanted
    advised = list(range(QUIET_BATCHES + BATCHES_AHEAD))
    assert log == advised
    assert not requests.is_reading
    disk.num += 1  # no sample is asked for twice
    assert next(requests) == QUIET_BATCHES + 10
    newest = QUIET_BATCHES + 10
    assert log == [*advised, *range(newest, newest + 1 + BATCHES_AHEAD)]


VIEWS = {
    "whole": lambda a: a,
    "clips": lambda a: a.reshape(-1, 5000)[2:],
    "half": lambda a: a.view(np.float16).reshape(8, 100, 100),
}


@pytest.fixture(params=VIEWS)
def array(request, tmp_path) -> Any:
    np.save(tmp_path / "a.npy", np.arange(40_000, dtype=np.int32).reshape(8, 5000))
    return VIEWS[request.param](np.asarray(map_file(tmp_path / "a.npy")))


def test_rows_of_the_file_are_those_of_the_map(array):
    rows, numbers = FileRows.of(array), np.array([5, 0, 3])
    out = np.zeros((3, *array.shape[1:]), array.dtype)
    rows.read(numbers, out)
    assert out.tobytes() == array[numbers].tobytes()
    beginnings = [np.zeros(length, array.dtype) for length in (0, 7, 50)]
    rows.read(numbers, beginnings)
    for row, beginning in zip(numbers, beginnings, strict=True):
        assert beginning.tobytes() == array[row].ravel()[: len(beginning)].tobytes()


def test_the_bytes_of_rows_are_advised(array, monkeypatch):
    rows, calls = FileRows.of(array), []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, *given: calls.append(given))
    rows.advise(np.array([3, 1]))
    num_bytes, wanted = array[0].nbytes, os.POSIX_FADV_WILLNEED
    (first, size, advice), other = calls
    assert (size, advice, other) == (num_bytes, wanted, (first - 2 * num_bytes, num_bytes, wanted))
    out = np.zeros_like(array[:1])
    os.preadv(rows._file.fileno(), [out.data], first)
    assert np.array_equal(out[0], array[3])


def test_a_file_that_became_shorter_is_an_error(array, tmp_path):
    """Reading the map would end the process with SIGBUS."""
    rows = FileRows.of(array)
    os.truncate(tmp_path / "a.npy", 9_000)
    with pytest.raises(OSError, match=r"no bytes at .*: the file became shorter.*a\.npy"):
        rows.read(np.array([5]), [np.zeros(5000, np.int32)])


def test_a_short_read_continues(array, monkeypatch):
    rows, read = FileRows.of(array), os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda file, parts, place: read(file, [parts[0][:999]], place)
    )
    out = np.zeros((1, *array.shape[1:]), array.dtype)
    rows.read(np.array([4]), out)
    assert out.tobytes() == array[4].tobytes()


def test_other_rows_are_left_to_the_map(tmp_path):
    """Small rows, arrays in memory, rows in pieces, and numbers in another byte order."""
    np.save(tmp_path / "a.npy", np.zeros((100, 10)))
    np.save(tmp_path / "b.npy", np.zeros((3, 5000, 2), ">f4"))
    assert FileRows.of(map_file(tmp_path / "a.npy")) is None
    assert FileRows.of(map_file(tmp_path / "b.npy")) is None
    assert FileRows.of(np.asarray(map_file(tmp_path / "b.npy")).view(np.int8)[..., ::2]) is None
    assert FileRows.of(np.zeros((10, 10_000))) is None
    assert FileRows.of(np.zeros(())) is None


def test_batches_from_the_file_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
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

    disk = Disk()
    monkeypatch.setattr(ahead, "disk_reads", disk.reads)
    quiet = read()
    assert not any(advised.values())

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
