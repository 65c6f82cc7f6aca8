"""A submission's journal: what was about to be done, before it is done, and what came of it.

    {"event": "intent", "name": ..., "kind": "array", "base": 0, "rows": [0, 1, 2]}     before sbatch
    {"event": "submitted", "name": ..., "job_id": "12"}                                after it, or when it was found
    {"event": "refused" | "absent", "name": ...}        sbatch said no; or nobody knows a job of that name
    {"event": "cancelled", "runs": [...]}               these; none named: all. No follow-up job sends them

The name is the job's own, unique, and chosen before sbatch: whoever finds an intent with no word on what came of it
asks Slurm for that name.
"""

import json
import os
import time
import uuid
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from furnace_hpc.host.regular_file import read_regular_text
from furnace_hpc.runs.file_cache import cached_by_stat
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.submitted import SubmissionRow, read_rows


@dataclass(frozen=True)
class Sent:
    """One sbatch: an array of rows, or a follow-up job."""

    name: str
    kind: str  # array, follow-up
    base: int  # row of the array's index 0
    rows: tuple[int, ...]
    unix_s: float = 0.0
    outcome: str = "doubtful"  # submitted, refused, absent
    cluster: str = ""  # Slurm's ClusterName
    job_id: str = ""

    @property
    def elements(self) -> dict[int, str]:
        """Row -> job id of its element."""
        return {row: f"{self.job_id}_{row - self.base}" for row in self.rows}


@dataclass(frozen=True)
class Submission:
    """One submission's folder, as it can be read at any time."""

    path: Path

    def note(self, event: str, **facts: Any) -> None:
        """Append one durable line."""
        line = json.dumps({"unix_s": time.time(), "event": event, **facts})
        with (self.path / "journal.jsonl").open("a+b") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            # by a crash: the next line must not be glued to it
            torn = file.read(1) not in (b"", b"\n")
            file.write(f"{os.linesep if torn else ''}{line}\n".encode())
            file.flush()
            os.fsync(file.fileno())

    def events(self) -> list[dict[str, Any]]:
        """All lines, oldest first; one that was torn by a crash is left out."""
        return _events(self.path / "journal.jsonl")

    def sent(self) -> list[Sent]:
        """Every sbatch that was about to be done, with what came of it."""
        found: dict[str, Sent] = {}
        for event in self.events():
            name = event.get("name", "")
            if event["event"] == "intent":
                found[name] = Sent(
                    name,
                    event["kind"],
                    event["base"],
                    tuple(event["rows"]),
                    event["unix_s"],
                    cluster=event.get("cluster") or "",
                )
            elif name in found:
                found[name] = replace(
                    found[name], outcome=event["event"], job_id=event.get("job_id", "")
                )
        return list(found.values())

    def cancelled(self) -> set[str]:
        """Run ids that `furnace cancel` has cancelled here: they are not sent any more."""
        found: set[str] = set()
        for event in self.events():
            if event["event"] == "cancelled":
                found |= set(event["runs"]) or {row.run_id for row in self.rows}
        return found

    @cached_property
    def code(self) -> Path:
        """The snapshot taken at this submission: what frames its attempts and follows its waves."""
        return Path(read_regular_text(self.path / "code", errors="surrogateescape").strip())

    @cached_property
    def rows(self) -> list[SubmissionRow]:
        """Lines of rows.jsonl. Empty if the submission was killed before it wrote them."""
        return read_rows(self.path / "rows.jsonl")


def submissions(folder: GridFolder) -> list[Submission]:
    """All submissions of a grid, oldest first."""
    return [Submission(path.resolve()) for path in folder.all_submissions()]


def job_name(grid: str, kind: str) -> str:
    """A name that no other job has: grid, kind and a token."""
    return f"furnace-{grid}-{'' if kind == 'array' else 'follow-'}{uuid.uuid4().hex[:8]}"


@cached_by_stat(lambda path: [path])
def _events(path: Path) -> list[dict[str, Any]]:
    try:
        lines = read_regular_text(path, errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [event for event in map(_parse, lines) if event]


def _parse(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and _is_whole(event) else None


def _is_whole(event: dict[str, Any]) -> bool:
    """Whether a line has what its kind of event needs: what damaged or hostile lines say counts for nothing."""
    wanted: dict[str, Any] = {"name": str}
    if event.get("event") == "intent":
        wanted = {"name": str, "kind": str, "base": int, "rows": list, "unix_s": int | float}
    elif event.get("event") == "cancelled":
        wanted = {"runs": list}
    if not isinstance(event.get("event"), str) or not all(
        isinstance(event.get(k), kind) for k, kind in wanted.items()
    ):
        return False
    listed = [entry for key, kind in wanted.items() if kind is list for entry in event[key]]
    words = (event.get("name", ""), event.get("job_id", ""))
    return all(isinstance(entry, int | str) for entry in listed) and all(
        isinstance(word, str) for word in words
    )
