"""Loss curves of a few points, and files that are read again only after a change."""

import os

import pytest
from watch_study import write

from furnace_hpc.monitor.loss_curve import BLOCK, loss_curve
from furnace_hpc.runs.file_cache import cached_by_stat
from furnace_hpc.runs.folder import RunFolder


@pytest.mark.parametrize("count", [1, 3, 12, 40, 5000])
def test_points_are_evenly_spread(tmp_path, count):
    run = RunFolder(tmp_path)
    write(run, 1, range(1, count + 1))
    curve = loss_curve(run, 1, 12)
    assert len(curve) == min(count, 12)
    assert (curve[0], curve[-1]) == (100, 100 / count)
    assert curve == sorted(curve, reverse=True)
    for number_, loss in enumerate(curve):
        asked = 1 + (count - 1) * number_ / max(1, len(curve) - 1)
        assert asked - count / 12 - 1 <= 100 / loss <= asked + 1e-9


def test_the_later_attempt_wins(tmp_path):
    run = RunFolder(tmp_path)
    assert loss_curve(run, 3, 12) == []
    write(run, 1, range(1, 9))
    write(run, 3, range(6, 13), **{"train/loss": 7.0})
    with run.metrics(3).open("ab") as file:
        file.write(b'{"step": 13, "ki')
    assert loss_curve(run, 3, 12) == [100 / step for step in range(1, 6)] + [7.0] * 7


def test_only_the_end_of_a_growing_file_is_read(tmp_path, monkeypatch):
    run, read = RunFolder(tmp_path), []
    pread = os.pread
    monkeypatch.setattr(
        os, "pread", lambda file, size, at: read.append(at) or pread(file, size, at)
    )
    write(run, 1, range(1, 1001))
    loss_curve(run, 1, 12)
    size = run.metrics(1).stat().st_size
    assert 12 < len(read) < 30
    read.clear()
    loss_curve(run, 1, 12)
    assert read == []
    write(run, 1, range(1001, 1003))
    assert loss_curve(run, 1, 12)[-1] == 100 / 1002
    assert read
    assert min(read) > size - 2 * BLOCK


def test_an_unchanged_file_is_not_read_again(tmp_path):
    read = []

    @cached_by_stat(lambda path: [path])
    def text(path):
        read.append(path)
        return path.read_text() if path.exists() else None

    path = tmp_path / "x"
    assert [text(path), text(path)] == [None, None]
    path.write_text("a")
    assert [text(path), text(path), len(read)] == ["a", "a", 2]
    other = tmp_path / "y"
    other.write_text("b")
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)
    assert text(path) == "b", "replaced by a file of the same size and time"
    with path.open("a") as file:
        file.write("c")
    assert [text(path), len(read)] == ["bc", 4]
