"""Collect what `furnace status` shows of each run, from the runs' files and one query of Slurm."""

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.host.regular_file import read_regular_text
from furnace_hpc.monitor.job_cache import JobCache
from furnace_hpc.monitor.local_queue import status_in_queue
from furnace_hpc.monitor.run_status import observe
from furnace_hpc.runs.file_cache import cached_by_stat, one_look
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.journal import SCOPE, submissions
from furnace_hpc.runs.records.attempts import read_attempts
from furnace_hpc.runs.records.metrics import newest_record
from furnace_hpc.runs.state import RunState, RunStatus
from furnace_hpc.slurm.job_states import Phase, meaning
from furnace_hpc.slurm.reasons import Starts, explain

_Length = tuple[int, float | None]  # steps and epochs
ALIVE = (RunState.QUEUED, RunState.RUNNING, RunState.UNKNOWN)


class Waiting(NamedTuple):
    """Why a job waits."""

    reason: str  # Slurm's word
    starts: str  # whether it starts: a value of `Starts`; empty if that is not known
    expected_start: str  # local time; empty if Slurm names none

    @property
    def needs_action(self) -> bool:
        """Whether the job does not start without an action of the user."""
        return self.starts in (Starts.ACTION, Starts.NEVER)


@dataclass(frozen=True)
class StatusLine:
    """What `furnace status` shows of one run."""

    folder: RunFolder
    status: RunStatus
    steps: int
    loss: float | None
    samples_per_s: float | None
    left_s: float | None
    # end reason of the newest attempt that has ended; empty if there is none, or the run is done
    last_end: str
    model_tflop_s: float | None = None  # of one process
    mfu: float | None = None
    data_wait: float | None = None  # share of the time of a step
    epochs: float | None = None  # of a run whose length is given in epochs
    waiting: Waiting | None = None  # of a run whose job waits in Slurm's queue

    @property
    def run_id(self) -> str:
        """The run's name."""
        return self.folder.run_id

    def as_json(self) -> dict[str, Any]:
        """The entry of `status --json`."""
        status, log = self.status, ""
        loss: float | str | None = self.loss
        if isinstance(loss, float) and not isfinite(loss):
            loss = str(loss)  # JSON has no NaN
        if status.attempt:
            log = str(self.folder.log(status.attempt, 0))
        known: dict[str, Any] = {"epochs": self.epochs} if self.epochs is not None else {}
        if self.waiting:
            known["waiting"] = self.waiting._asdict()
        return known | {
            "run": self.run_id,
            "state": status.state.value,
            "attempt": status.attempt,
            "step": status.step,
            "steps": self.steps,
            "loss": loss,
            "samples_per_s": self.samples_per_s,
            "model_tflop_s": self.model_tflop_s,
            "mfu": self.mfu,
            "data_wait": self.data_wait,
            "left_s": self.left_s,
            "job_id": status.job_id or None,
            "reason": status.reason,
            "last_end": self.last_end,
            "log": log,
        }


@one_look()
def overview(folder: GridFolder) -> tuple[list[StatusLine], JobCache]:
    """List the runs of the newest submission's settings, then other runs that still wait or run.

    Also returns what Slurm has answered.
    """
    resolver = observe(folder)
    newest, others = _runs(folder)
    in_queue = status_in_queue(folder)

    def line(run: RunFolder, length: _Length) -> StatusLine:
        return line_of(run, in_queue(run.run_id, resolver(run)), *length)

    lines = [line(run, length) for run, length in newest.items()]
    rest = [line(run, length) for run, length in others.items()]
    lines += [one for one in rest if one.status.state in ALIVE]
    return [_with_wait(one, resolver.job_cache) for one in lines], resolver.job_cache


def _with_wait(line: StatusLine, job_cache: JobCache) -> StatusLine:
    job = job_cache.queued.get(line.status.job_id)
    if job is None or line.status.state is not RunState.QUEUED:
        return line
    if meaning(job.word).phase is not Phase.WAITING:
        return line
    known = explain(job.reason)
    starts = known.starts.value if known else ""
    return replace(line, waiting=Waiting(job.reason, starts, job.start))


