"""Read the files of one run without trusting them, and list the files of all runs of a grid.

The tables read spec.json, result.json, checkpoints.jsonl, attempts/<n>.json and metrics/<n>.jsonl.
A name that begins with a dot is a temporary file and is ignored.
"""

import os
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from furnace_hpc.host.regular_file import IrregularFile, read_regular
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.attempts import Attempt

FILES = frozenset({"spec.json", "result.json", "checkpoints.jsonl"})
NUMBERED = {"attempts": ".json", "metrics": ".jsonl"}  # folder -> suffix of its files
OF_THE_GRID = frozenset(
    {
        *("grid.yaml", "declared.json", "submit.lock", "slurm.json"),
        *("code", "logs", "submissions", "replaced", "cache", "features"),
        *("tuning", "trackers"),
    }
)

MIN_INT, MAX_INT = -(2**63), 2**63 - 1  # of the cache

Line = dict[str, Any]


class Points(NamedTuple):
    """Values that curves can show, sorted by step. The lists have an item for each value."""

    metrics: list[str]
    steps: list[int]
    values: list[float]


class ListedRun(NamedTuple):
    """A run's folder and its files."""

    run: str
    path: str
    files: str  # one line per file: name, modification time in ns, bytes, inode
    attempts: tuple[int, ...] = ()
    metrics: tuple[int, ...] = ()
    foreign: tuple[str, ...] = ()  # files in attempts/ and metrics/ that no run writes
    link: str = ""  # target, if the folder is a link to another run


class Record(NamedTuple):
    """Content of one run's files. It is not checked yet."""

    # data set in spec.json; None if spec.json is missing or unreadable
    data: str | None = None
    fingerprint: str | None = None
    result: bytes | None = None  # content of result.json; None if it is missing
    attempts: bytes = b"[]"  # records of the attempts, a JSON list, oldest first
    lost_steps: int = 0  # optimizer steps that were trained, lost, and trained again
    torn: int = 0  # lines of metrics that are incomplete

    def ledger(self) -> list[Attempt]:
        """All attempts, oldest first."""
        return list(_parse_attempts(self.attempts))


def list_runs(folder: Path) -> tuple[list[ListedRun], list[str]]:
    """The runs in a grid's folder, sorted by name, and the files there that no run has written."""
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry for entry in entries if entry.name[0] != "."), key=_name)
            kinds = [(entry.is_dir(), entry.is_symlink()) for entry in found]
    except FileNotFoundError:
        return [], []
    runs, foreign = [], []
    for entry, (is_folder, is_link) in zip(found, kinds, strict=True):
        # a broken link is a missing run
        if entry.name in OF_THE_GRID or (is_link and not is_folder):
            continue
        listed = None
        if is_folder and entry.name.isprintable():  # the name of a run is valid UTF-8
            listed = list_run(entry.path)
        if listed is None:
            foreign.append(entry.name)
            continue
        if is_link:
            listed = listed._replace(link=os.readlink(entry.path))  # noqa: PTH115
        runs.append(listed)
        foreign += [f"{entry.name}/{inside}" for inside in listed.foreign]
    return runs, foreign


def list_run(path: str) -> ListedRun | None:
    """The files of one run. None if it has none.

    It scans three folders and calls stat once per file.
    """
    lines, foreign, folders = list[str](), list[str](), list[str]()
    numbers: dict[str, list[int]] = {folder: [] for folder in NUMBERED}
    with os.scandir(path) as entries:
        for entry in entries:
            if (name := entry.name) in FILES:
                lines.append(_line(name, entry))
            elif name in NUMBERED:
                folders.append(name)
    if not lines and not folders:
        return None
    for folder in folders:
        suffix = NUMBERED[folder]
        with os.scandir(f"{path}/{folder}") as entries:
            for entry in entries:
                stem, dot, ending = entry.name.partition(".")
                if stem.isascii() and stem.isdigit() and dot + ending == suffix:
                    numbers[folder].append(int(stem))
                    lines.append(_line(f"{folder}/{entry.name}", entry))
                elif stem and not (stem.isdigit() and ending == "rendezvous"):
                    foreign.append(f"{folder}/{entry.name}")
    return ListedRun(
        run=os.path.basename(path),  # noqa: PTH119
        path=path,
        files="\n".join(sorted(lines)),
        attempts=tuple(sorted(numbers["attempts"])),
        metrics=tuple(sorted(numbers["metrics"])),
        foreign=tuple(sorted(foreign)),
    )


def read_record(folder: RunFolder) -> Record:
    """Read the files of one run."""
    if not folder.path.is_dir():
        return Record()
    listed = list_run(str(folder.path))
    if listed is None:
        return Record()
    return read_listed(listed)[0]


