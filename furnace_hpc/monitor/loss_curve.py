"""Read a run's training loss at a few steps. A long run costs no more than a short one."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from furnace_hpc.host.json_lines import parse_lines
from furnace_hpc.host.regular_file import IrregularFile, open_regular
from furnace_hpc.runs.file_cache import cached_by_stat
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.metrics import last_record

BLOCK = 4096  # bytes of one read; longer than any record
Point = tuple[int, float]  # step, loss


def loss_curve(run: RunFolder, attempts: int, points: int) -> list[float]:
    """Read the loss at `points` steps, spread evenly from the first to the newest.

    A run of fewer steps has fewer points. If two attempts have a step, the higher attempt wins. A
    step without a known loss repeats the loss before it.
    """
    known: dict[int, float] = {}
    for number in range(1, attempts + 1):
        known |= dict(_points(run.metrics(number), points))
    if not known:
        return []
    steps = sorted(known)
    first, last = steps[0], steps[-1]
    count = min(points, len(steps))
    wanted = [first + (last - first) * number / max(1, count - 1) for number in range(count)]
    return [known[max((step for step in steps if step <= at), default=first)] for at in wanted]


@cached_by_stat(lambda path, points: [path])
def _points(path: Path, points: int) -> list[Point]:
    """Read between `points` and twice as many records. Offsets do not move while the file grows."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return []
    stride = 1024
    while stat.st_size > 2 * points * stride:
        stride *= 2
    start_of_tail = max(0, stat.st_size - BLOCK)
    found = [_at(path, stat.st_ino, offset) for offset in range(0, start_of_tail, stride)]
    found += _train_points(_read(path, start_of_tail), whole=start_of_tail == 0)
    newest = last_record(path)
    if newest:
        found.append(_point(newest))
    return [point for point in found if point]


@lru_cache(maxsize=2**16)
def _at(path: Path, inode: int, offset: int) -> Point | None:
    """Read the first record after this offset. It is cached, since metrics are only appended to."""
    return next(iter(_train_points(_read(path, offset), whole=offset == 0)), None)


def _read(path: Path, offset: int) -> bytes:
    try:
        with open_regular(path, buffering=0) as file:
            return os.pread(file.fileno(), BLOCK, offset)
    except IrregularFile:
        return b""


def _train_points(block: bytes, whole: bool) -> list[Point]:
    """Parse the records of a block. If it is not the `whole` file, its first line is cut off."""
    lines = block.split(b"\n")
    points = map(_point, parse_lines(lines if whole else lines[1:]))
    return [point for point in points if point]


def _point(record: dict[str, Any]) -> Point | None:
    step, loss = record.get("step"), record.get("train/loss")
    if not isinstance(step, int) or not isinstance(loss, int | float):
        return None
    return step, float(loss)
