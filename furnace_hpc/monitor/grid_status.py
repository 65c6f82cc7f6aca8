"""A line per run: what `status` shows, read from the runs' files and one look at Slurm."""

from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from furnace_hpc.host.regular_file import read_regular_text
from furnace_hpc.monitor.job_cache import Evidence
from furnace_hpc.monitor.run_status import observe
from furnace_hpc.runs.file_cache import cached_by_stat
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.journal import submissions
from furnace_hpc.runs.records.attempts import read_attempts
from furnace_hpc.runs.records.metrics import last_record
from furnace_hpc.runs.state import RunState, RunStatus

ALIVE = (RunState.QUEUED, RunState.RUNNING, RunState.UNKNOWN)


@dataclass(frozen=True)
class Line:
    """One run, as it is."""

    folder: RunFolder
    status: RunStatus
    steps: int
    loss: float | None
    samples_per_s: float | None
    left_s: float | None
    # why the newest attempt that has ended did; none: there is no such, or the run is done
    last_end: str

    @property
    def run_id(self) -> str:
        """The run's name."""
        return self.folder.run_id

    def as_json(self) -> dict[str, Any]:
        """Plain data, for scripts."""
        status = self.status
        return {
            "run": self.run_id,
            "state": status.state.value,
            "attempt": status.attempt,
            "step": status.step,
            "steps": self.steps,
            "loss": self.loss if self.loss is None or isfinite(self.loss) else str(self.loss),
            "samples_per_s": self.samples_per_s,
            "left_s": self.left_s,
            "job_id": status.job_id or None,
            "reason": status.reason,
            "last_end": self.last_end,
            "log": str(self.folder.log(status.attempt, 0)) if status.attempt else "",
        }


def overview(folder: GridFolder) -> tuple[list[Line], Evidence]:
    """All runs of the grid as it was last submitted, others that still wait or run, and the evidence."""
    observer = observe(folder)
    newest, others = _runs(folder)
    lines = [line_of(run, observer(run), steps) for run, steps in newest.items()]
    rest = (line_of(run, observer(run), steps) for run, steps in others.items())
    return lines + [line for line in rest if line.status.state in ALIVE], observer.evidence


def line_of(run: RunFolder, status: RunStatus, steps: int) -> Line:
    """One run's line; speed and time left only while it runs."""
    record = (last_record(run.metrics(status.attempt)) if status.attempt else None) or {}
    running, left_s = status.state is RunState.RUNNING, None
    if running and "step_time_s" in record:
        left_s = max(0, steps - int(record["step"])) * float(record["step_time_s"])
    rate = record.get("samples_per_s") if running else None
    return Line(run, status, steps, record.get("train/loss"), rate, left_s, _last_end(run, status))


def _last_end(run: RunFolder, status: RunStatus) -> str:
    if status.state is RunState.DONE or not status.attempt:
        return ""
    ends = [
        f"{attempt.attempt}: {attempt.reason}" for attempt in read_attempts(run) if attempt.reason
    ]
    return f"attempt {ends[-1]}" if ends else ""


def _runs(folder: GridFolder) -> tuple[dict[RunFolder, int], dict[RunFolder, int]]:
    """Runs, with their steps: of all submissions that had the newest one's settings, and all others (`--set`)."""
    # others were cut off
    all_ = [submission for submission in submissions(folder) if submission.rows]
    asked = _settings(all_[-1].path / "grid.yaml") if all_ else ""
    newest: dict[RunFolder, int] = {}
    others: dict[RunFolder, int] = {}
    for submission in all_:
        runs = newest if _settings(submission.path / "grid.yaml") == asked else others
        runs |= {folder.run(row["run_id"]): row["steps"] for row in submission.rows}
    return newest, {run: steps for run, steps in others.items() if run not in newest}


@cached_by_stat(lambda grid: [grid])
def _settings(grid: Path) -> str:
    """The last lines of a submission's grid.yaml, from `settings:` on."""
    try:
        return read_regular_text(grid).rpartition("\nsettings:")[2]
    except FileNotFoundError:
        return ""
