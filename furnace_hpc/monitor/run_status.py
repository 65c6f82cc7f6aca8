"""The state of a run with everything known: its own files first, then what Slurm says of its newest job."""

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from furnace_hpc.host import gpu_check
from furnace_hpc.host.end_reasons import is_more_specific
from furnace_hpc.host.lifecycle import REQUEUED, with_own_word
from furnace_hpc.host.regular_file import read_regular, read_regular_text
from furnace_hpc.monitor.held_jobs import is_held
from furnace_hpc.monitor.job_cache import GONE, Evidence, gather
from furnace_hpc.runs.by_hand import manually_started
from furnace_hpc.runs.file_cache import cached_by_stat
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.journal import submissions
from furnace_hpc.runs.records.attempts import Attempt, read_attempts
from furnace_hpc.runs.state import END_REASONS, RunState, RunStatus, read_status, within_budget
from furnace_hpc.slurm.job_states import Phase, meaning
from furnace_hpc.slurm.parsing import Job

CANCELLED = "cancelled"  # in the reason of every run that somebody stopped


@dataclass(frozen=True)
class JobAssignment:
    """Where a run is in the newest submission that means to start it."""

    submission: Path  # none (.): begun by a batch script of the user's own
    job_id: str  # of its array element; none: it waits for a later wave
    follow_up: str  # job that sends what is left; none: there is no such job
    sent_unix_s: float = 0.0
    cancelled: bool = False
    sent_again: bool = False  # by the follow-up job, should it be interrupted


class StatusResolver:
    """Tells the state of a grid's runs, from one look at Slurm."""

    def __init__(self, folder: GridFolder, evidence: Evidence) -> None:
        self.evidence = evidence
        self.places = _places(folder)

    def __call__(self, run: RunFolder) -> RunStatus:
        """The run's state; one that a follow-up job is about to send again is queued."""
        status, place = self.now(run), self.places.get(run.run_id)
        again = status.state is RunState.INTERRUPTED and CANCELLED not in status.reason
        if place and again and place.sent_again and self._is_live(place.follow_up):
            return replace(
                status,
                state=RunState.QUEUED,
                reason=f"{status.reason}; job {place.follow_up} sends it again",
            )
        return status

    def now(self, run: RunFolder) -> RunStatus:
        """The run's state, without what is to come."""
        return within_budget(run, self._now(run))

    def _now(self, run: RunFolder) -> RunStatus:
        by_files = read_status(run)
        place = self.places.get(run.run_id)
        if by_files.state is RunState.DONE or place is None:
            return by_files
        if not place.job_id:
            return self._waiting_for_a_wave(by_files, place)
        attempts = read_attempts(run)
        newest = attempts[-1] if attempts else None
        if newest and newest.job_id != place.job_id and newest.start_unix_s > place.sent_unix_s:
            return by_files  # begun since by something else: by hand, or in a local queue
        status = replace(by_files, job_id=place.job_id)
        ours = newest if newest and newest.job_id == place.job_id else None  # this job's attempt
        job = self.evidence.job(place.job_id)
        if job is None:
            said = by_files.state is RunState.RUNNING or (
                ours is not None and ours.end_unix_s is not None
            )
            why = f"submitted as job {place.job_id}; {self._why_unknown()}"
            return status if said else replace(status, state=RunState.UNKNOWN, reason=why)
        means = meaning(job.word)
        match Phase.ENDED if job.word == GONE else means.phase:
            case Phase.ENDED:
                return _ended(run, status, job, ours, place)
            case Phase.WAITING:
                return replace(
                    status,
                    state=RunState.QUEUED,
                    reason=f"job {job.job_id} {means.says}{_because(job)}",
                )
            case Phase.RUNNING:
                return _running(status, ours, means.says)
        return replace(status, state=RunState.UNKNOWN, reason=f"job {job.job_id}: {means.says}")

    def _waiting_for_a_wave(self, status: RunStatus, place: JobAssignment) -> RunStatus:
        if place.cancelled:
            return replace(status, reason=status.reason or "cancelled before it was sent")
        job = self.evidence.job(place.follow_up)
        if job is None:
            why = f"to be sent by job {place.follow_up}; {self._why_unknown()}"
            return replace(status, state=RunState.UNKNOWN, reason=why)
        if self._is_live(place.follow_up):
            why = f"waits for a later wave, which job {job.job_id} sends"
            return replace(status, state=RunState.QUEUED, reason=why)
        gone = f"job {place.follow_up} was to send it, and is not there any more: submit again"
        why = gpu_check.stopped_by(str(place.submission)) or gone
        return status if status.attempt else replace(status, reason=why)

    def _is_live(self, job_id: str) -> bool:
        job = self.evidence.job(job_id) if job_id else None
        return (
            job is not None
            and job.word != GONE
            and meaning(job.word).phase in (Phase.WAITING, Phase.RUNNING)
        )

    def _why_unknown(self) -> str:
        if self.evidence.failures:
            return self.evidence.error
        unread = self.evidence.unread
        return f"Slurm does not list it now{f', and {unread} lines of its answer cannot be read' if unread else ''}"


def observe(folder: GridFolder, must: bool = False) -> StatusResolver:
    """Look at Slurm once for the whole grid (not at all, where nothing was submitted to it).

    Raises:
        UnavailableError: `must`, and Slurm does not answer.
    """
    return StatusResolver(folder, gather(folder, must))


def observe_when_asked(folder: GridFolder) -> Callable[[RunFolder], RunStatus]:
    """As `observe`, and Slurm is asked only when the state of a first run is."""
    observer = cache(observe)
    return lambda run: observer(folder)(run)


def batch_log(submission: Path, job_id: str) -> Path:
    """What the batch script of an element printed: all that there is when the run never began."""
    return submission / f"{job_id}_0_log.out"


