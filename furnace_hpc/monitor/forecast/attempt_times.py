"""Read how long the parts of an attempt took: start-up, steps, evaluations, saves and the end."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from furnace_hpc.host.end_reasons import FATAL
from furnace_hpc.host.json_lines import parse_lines, read_json, read_json_lines, read_tail
from furnace_hpc.host.regular_file import IrregularFile, open_regular
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.attempts import Attempt

Record = dict[str, Any]
NEEDED = ("step_time_s", "time_unix_s")
HEAD_BYTES, TAIL_BYTES = 65_536, 131_072  # read of a metrics file: enough for hundreds of records


@dataclass(frozen=True)
class AttemptTimes:
    """Measured seconds of one attempt. A part that was not measured is None or empty."""

    launch_s: float | None  # from the attempt's start to the start of its ranks
    startup_s: float | None  # from then to the first step
    step_s: tuple[float, ...]  # means of the steps between two records, pauses for saves included
    evaluation_s: tuple[float, ...]  # of the validation split
    end_s: float | None  # from the last step of a run to the end of its last attempt
    save_s: tuple[float, ...]
    peak_gib: float | None = None  # memory of rank 0


def times_of(folder: RunFolder, attempt: Attempt) -> AttemptTimes | None:
    """The times of an attempt. None if it failed, still runs, or has written no record."""
    if attempt.end_unix_s is None or attempt.reason in FATAL:
        return None
    parts = [_Part.of(records) for records in _records(folder.metrics(attempt.attempt))]
    train = [record for part in parts for record in part.train]
    if not train:
        return None
    intervals = [interval for part in parts for interval in part.intervals()]
    step_s = tuple(step_s for step_s, _ in intervals) or (float(train[0]["step_time_s"]),)
    evaluation_s = tuple(pause_s for _, pause_s in intervals if pause_s is not None)
    saves = list(_saves(folder))
    end_s = None
    if attempt.reason == "done":
        end_s = max(0.0, attempt.end_unix_s - train[-1]["time_unix_s"])
    if canary := _canary(folder, attempt):
        evaluation_s, end_s = (canary[0],), canary[1]
    began_at = max((step for number, step, _ in saves if number < attempt.attempt), default=0)
    paused = [step for step in parts[0].evaluated if began_at <= step < train[0]["step"]]
    pause_s = len(paused) * median(evaluation_s or (0.0,))
    entered_s = _entered_unix_s(folder, attempt)
    launch_s = None if entered_s is None else max(0.0, entered_s - attempt.start_unix_s)
    peaks = [record["peak_memory_gib"] for record in train if "peak_memory_gib" in record]
    return AttemptTimes(
        launch_s=launch_s,
        startup_s=_startup_s(
            entered_s or attempt.start_unix_s, train[0], began_at, median(step_s), pause_s
        ),
        step_s=step_s,
        evaluation_s=evaluation_s,
        end_s=end_s,
        save_s=tuple(took_s for number, _, took_s in saves if number == attempt.attempt),
        peak_gib=max(peaks, default=None),
    )


def _has_numbers(record: Record, keys: Sequence[str]) -> bool:
    return all(isinstance(record.get(key), (int, float)) for key in keys)


def _records(path: Path) -> Iterator[list[Record]]:
    """Yield the records of a metrics file: all of them, or of a long file its beginning and end."""
    try:
        with open_regular(path) as file:
            head = file.read(HEAD_BYTES)
            has_more = bool(file.read(1))
        yield list(parse_lines(head.splitlines()))
        if has_more:
            yield list(parse_lines(read_tail(path, TAIL_BYTES).splitlines()))
    except (FileNotFoundError, IrregularFile):
        return


@dataclass(frozen=True)
class _Part:
    """Records of an attempt that follow each other."""

    train: list[Record]
    evaluated: list[int]  # steps

    @classmethod
    def of(cls, records: Sequence[Record]) -> "_Part":
        """Sort records that have what is needed."""
        usable = [record for record in records if isinstance(record.get("step"), int)]
        train = [record for record in usable if record.get("kind") == "train"]
        evaluated = [record["step"] for record in usable if record.get("kind") == "val"]
        return cls([record for record in train if _has_numbers(record, NEEDED)], evaluated)

    def intervals(self) -> Iterator[tuple[float, float | None]]:
        """Yield seconds per step, and per evaluation if there was one, between two records each."""
        for before, after in pairwise(self.train):
            steps = after["step"] - before["step"]
            took_s = after["time_unix_s"] - before["time_unix_s"]
            if steps <= 0 or took_s <= 0:
                continue
            # A step is evaluated after its record of training.
            count = sum(before["step"] <= step < after["step"] for step in self.evaluated)
            if count:
                pause_s = took_s - steps * after["step_time_s"]
                yield float(after["step_time_s"]), max(0.0, pause_s / count)
            else:
                yield took_s / steps, None


def _entered_unix_s(folder: RunFolder, attempt: Attempt) -> float | None:
    """When the last rank of the first node started. None if the ranks have not reported it."""
    times = []
    with suppress(FileNotFoundError, IrregularFile):
        for report in read_json_lines(folder.verdict(attempt.attempt, 0)):
            if report.get("verdict") == "entered" and _has_numbers(report, ("unix_s",)):
                times.append(float(report["unix_s"]))
    return max(times, default=None)


def _startup_s(
    entered_s: float, first: Record, began_at: int, step_s: float, pause_s: float
) -> float | None:
    """Seconds until the first step. None if the step that the attempt began at is not known."""
    steps = first["step"] - began_at
    if steps <= 0:
        return None
    return max(0.0, float(first["time_unix_s"] - entered_s - steps * step_s - pause_s))


def _saves(folder: RunFolder) -> Iterator[tuple[int, int, float]]:
    """Yield attempt, step and seconds of each save of a run."""
    with suppress(FileNotFoundError):
        for line in read_json_lines(folder.saved):
            if _has_numbers(line, ("attempt", "step", "took_s")):
                yield int(line["attempt"]), int(line["step"]), float(line["took_s"])


def _canary(folder: RunFolder, attempt: Attempt) -> tuple[float, float] | None:
    """Seconds of an evaluation, and of the end that the run will have, as its canary timed them.

    At its end a run evaluates the last step and the selected one, and the test split with every
    subset of the modalities.
    """
    try:
        timed = read_json(folder.canary)
        if timed["attempt"] != attempt.attempt or attempt.end_unix_s is None:
            return None
        evaluation_s = float(timed["evaluation_s"])
        test_s = float(timed["with_subsets_s"]) * timed["test_samples"] / timed["val_samples"]
        exit_s = max(0.0, attempt.end_unix_s - float(timed["unix_s"]))
    except (FileNotFoundError, ValueError, TypeError, KeyError, ZeroDivisionError):
        return None
    return evaluation_s, 2 * evaluation_s + test_s + exit_s
