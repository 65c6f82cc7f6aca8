"""What the tables know of one run, read from its files without trusting them, and a list of the files of all runs.

A run's files are those that the tables read: spec.json, result.json, checkpoints.jsonl, attempts/<n>.json and
metrics/<n>.jsonl. Names that begin with a dot are being written, and are passed over.
"""

import os
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from furnace_hpc.host.regular_file import IrregularFile, read_regular
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.attempts import Attempt

FILES = frozenset({"spec.json", "result.json", "checkpoints.jsonl"})
OF_THE_GRID = frozenset(
    {"grid.yaml", "submit.lock", "slurm.json", "code", "logs", "submissions", "replaced", "cache"}
)

Line = dict[str, Any]
Point = tuple[str, int, float]  # metric, step, value


class Listed(NamedTuple):
    """A run's folder, and which files it had when it was looked at."""

    run: str
    path: str
    files: str  # a line a file: name, time of change in ns, bytes, inode
    attempts: tuple[int, ...] = ()
    metrics: tuple[int, ...] = ()
    foreign: tuple[str, ...] = ()  # names in attempts/ and metrics/ that are nobody's
    link: str = ""  # where its folder leads, if it is a link to a run of another name


class Record(NamedTuple):
    """What the files of one run say, before anybody believes it."""

    # data set that its spec.json names; none: there is no spec.json that can be read
    data: str | None = None
    fingerprint: str | None = None
    result: bytes | None = None  # result.json as it is; none: there is none
    attempts: bytes = b"[]"  # the ledger, a JSON list, oldest first
    lost_steps: int = 0  # optimizer steps that were trained, lost, and trained again
    torn: int = 0  # lines of metrics that are no whole record

    def ledger(self) -> list[Attempt]:
        """All attempts, oldest first."""
        return _attempts_type().validate_json(self.attempts)


def list_runs(folder: Path) -> tuple[list[Listed], list[str]]:
    """The runs in a grid's folder in order of name, and what lies there that no run has written."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(
                (entry.name, entry.path, entry.is_dir(), entry.is_symlink())
                for entry in entries
                if entry.name[0] != "."
            )
    except FileNotFoundError:
        return [], []
    runs, foreign = [], []
    for name, path, is_folder, is_link in found:
        # a link that leads nowhere is a run that is missing
        if name in OF_THE_GRID or (is_link and not is_folder):
            continue
        # No run has a name that is not UTF-8.
        listed = list_run(path) if is_folder and name.isprintable() else None
        if listed and is_link:
            listed = listed._replace(link=os.readlink(path))  # noqa: PTH115
        if listed is None:
            foreign.append(name)
        else:
            runs.append(listed)
            foreign += [f"{name}/{inside}" for inside in listed.foreign]
    return runs, foreign


def list_run(path: str) -> Listed | None:
    """One run's files; None where it has none. Three folders are opened, and each file is looked at once."""
    lines, foreign = [], list[str]()
    numbers: dict[str, list[int]] = {"attempts": [], "metrics": []}
    with os.scandir(path) as entries:
        names = [entry for entry in entries if entry.name in FILES or entry.name in numbers]
        lines += [_line(entry.name, entry) for entry in names if entry.name in FILES]
    for folder, suffix in (("attempts", ".json"), ("metrics", ".jsonl")):
        if not any(entry.name == folder for entry in names):
            continue
        with os.scandir(f"{path}/{folder}") as entries:
            for entry in entries:
                stem, dot, ending = entry.name.partition(".")
                if stem.isascii() and stem.isdigit() and dot + ending == suffix:
                    numbers[folder].append(int(stem))
                    lines.append(_line(f"{folder}/{entry.name}", entry))
                elif stem and not (stem.isdigit() and ending == "rendezvous"):
                    foreign.append(f"{folder}/{entry.name}")
    if not names:
        return None
    attempts, metrics = (tuple(sorted(of_kind)) for of_kind in numbers.values())
    files = "\n".join(sorted(lines))
    return Listed(os.path.basename(path), path, files, attempts, metrics, tuple(sorted(foreign)))  # noqa: PTH119


def read_record(folder: RunFolder) -> Record:
    """What the files of one run say now."""
    listed = list_run(str(folder.path)) if folder.path.is_dir() else None
    return read_listed(listed)[0] if listed else Record()


