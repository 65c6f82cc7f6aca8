"""Read the new records in a run's metrics since a stored position.

If several attempts have a record of a step and kind, that of the highest attempt counts, as in the
tables. A resumed run repeats the steps after its checkpoint, mostly with equal numbers. Then the
first record is kept, with its time. So a requeue does not change a record. If a number differs, all
records of the run are replaced.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from furnace_hpc.host.regular_file import IrregularFile, open_regular
from furnace_hpc.runs.records.metrics import MEASURED
from furnace_hpc.tables.reading.run_files import ListedRun, parse_lines
from furnace_hpc.trackers.tracker import Record, Start

HEAD = 4096  # bytes; the first line of a metrics file, by which it is recognized
NOT_VALUES = frozenset({"step", "kind", "attempt", "time_unix_s"})
Key = tuple[int, str]  # step, kind


@dataclass(frozen=True)
class Position:
    """The part of a run that was sent."""

    # attempt -> bytes of its metrics that were read, and checksum of the first line
    files: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    reached: Mapping[str, int] = field(default_factory=dict)  # kind -> last step
    time_s: float = 0.0  # of the last training record
    below: int | None = None  # only records below this step were sent; None: all

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Position":
        """Read what `as_json` wrote.

        Raises:
            ValueError, KeyError, TypeError: the content is damaged.
        """
        files = {int(key): (int(at), int(head)) for key, (at, head) in content["files"].items()}
        reached = {str(kind): int(step) for kind, step in content["reached"].items()}
        below = content["below"]
        return cls(files, reached, float(content["time_s"]), None if below is None else int(below))

    def as_json(self) -> dict[str, Any]:
        """The content of the cursor."""
        files = {str(number): list(read) for number, read in self.files.items()}
        reached, below = dict(self.reached), self.below
        return {"files": files, "reached": reached, "time_s": self.time_s, "below": below}


class NewRecords(NamedTuple):
    """Records to send, how they are sent, and the position after them."""

    start: Start
    records: list[Record]
    position: Position


class _Part(NamedTuple):
    """Complete lines of one metrics file, and the bytes up to their end."""

    lines: list[dict[str, Any]]
    end: int
    head: int


def read_new(run: ListedRun, position: Position | None, below: int | None = None) -> NewRecords:
    """Read the records that were not sent.

    Args:
        run: the run's files.
        position: what was sent. None if nothing was.
        below: only records below this step. None: all.
    """
    if position is not None and below is None and position.below is None:
        appended = _appended(run, position)
        if appended is not None:
            return appended
    parts = {number: _read(run, number) for number in run.metrics}
    now, changed = _merged(parts, below)
    after = _position(parts, now, below)
    records = list(now.values())
    if position is None:
        return NewRecords(Start.REPLACE if changed else Start.FIRST, records, after)
    if any(not _is_same_file(parts.get(number), read) for number, read in position.files.items()):
        return NewRecords(Start.REPLACE, records, after)
    old = {number: _read(run, number, end) for number, (end, _) in position.files.items()}
    sent, _ = _merged(old, position.below)
    if not all(key in now and _is_equal(record, now[key]) for key, record in sent.items()):
        return NewRecords(Start.REPLACE, records, after)
    # A pass that was killed before it stored its position may have sent the older numbers. A
    # tracker that gets only settled steps does not have them.
    may_be_sent = position.below is None and bool(changed - sent.keys())
    start = Start.REPLACE if may_be_sent else Start.APPEND
    if start is Start.APPEND:
        records = [record for key, record in now.items() if key not in sent]
    return NewRecords(start, records, after)


def all_records(run: ListedRun, position: Position) -> list[Record]:
    """All records up to a position, by step."""
    parts = {number: _read(run, number, end) for number, (end, _) in position.files.items()}
    return list(_merged(parts, position.below)[0].values())


def _appended(run: ListedRun, position: Position) -> NewRecords | None:
    """The new records, if the newest attempt has only appended further steps. Else None."""
    if set(run.metrics) != set(position.files):
        return None
    tails = {number: _read_from(run, number, *position.files[number]) for number in run.metrics}
    newest = max(run.metrics, default=0)
    for number, tail in tails.items():
        if tail is None or (tail.lines and number != newest):
            return None
    lines = [line for tail in tails.values() if tail for line in tail.lines]
    reached = dict(position.reached)
    for line in lines:
        if line["step"] <= reached.get(line["kind"], -1):
            return None
        reached[line["kind"]] = line["step"]
    records = list(_records(lines, position.time_s))
    files = {number: (tail.end, tail.head) for number, tail in tails.items() if tail}
    time_s = records[-1].time_s if records else position.time_s
    return NewRecords(Start.APPEND, records, Position(files, reached, time_s))


def _position(
    parts: Mapping[int, _Part], records: Mapping[Key, Record], below: int | None
) -> Position:
    reached: dict[str, int] = {}
    for step, kind in records:
        reached[kind] = max(step, reached.get(kind, -1))
    files = {number: (part.end, part.head) for number, part in parts.items()}
    time_s = 0.0
    if parts:  # a validation record of the newest attempt follows this time
        times = [record.time_s for record in _records(parts[max(parts)].lines, 0.0)]
        time_s = times[-1] if times else 0.0
    return Position(files, reached, time_s, below)


def _merged(parts: Mapping[int, _Part], below: int | None) -> tuple[dict[Key, Record], set[Key]]:
    """(step, kind) -> record that counts, sorted by step, and those with other numbers before."""
    found: dict[Key, Record] = {}
    changed = set()
    for number in sorted(parts):
        for record in _records(parts[number].lines, 0.0):
            key = (record.step, record.kind)
            if below is not None and record.step >= below:
                continue
            if key in found and not _is_equal(found[key], record):
                changed.add(key)
                del found[key]
            found.setdefault(key, record)
    return {key: found[key] for key in sorted(found)}, changed


def _records(lines: Sequence[Mapping[str, Any]], time_s: float) -> Iterator[Record]:
    """Lines without a time have that of the training record before them."""
    for line in lines:
        known = line.get("time_unix_s")
        if isinstance(known, int | float):
            time_s = float(known)
        values = {
            str(name): float(value)
            for name, value in line.items()
            if name not in NOT_VALUES and value.__class__ in (int, float)
        }
        yield Record(line["step"], line["kind"], time_s, values)


def _is_equal(first: Record, second: Record) -> bool:
    """Whether two records have the same numbers, apart from measured ones."""
    names = (first.values.keys() | second.values.keys()) - MEASURED
    pairs = ((first.values.get(name), second.values.get(name)) for name in names)
    return all(a == b or (a != a and b != b) for a, b in pairs)  # NaN is not equal to itself


def _is_same_file(part: _Part | None, read: tuple[int, int]) -> bool:
    """Whether a file still has what was read. A run of newer code has other files."""
    end, head = read
    return part is not None and part.end >= end and (not end or part.head == head)


def _read(run: ListedRun, number: int, end: int | None = None) -> _Part:
    """Read the complete lines of a file, up to `end` if it is given."""
    content = b""
    with suppress(FileNotFoundError, IrregularFile), _open(run, number) as file:
        content = file.read(-1 if end is None else end)
    content = content[: content.rfind(b"\n") + 1]
    return _Part(parse_lines(content)[0], len(content), _head(content))


def _read_from(run: ListedRun, number: int, start: int, head: int) -> _Part | None:
    """Read the complete lines after `start`. None if the file is another one."""
    try:
        with _open(run, number) as file:
            if start and _head(file.read(min(start, HEAD))) != head:
                return None
            if file.seek(0, 2) < start:
                return None
            file.seek(start)
            content = file.read()
    except (FileNotFoundError, IrregularFile):
        return None
    content = content[: content.rfind(b"\n") + 1]
    if not start:
        head = _head(content)
    return _Part(parse_lines(content)[0], start + len(content), head)


def _open(run: ListedRun, number: int) -> Any:
    return open_regular(f"{run.path}/metrics/{number}.jsonl")


def _head(content: bytes) -> int:
    """Checksum of the first line. Its time differs between two runs of the same numbers."""
    return zlib.crc32(content[:HEAD].partition(b"\n")[0])
