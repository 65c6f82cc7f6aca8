"""A line per run: what `status` shows, read from the runs' files and one look at Slurm."""

import time
from collections import Counter
from dataclasses import dataclass
from math import isfinite
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from furnace_hpc.cluster.evidence import Evidence
from furnace_hpc.cluster.journal import Submission, submissions
from furnace_hpc.cluster.observe import observe
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.records import last_record
from furnace_hpc.runs.state import RunState, RunStatus

ALIVE = (RunState.QUEUED, RunState.RUNNING, RunState.UNKNOWN)
LAST = (RunState.QUEUED, RunState.NEW, RunState.DONE)  # shown after what moves or needs somebody


@dataclass(frozen=True)
class Line:
    """One run, as it is."""

    run_id: str
    status: RunStatus
    steps: int
    loss: float | None
    samples_per_s: float | None
    left_s: float | None
    log: str

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
            "log": self.log,
        }


def overview(folder: GridFolder) -> tuple[list[Line], Evidence]:
    """All runs of the grid as it was last submitted, others that still wait or run, and the evidence."""
    observer = observe(folder)
    newest, others = _runs(folder)
    lines = [_line(run, observer(run), steps) for run, steps in newest.items()]
    lines += [line for line in (_line(run, observer(run), others[run]) for run in others) if line.status.state in ALIVE]
    return lines, observer.evidence


def render(rows: list[Line], evidence: Evidence, height: int = 10**6) -> tuple[RenderableType, str]:
    """A table of at most `height` lines, and a sentence over all runs."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("run", "state", "attempt", "step", "loss", "samples/s", "left", "job", "why"):
        table.add_column(column, no_wrap=column != "why", justify="right" if column in _RIGHT else "left")
    shown = sorted(rows, key=lambda row: row.status.state in LAST)[: max(1, height)]
    for row in shown:
        status = row.status
        loss, rate = (f"{value:,.4g}" if value is not None else "" for value in (row.loss, row.samples_per_s))
        left = duration(row.left_s) if row.left_s is not None else ""
        attempt = str(status.attempt or "")
        step = f"{status.step}/{row.steps}"
        table.add_row(row.run_id, status.state.value, attempt, step, loss, rate, left, status.job_id, status.reason)
    counts = Counter(row.status.state for row in rows)
    words = [f"{counts[state]:,} {state.value}" for state in RunState if counts[state]]
    if len(shown) < len(rows):
        words.append(f"{len(rows) - len(shown):,} not shown")
    if evidence.failures:
        since = f"{time.time() - evidence.answered_unix_s:,.0f} s ago" if evidence.answered_unix_s else "never"
        words.append(f"{evidence.error} (last answer: {since})")
    return table, f"{len(rows):,} runs: {', '.join(words)}"


_RIGHT = ("attempt", "step", "loss", "samples/s", "left")


def _runs(folder: GridFolder) -> tuple[dict[RunFolder, int], dict[RunFolder, int]]:
    """Runs, with their steps: of all submissions that had the newest one's settings, and all others (`--set`)."""
    all_ = [submission for submission in submissions(folder) if submission.rows]  # others were cut off
    asked = _settings(all_[-1]) if all_ else ""
    newest: dict[RunFolder, int] = {}
    others: dict[RunFolder, int] = {}
    for submission in all_:
        runs = newest if _settings(submission) == asked else others
        runs |= {folder.run(row["run_id"]): row["steps"] for row in submission.rows}
    return newest, {run: steps for run, steps in others.items() if run not in newest}


def _settings(submission: Submission) -> str:
    """The last lines of grid.yaml, from `settings:` on."""
    try:
        text = (submission.path / "grid.yaml").read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    return text.rpartition("\nsettings:")[2]


def _line(run: RunFolder, status: RunStatus, steps: int) -> Line:
    record = last_record(run.metrics(status.attempt)) if status.attempt else None
    left_s = None
    if record and status.state is RunState.RUNNING and "step_time_s" in record:
        left_s = max(0, steps - int(record["step"])) * float(record["step_time_s"])
    return Line(
        run.run_id,
        status,
        steps,
        record.get("train/loss") if record else None,
        record.get("samples_per_s") if record and status.state is RunState.RUNNING else None,
        left_s,
        str(run.log(status.attempt, 0)) if status.attempt else "",
    )


def duration(seconds: float) -> str:
    """A time span in words."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