def _running(status: RunStatus, ours: Attempt | None, says: str) -> RunStatus:
    if ours is None or ours.end_unix_s is None:
        return replace(
            status, state=RunState.RUNNING, reason=says or ("" if ours else "is starting")
        )
    if ours.reason in REQUEUED and status.state is RunState.INTERRUPTED:
        return replace(
            status, state=RunState.RUNNING, reason=f"{status.reason}; its job starts it again"
        )
    return status  # its own last word, while its job is ending


def _ended(
    run: RunFolder, status: RunStatus, job: Job, ours: Attempt | None, place: JobAssignment
) -> RunStatus:
    """Its job is over: the run's own word on how, or Slurm's where the run had no time for one."""
    says, reason = f"{meaning(job.word).says}{_by(job)}", meaning(job.word).ended
    if job.word == GONE:
        gone = ("is no longer known to Slurm", "killed")
        says, reason = (CANCELLED, CANCELLED) if place.cancelled else gone
    if ours is None and (against := gpu_check.stopped_by(str(place.submission))):
        return replace(status, reason=against, ended=CANCELLED)
    if ours is None and reason == CANCELLED:
        before = f"; before that: {status.reason}" if status.reason else ""
        why = f"job {job.job_id} was cancelled{_by(job)} before it began{before}"
        return replace(status, reason=why, ended=CANCELLED)
    if ours is None:
        why = f"job {job.job_id} ended before the run began ({says}): {_last_words(place.submission, job.job_id)}"
        return replace(status, state=RunState.INTERRUPTED, reason=why, ended="infrastructure")
    if ours.end_unix_s is None:
        says = f"job {job.job_id} {says}" if job.word == GONE and reason != CANCELLED else says
        reason, says = with_own_word(str(run.path), ours.attempt, reason, says)
        return replace(status, state=END_REASONS[reason].state, reason=says, ended=reason)
    known = ours.reason or ""
    if (
        reason == CANCELLED and known in END_REASONS and END_REASONS[known].again
    ) or is_more_specific(reason, known):
        why = f"{says}; {status.reason}"
        return replace(
            status, state=END_REASONS[reason].state, reason=why, ended=reason, used_up=""
        )
    return status


def _places(folder: GridFolder) -> dict[str, JobAssignment]:
    """Run id -> its place; a later submission has the last word, and what was begun by hand after it."""
    places: dict[str, JobAssignment] = {}
    all_ = submissions(folder)
    for submission in all_:
        sent, cancelled = submission.sent(), submission.cancelled()
        follow_up = next(
            (s.job_id for s in reversed(sent) if s.kind == "follow-up" and s.job_id), ""
        )
        run_ids = [str(row["run_id"]) for row in submission.rows]
        if follow_up:
            waiting = [row["run_id"] for row in submission.rows if row["to_do"]]
            places |= {
                i: JobAssignment(submission.path, "", follow_up, cancelled=i in cancelled)
                for i in waiting
            }
        times = Counter(row for one in sent if one.outcome == "submitted" for row in one.rows)
        retries = _retries(submission.path)
        for array in sent:
            if array.outcome == "submitted" and array.kind == "array":
                for row, job_id in array.elements.items():
                    run_id = run_ids[row]
                    again = times[row] <= retries and run_id not in cancelled
                    places[run_id] = JobAssignment(
                        submission.path, job_id, follow_up, array.unix_s, run_id in cancelled, again
                    )
    for run_id, attempt in manually_started(folder, all_).items():
        if run_id not in places or attempt.start_unix_s > places[run_id].sent_unix_s:
            places[run_id] = JobAssignment(Path(), attempt.job_id or "", "", attempt.start_unix_s)
    return places


_NO_REASON = ("", "none", "noneassigned", "null", "unknown", "n/a")
# reasons of a waiting job that only somebody can change, in small letters alone, and what to do
_NEVER = {
    "dependencyneversatisfied": "it never will run: cancel it",
    "partitiontimelimit": "its time limit is more than the partition's: lower resources.timeout_min, cancel and submit",
    "partitionnodelimit": "it asks for more nodes than the partition gives: lower nodes, cancel and submit",
    "partitiondown": "the partition is down: wait for the site",
    "partitioninactive": "the partition is inactive: wait for the site",
    "badconstraints": "no nodes can ever satisfy it: fix the profile, cancel and submit",
    "jobhelduser": "it is held: `scontrol release JOB` lets it go on",
    "jobheldadmin": "it is held by an administrator: ask the site",
    "jobholdmaxrequeue": "requeued too often and held: look why, then `scontrol release JOB`",
}


@cached_by_stat(lambda submission: [submission / "profile.json"])
def _retries(submission: Path) -> int:
    try:
        return int(json.loads(read_regular(submission / "profile.json"))["retries"])
    except (OSError, ValueError, KeyError):
        return 0


def _because(job: Job) -> str:
    plain = re.sub(r"[\s_()]", "", job.reason).lower()
    if plain in _NO_REASON:
        return ""
    what_to_do = "submit again lets it go on" if is_held(job) else _NEVER.get(plain)
    return f" ({job.reason}{f': {what_to_do}' if what_to_do else ''})"


def _by(job: Job) -> str:
    """`CANCELLED by 1000` says who did it."""
    _, _, who = job.word.partition(" by ")
    return f" by user id {who}" if who else ""


def _last_words(submission: Path, job_id: str) -> str:
    log = batch_log(submission, job_id)
    try:
        lines = [
            line for line in read_regular_text(log, errors="replace").splitlines() if line.strip()
        ]
    except FileNotFoundError:
        return f"there is no {log}: do compute nodes see that folder, and has it space?"
    return lines[-1].strip() if lines else f"{log} is empty"
