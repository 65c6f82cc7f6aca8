"""A run's training loss in a few points, for a look that costs next to nothing however long the metrics are."""

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from furnace_hpc.host.regular_file import IrregularFile, open_regular
from furnace_hpc.runs.file_cache import cached_by_stat
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.metrics import last_record

BLOCK = 4096  # bytes that are read at one place: longer than any record
Point = tuple[int, float]


def loss_curve(run: RunFolder, attempts: int, points: int) -> list[float]:
    """The loss at `points` steps spread evenly from the first to the newest; fewer, of a run that has just begun.

    For a step the highest attempt wins. Where a file has nothing in between, the loss before it is repeated.
    """
    known = dict(
        point for number in range(1, attempts + 1) for point in _places(run.metrics(number), points)
    )
    if not known:
        return []
    steps = sorted(known)
    first, last = steps[0], steps[-1]
    count = min(points, len(steps))
    asked = [first + (last - first) * number / max(1, count - 1) for number in range(count)]
    return [known[max((step for step in steps if step <= at), default=first)] for at in asked]


@cached_by_stat(lambda path, points: [path])
def _places(path: Path, points: int) -> list[Point]:
    """(step, loss) at places of the file that stay the same while it grows, until there are twice too many."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return []
    stride = 1024
    while stat.st_size > 2 * points * stride:
        stride *= 2
    offsets = range(0, max(0, stat.st_size - BLOCK), stride)
    found = [_at(path, stat.st_ino, offset) for offset in offsets]
    newest = last_record(path)
    tail = _train_points(_read(path, max(0, stat.st_size - BLOCK)), whole=stat.st_size <= BLOCK)
    found += [*tail, _point(newest) if newest else None]
    return [point for point in found if point]


@lru_cache(maxsize=2**16)
def _at(path: Path, inode: int, offset: int) -> Point | None:
    """The first record that begins after this place; a file of this inode never changes before its end."""
    return next(iter(_train_points(_read(path, offset), whole=offset == 0)), None)


def _read(path: Path, offset: int) -> bytes:
    try:
        with open_regular(path, buffering=0) as file:
            return os.pread(file.fileno(), BLOCK, offset)
    except IrregularFile:
        return b""


def _train_points(block: bytes, whole: bool) -> list[Point]:
    lines = block.split(b"\n")[0 if whole else 1 :]  # the first began before the block
    points = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue  # cut off at the block's end, or torn
        if isinstance(record, dict) and (point := _point(record)):
            points.append(point)
    return points


def _point(record: dict[str, Any]) -> Point | None:
    step, loss = record.get("step"), record.get("train/loss")
    return (step, float(loss)) if isinstance(step, int) and isinstance(loss, int | float) else None
