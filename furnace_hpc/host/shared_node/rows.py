"""Choose the rows that an array element starts on its node.

The rows of an array are its pool. An element starts its own rows first. If a run has ended, its
place gets the next row of the pool, from the end: those rows belong to elements that start last.
An attempt's record is made by one process only. So two elements never start the same row.
Standard library only, syntax of Python 3.6.
"""

import os
import time
from typing import Any, Dict, Iterator, List, Optional, Set

from furnace_hpc.host import lifecycle
from furnace_hpc.host.json_lines import read_json_lines

LOOK_S = 3.0  # between two looks at the journal, which is on a shared disk

Record = Dict[str, Any]


def rows_of_call(submission: str, call: str) -> List[int]:
    """The rows of an array, by the name of its sbatch call, or written as 0-3,7."""
    if set(call) <= set("0123456789,-"):
        return list(_numbers(call))
    for event in read_json_lines(os.path.join(submission, "journal.jsonl")):
        if event.get("event") == "intent" and event.get("name") == call:
            return [int(row) for row in event["rows"]]
    return []


def _numbers(ranges: str) -> Iterator[int]:
    for part in filter(None, ranges.split(",")):
        first, _, last = part.partition("-")
        for number in range(int(first), int(last or first) + 1):
            yield number


class Pool:
    """The rows of an array, and which of them this element may start now."""

    def __init__(
        self, submission: str, numbers: List[int], index: int, places: int, job: str
    ) -> None:
        """Read the rows.

        Args:
            submission: its folder.
            numbers: the rows of the array.
            index: the element's index in the array.
            places: number of runs at a time.
            job: the element's job id, such as 12_3.
        """
        numbers = sorted(numbers)
        wanted = set(numbers)
        found: Dict[int, Record] = {}
        for row in read_json_lines(os.path.join(submission, "rows.jsonl")):
            if row.get("row") in wanted:
                found[row["row"]] = row
        own = numbers[index * places : (index + 1) * places]
        self._job = job
        self._own = set(own)
        self._next = [found[number] for number in own if number in found]
        self._others = [found[n] for n in numbers if n in found and n not in self._own]
        self._cancelled = _Cancelled(os.path.join(submission, "journal.jsonl"))

    @property
    def runs_per_gpu(self) -> int:
        """The number of runs on one GPU. All rows of an array have the same."""
        facts = [row["facts"] for row in (self._next + self._others)[:1]]
        return int(facts[0].get("runs_per_gpu") or 1) if facts else 1

    def take_over(self) -> None:
        """Begin with the unfinished rows of other elements that this job started before."""
        before = [row for row in self._others if self._is_ours(row)]
        self._others = [row for row in self._others if row not in before]
        self._next += before

    def next_row(self) -> Optional[Record]:
        """A row to start now, of this element or else of another. None if there is none."""
        # A row stays here until it is known whether it may start: reading its files may fail.
        while self._next:
            may_start = self._may_start(self._next[0])
            row = self._next.pop(0)
            if may_start:
                return row
        while self._others:
            may_start = self._may_start(self._others[-1])
            row = self._others.pop()
            if may_start:
                return row
        return None

    def retry(self, row: Record) -> None:
        """Start the row again when a place is free."""
        self._next.append(row)

    def put_back(self, row: Record) -> None:
        """Undo `next_row`."""
        if self.is_own(row):
            self._next.insert(0, row)
        else:
            self._others.append(row)

    def is_own(self, row: Record) -> bool:
        """Whether the row belongs to this element, or this job has started it before."""
        return row["row"] in self._own or self._is_ours(row)

    def left(self) -> List[Record]:
        """The rows of this element that have not been started."""
        return [row for row in self._next if self._may_start(row)]

    def is_cancelled(self, row: Record) -> bool:
        """Whether `furnace cancel` has named the row's run."""
        return row["run_id"] in self._cancelled

    def _may_start(self, row: Record) -> bool:
        """Whether the row has no end in this array that forbids a start.

        Attempts of earlier arrays forbid nothing. `lifecycle.begin` refuses a live one.
        """
        if self.is_cancelled(row) or os.path.exists(os.path.join(row["run_dir"], "result.json")):
            return False
        attempt = self._newest_here(row)
        if not attempt or attempt.get("end_unix_s") is None:
            return True
        by_us = attempt.get("job_id") == self._job or row["row"] in self._own
        return by_us and attempt.get("reason") in lifecycle.REQUEUED

    def _is_ours(self, row: Record) -> bool:
        """Whether this job has made the newest attempt of the row."""
        return self._newest_here(row).get("job_id") == self._job

    def _newest_here(self, row: Record) -> Record:
        """The record of the row's newest attempt, if an element of this array made it."""
        number = lifecycle.newest_attempt(row["run_dir"])
        attempt = lifecycle.read_attempt(row["run_dir"], number) if number else {}
        if _array(attempt.get("job_id")) == _array(self._job):
            return attempt
        return {}


class _Cancelled:
    """The runs that a submission's journal names as cancelled. It is read again when it grows."""

    def __init__(self, journal: str) -> None:
        self._journal = journal
        self._size = 0
        self._asked_s = -LOOK_S
        self._runs: Set[str] = set()
        self._all = False

    def __contains__(self, run_id: str) -> bool:
        if time.monotonic() - self._asked_s >= LOOK_S:
            self._asked_s = time.monotonic()
            self._look()
        return self._all or run_id in self._runs

    def _look(self) -> None:
        try:
            size = os.stat(self._journal).st_size
            if size != self._size:
                self._read()
                self._size = size
        except OSError:  # A submission by hand has none. A shared disk may fail for a while.
            return

    def _read(self) -> None:
        for event in read_json_lines(self._journal):
            if event.get("event") == "cancelled" and isinstance(event.get("runs"), list):
                self._runs.update(event["runs"])
                self._all = self._all or not event["runs"]


def _array(job: Any) -> str:
    return str(job or "").partition("_")[0]