def continues(folder: GridFolder, job_cache: JobCache) -> bool:
    """Whether a follow-up job will submit the table's runs after the trials of a tuned grid."""
    for submission in submissions(folder):
        if not (submission.path / SCOPE).exists():
            continue
        for call in submission.sbatch_calls():
            job = job_cache.queued.get(call.job_id)
            is_live = job is not None and meaning(job.word).phase is not Phase.ENDED
            if call.kind == "follow-up" and is_live:
                return True
    return False


def line_of(
    run: RunFolder, status: RunStatus, steps: int, epochs: float | None = None
) -> StatusLine:
    """Read one run. Speed and time left are known only while it runs."""
    if status.state is RunState.DONE and status.step < steps and _is_stopped_early(run):
        reason = f"stopped early, before step {steps}"
        if epochs is not None:
            epochs *= status.step / steps
        steps, status = status.step, replace(status, reason=reason)
    record: dict[str, Any] = {}
    if status.attempt:
        record = newest_record(run, status.attempt) or {}
    rate = left_s = None
    speeds: dict[str, Any] = {}
    if status.state is RunState.RUNNING:
        rate, speeds = record.get("samples_per_s"), _speeds(record)
        if "step_time_s" in record:
            left_s = max(0, steps - int(record["step"])) * float(record["step_time_s"])
    loss, last_end = record.get("train/loss"), _last_end(run, status)
    return StatusLine(run, status, steps, loss, rate, left_s, last_end, **speeds, epochs=epochs)


def _is_stopped_early(run: RunFolder) -> bool:
    from furnace_hpc.runs.records.result import read_result  # the import takes long

    try:
        result = read_result(run)
    except ConfigError:  # damaged, which the table reports
        return False
    return result is not None and result.stopped_early


def _speeds(record: dict[str, Any]) -> dict[str, Any]:
    """Model TFLOP/s, MFU and share of the time that waits for data, if a record has them."""
    found: dict[str, Any] = {
        name: record[name] for name in ("model_tflop_s", "mfu") if name in record
    }
    if record.get("step_time_s") and "data_wait_s" in record:
        found["data_wait"] = float(record["data_wait_s"]) / float(record["step_time_s"])
    return found


def _last_end(run: RunFolder, status: RunStatus) -> str:
    if status.state is RunState.DONE or not status.attempt:
        return ""
    ended = [attempt for attempt in read_attempts(run) if attempt.reason]
    return f"attempt {ended[-1].attempt}: {ended[-1].reason}" if ended else ""


def _runs(folder: GridFolder) -> tuple[dict[RunFolder, _Length], dict[RunFolder, _Length]]:
    """Map runs to their length: those with the newest submission's settings, and all others.

    A run that was renamed is listed once, under its newest name.
    """
    # a submission without rows was killed while it was written
    whole = [submission for submission in submissions(folder) if submission.rows]
    settings = _settings(whole[-1].path / "grid.yaml") if whole else ""
    newest: dict[RunFolder, _Length] = {}
    others: dict[RunFolder, _Length] = {}
    names: dict[object, RunFolder] = {}  # folder on disk -> its newest name
    on_disk = _identities(folder)
    for submission in whole:
        runs = {folder.run(row.run_id): (row.steps, row.epochs) for row in submission.rows}
        if _settings(submission.path / "grid.yaml") == settings:
            newest |= runs
            names |= {on_disk.get(run.run_id, run): run for run in runs}
        else:
            others |= runs
    others = {run: length for run, length in others.items() if run not in newest}
    listed = set(names.values())
    return {run: length for run, length in newest.items() if run in listed}, others


def _identities(folder: GridFolder) -> dict[str, object]:
    """Name -> folder on disk. The new folder of a renamed row is a link to the old one."""
    found: dict[str, object] = {}
    with suppress(FileNotFoundError), os.scandir(folder.path) as entries:
        for entry in entries:
            with suppress(OSError):  # a link that leads nowhere
                facts = entry.stat() if entry.is_symlink() else None
                found[entry.name] = facts.st_ino if facts else entry.inode()
    return found


@cached_by_stat(lambda grid: [grid])
def _settings(grid: Path) -> str:
    """The end of a submission's grid.yaml, from `settings:` on."""
    try:
        return read_regular_text(grid).rpartition("\nsettings:")[2]
    except FileNotFoundError:
        return ""
