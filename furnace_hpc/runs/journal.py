"""A submission's journal: a line before each sbatch, and a line with its outcome after it.

    {"event": "intent", "name": ..., "kind": "array", "base": 0, "rows": [0, 1, 2]}   before sbatch;
        with "runs_per_node": 2 if index 0 has the first two of these rows, and so on
    {"event": "submitted", "name": ..., "job_id": "12"}   after sbatch, or when the job was found
    {"event": "refused" | "absent", "name": ...}   sbatch failed, or Slurm has no job of this name
    {"event": "cancelled", "runs": [...]}   runs that no follow-up job submits again; []: all runs

The job's name is unique and chosen before sbatch. If an intent has no outcome, the next command
looks the job up by name.
"""

import json
import time
import uuid
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from furnace_hpc.host.durable_files import append_line
from furnace_hpc.host.json_lines import read_json_lines
from furnace_hpc.host.regular_file import read_regular_text
from furnace_hpc.runs.file_cache import cached_by_stat
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.submitted import SubmissionRow, read_rows

SCOPE = "scope.json"  # in a submission of trials or canaries: which runs of the table follow
# event -> keys that it must have, and their types; other events must have `name`
REQUIRED: dict[str, dict[str, Any]] = {
    "intent": {"name": str, "kind": str, "base": int, "rows": list, "unix_s": int | float},
    "cancelled": {"runs": list},
}


class JournalEvent(NamedTuple):
    """One line of a journal. A field that its event does not have is empty."""

    event: str
    name: str = ""
    kind: str = ""
    base: int = 0
    rows: tuple[int, ...] = ()
    unix_s: float = 0.0
    cluster: str = ""
    job_id: str = ""
    runs: tuple[str, ...] = ()
    runs_per_node: int = 1


@dataclass(frozen=True)
class SbatchCall:
    """One sbatch: an array of rows, or a follow-up job."""

    name: str
    kind: str  # array, follow-up
    base: int  # row of the array's index 0
    rows: tuple[int, ...]
    unix_s: float = 0.0
    outcome: str = "doubtful"  # submitted, refused, absent
    cluster: str = ""  # Slurm's ClusterName
    job_id: str = ""
    runs_per_node: int = 1  # rows of one array element

    @property
    def elements(self) -> dict[int, str]:
        """Row -> job id of its array element. Of a shared node: of the one that has it first."""
        if self.runs_per_node > 1:
            places = enumerate(sorted(self.rows))
            return {row: f"{self.job_id}_{at // self.runs_per_node}" for at, row in places}
        return {row: f"{self.job_id}_{row - self.base}" for row in self.rows}


@dataclass(frozen=True)
class Submission:
    """The folder of one submission."""

    path: Path

    def note(self, event: str, **facts: Any) -> None:
        """Append one durable line to the journal."""
        line = json.dumps({"unix_s": time.time(), "event": event, **facts})
        append_line(self.path / "journal.jsonl", line)

    def events(self) -> list[JournalEvent]:
        """All complete lines of the journal, oldest first."""
        return _events(self.path / "journal.jsonl")

    def sbatch_calls(self) -> list[SbatchCall]:
        """Every sbatch that an intent announced, with its outcome."""
        found: dict[str, SbatchCall] = {}
        for event in self.events():
            if event.event == "intent":
                name, kind, base, rows, unix_s, cluster = event[1:7]
                found[name] = SbatchCall(
                    name, kind, base, rows, unix_s, "doubtful", cluster, "", event.runs_per_node
                )
            elif event.name in found:
                known = found[event.name]
                found[event.name] = replace(known, outcome=event.event, job_id=event.job_id)
        return list(found.values())

    def lacks_follow_up(self) -> bool:
        """Whether sbatch has refused the newest follow-up job."""
        calls = [call.outcome for call in self.sbatch_calls() if call.kind == "follow-up"]
        return calls[-1:] == ["refused"]

    def cancelled(self) -> set[str]:
        """Ids of the runs that `furnace cancel` has cancelled. They are not submitted again."""
        found: set[str] = set()
        for event in self.events():
            if event.event == "cancelled":
                found |= set(event.runs) or {row.run_id for row in self.rows}
        return found

    @cached_property
    def code(self) -> Path:
        """The code snapshot of this submission. Its batch scripts and follow-up jobs run it."""
        return Path(read_regular_text(self.path / "code", errors="surrogateescape").strip())

    @cached_property
    def rows(self) -> list[SubmissionRow]:
        """Lines of rows.jsonl. Empty if the submission was killed before it wrote them."""
        return read_rows(self.path / "rows.jsonl")


def submissions(folder: GridFolder) -> list[Submission]:
    """All submissions of a grid, oldest first."""
    return [Submission(path.resolve()) for path in folder.all_submissions()]


def job_name(grid: str, kind: str) -> str:
    """A unique job name: grid, kind and a random token."""
    prefix = f"furnace-{grid}-"
    if kind != "array":
        prefix += "follow-"
    return prefix + uuid.uuid4().hex[:8]


@cached_by_stat(lambda path: [path])
def _events(path: Path) -> list[JournalEvent]:
    try:
        records = list(read_json_lines(path))
    except FileNotFoundError:
        return []
    events = map(_event_of, records)
    return [event for event in events if event is not None]


def _event_of(record: dict[str, Any]) -> JournalEvent | None:
    """The event of a line. None if a key is missing or has the wrong type."""
    if not isinstance(record.get("event"), str):
        return None
    for key, kind in REQUIRED.get(record["event"], {"name": str}).items():
        if not isinstance(record.get(key), kind):
            return None
    rows, runs = record.get("rows", []), record.get("runs", [])
    if not _is_list_of(rows, int) or not _is_list_of(runs, str):
        return None
    job_id, name = record.get("job_id", ""), record.get("name", "")
    if not isinstance(job_id, str) or not isinstance(name, str):
        return None
    places = record.get("runs_per_node", 1)
    if not isinstance(places, int) or places < 1:
        return None
    return JournalEvent(
        event=record["event"],
        name=name,
        kind=record.get("kind", ""),
        base=record.get("base", 0),
        rows=tuple(rows),
        unix_s=record.get("unix_s", 0.0),
        cluster=record.get("cluster") or "",
        job_id=job_id,
        runs=tuple(runs),
        runs_per_node=places,
    )


def _is_list_of(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)