def read_listed(listed: ListedRun) -> tuple[Record, Points]:
    """Read a listed run: its record, and the values that curves can show, sorted by step.

    If several attempts have a step and kind, the newest attempt wins. Only numbers are kept, NaN
    and infinite ones included. Their names begin with the kind of the line, such as `train/loss`.
    """
    lines, first_steps, torn = _read_metrics(listed)
    raw = [_attempt(listed.path, number) for number in listed.attempts]
    attempts = b"[" + b",".join(raw) + b"]"
    lost = 0
    if len(raw) > 1:
        saved, _ = parse_lines(_read(f"{listed.path}/checkpoints.jsonl") or b"", "attempt", int)
        lost = _lost_steps(list(_parse_attempts(attempts)), first_steps, saved)
    result = _read(f"{listed.path}/result.json")
    return Record(*_spec(listed.path), result, attempts, lost, torn), _points(lines)


def parse_lines(content: bytes, key: str = "kind", of: type = str) -> tuple[list[Line], int]:
    """Parse JSON lines: the complete records and the number of other lines.

    A record has an integer `step`, and a `key` of type `of`.
    """
    raw = content.split(b"\n")
    if not raw[-1]:
        raw.pop()
    try:  # one call for all lines is five times as fast as one call per line
        lines = from_json(b"[" + b",".join(raw) + b"]")
    except ValueError:
        lines = list(map(_parse_line, raw))
    if len(lines) != len(raw):  # a line ends in a comma, or has more than one record
        lines = list(map(_parse_line, raw))
    good = [
        x
        for x in lines
        if x.__class__ is dict
        and x.get(key).__class__ is of
        and (step := x.get("step")).__class__ is int
        and MIN_INT <= step <= MAX_INT
    ]
    return good, len(raw) - len(good)


def _read_metrics(
    listed: ListedRun,
) -> tuple[dict[tuple[int, str], Line], dict[int, int], int]:
    """(step, kind) -> line, attempt -> first logged step, and the number of incomplete lines."""
    found: dict[tuple[int, str], Line] = {}
    first_steps, torn = {}, 0
    for number in listed.metrics:
        lines, damaged = parse_lines(_read(f"{listed.path}/metrics/{number}.jsonl") or b"")
        torn += damaged
        found.update({(line["step"], line["kind"]): line for line in lines})
        if lines:
            first_steps[number] = min(line["step"] for line in lines)
    return found, first_steps, torn


def _points(lines: Mapping[tuple[int, str], Line]) -> Points:
    metrics, steps, values = list[str](), list[int](), list[float]()
    names_of: dict[tuple[str, ...], list[str]] = {}  # kind and keys of a line -> its metrics
    for step, kind in sorted(lines):
        line = lines[step, kind]
        shape = kind, *line
        if shape not in names_of:  # a run has few
            names_of[shape] = [name for name in line if name.startswith(f"{kind}/")]
        for name in names_of[shape]:
            value = line[name]
            if value.__class__ is float or (value.__class__ is int and MIN_INT <= value <= MAX_INT):
                metrics.append(name)
                steps.append(step)
                values.append(float(value))
    return Points(metrics, steps, values)


def _parse_line(line: bytes) -> Any:
    try:
        return from_json(line)
    except ValueError:
        return None


def _lost_steps(attempts: list[Attempt], first_steps: dict[int, int], saved: list[Line]) -> int:
    """Steps between the end of an attempt and the checkpoint from which the next one resumed."""
    lost = reached = 0
    for attempt in attempts:
        if not attempt.step:
            continue  # it ended before its first step
        begins = first_steps.get(attempt.attempt, attempt.step)
        older = [line for line in saved if line["attempt"] < attempt.attempt]
        resumed_at = max((line["step"] for line in older if line["step"] < begins), default=0)
        lost += max(0, reached - resumed_at)
        reached = attempt.step
    return lost


def _spec(path: str) -> tuple[str | None, str | None]:
    """Data set and fingerprint of spec.json. (None, None) if it is missing or unreadable."""
    try:
        spec = from_json(_read(f"{path}/spec.json") or b"")
        return str(spec["config"]["data"]["name"]), str(spec["data_fingerprint"])
    except (ValueError, KeyError, TypeError):
        return None, None


def _attempt(path: str, number: int) -> bytes:
    """The record of one attempt as JSON.

    An unreadable one becomes an attempt that has not ended.
    """
    content = _read(f"{path}/attempts/{number}.json") or b""
    try:
        Attempt.model_validate_json(content)
    except ValidationError:
        return b'{"attempt":%d}' % number
    return content


def _name(entry: "os.DirEntry[str]") -> str:
    return entry.name


def _line(name: str, entry: "os.DirEntry[str]") -> str:
    stat = entry.stat()
    return f"{name} {stat.st_mtime_ns} {stat.st_size} {stat.st_ino}"


def _read(path: str) -> bytes | None:
    """Content of a file. None if it is missing.

    Anything but a regular file reads as one damaged line.
    """
    try:
        return read_regular(path, None)
    except IrregularFile:
        return b"?"
    except FileNotFoundError:
        return None


@lru_cache(maxsize=20_000)
def _parse_attempts(content: bytes) -> tuple[Attempt, ...]:
    """The attempts of a record. Several parts of a table need them."""
    return _attempts_type().validate_json(content)


@cache
def _attempts_type() -> TypeAdapter[tuple[Attempt, ...]]:
    return TypeAdapter(tuple[Attempt, ...])