def read_listed(listed: Listed) -> tuple[Record, list[Point]]:
    """What the files of a listed run say, and its metrics: each once for a step and a kind, in order of step.

    Of several attempts the highest wins. Only what a curve can show is kept: finite or not, numbers whose name
    begins with the kind of their record, such as `train/loss` and `val/digit/accuracy`.
    """
    spec, torn = _spec(listed.path), 0
    first: dict[int, int] = {}  # attempt -> step of its first record
    by_key: dict[tuple[int, str], Line] = {}
    for number in listed.metrics:
        lines, damaged = parse_lines(_read(f"{listed.path}/metrics/{number}.jsonl") or b"")
        torn += damaged
        by_key.update({(line["step"], line["kind"]): line for line in lines})
        if lines:
            first[number] = min(line["step"] for line in lines)
    points = []
    for (step, kind), line in sorted(by_key.items()):
        prefix = kind + "/"
        for name, value in line.items():
            if name.startswith(prefix) and (value.__class__ is float or _is_int64(value)):
                points.append((name, step, value))
    raw = [_attempt(listed.path, number) for number in listed.attempts]
    ledger = b"[" + b",".join(raw) + b"]"
    lost = 0
    if len(raw) > 1:
        saved, _ = parse_lines(_read(f"{listed.path}/checkpoints.jsonl") or b"", "attempt", int)
        lost = _lost_steps(_attempts_type().validate_json(ledger), first, saved)
    result = _read(f"{listed.path}/result.json")
    return Record(*spec, result, ledger, lost, torn), points


def parse_lines(content: bytes, key: str = "kind", of: type = str) -> tuple[list[Line], int]:
    """The whole records in JSON lines (each has an integer `step`, and `key`), and how many lines are none."""
    raw = content.split(b"\n")
    if not raw[-1]:
        raw.pop()
    try:  # all at once: one call is five times as fast as one a line
        lines = from_json(b"[" + b",".join(raw) + b"]")
    except ValueError:
        lines = list(map(_parsed, raw))
    if len(lines) != len(raw):  # lines that end in a comma, or hold more than one record
        lines = list(map(_parsed, raw))
    good = [
        x
        for x in lines
        if x.__class__ is dict and x.get(key).__class__ is of and _is_int64(x.get("step"))
    ]
    return good, len(raw) - len(good)


def _is_int64(value: Any) -> bool:
    return value.__class__ is int and -(2**63) <= value < 2**63


def _parsed(line: bytes) -> Any:
    try:
        return from_json(line)
    except ValueError:
        return None


def _lost_steps(attempts: list[Attempt], first: dict[int, int], saved: list[Line]) -> int:
    """Steps between where an attempt stopped and the checkpoint from which the next one that trained went on."""
    lost = reached = 0
    for attempt in attempts:
        if not attempt.step:
            continue  # it ended before its first step
        begins = first.get(attempt.attempt, attempt.step)
        since = (
            line["step"]
            for line in saved
            if line["step"] < begins and line["attempt"] < attempt.attempt
        )
        lost += max(0, reached - max(since, default=0))
        reached = attempt.step
    return lost


def _spec(path: str) -> tuple[str | None, str | None]:
    try:
        spec = from_json(_read(f"{path}/spec.json") or b"")
        return str(spec["config"]["data"]["name"]), str(spec["data_fingerprint"])
    except (ValueError, KeyError, TypeError):
        return None, None


def _attempt(path: str, number: int) -> bytes:
    """The record of one attempt as JSON; an unreadable one counts as not ended."""
    content = _read(f"{path}/attempts/{number}.json") or b""
    try:
        Attempt.model_validate_json(content)
    except ValidationError:
        return b'{"attempt":%d}' % number
    return content


def _line(name: str, entry: "os.DirEntry[str]") -> str:
    stat = entry.stat()
    return f"{name} {stat.st_mtime_ns} {stat.st_size} {stat.st_ino}"


def _read(path: str) -> bytes | None:
    try:
        return read_regular(path, None)
    except IrregularFile:
        return b"?"  # as one damaged line
    except FileNotFoundError:
        return None


@cache
def _attempts_type() -> TypeAdapter[list[Attempt]]:
    return TypeAdapter(list[Attempt])
