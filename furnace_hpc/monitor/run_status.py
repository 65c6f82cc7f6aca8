"""Decide the state of a run from its files and, if they leave it open, from its newest Slurm job.

A run is `unknown` in three cases:

1. Slurm's answers do not decide whether its job exists: Slurm does not answer, the job is missing
   from one answer only, or a line cannot be read. See `_without_job` and `_of_later_wave`.
2. Slurm's word for the state is not in `slurm/job_states.py`. See `_by_job`.
3. The run's newest attempt has no end, and its process is on a host that cannot be seen from here.
   Or its end reason is not one of this version's. See `read_status` in `runs/state.py`.

A failed query never makes a run failed or interrupted.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

from furnace_hpc.host import gpu_check
from furnace_hpc.host.end_reasons import is_more_specific
from furnace_hpc.host.lifecycle import REQUEUED, with_rank_reason
from furnace_hpc.host.regular_file import read_regular_text
from furnace_hpc.monitor.assignments import JobAssignment, job_assignments
from furnace_hpc.monitor.job_cache import GONE, JobCache, read_job_cache
from furnace_hpc.monitor.silent_jobs import failure_of_ranks
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.records.attempts import Attempt, read_attempts
from furnace_hpc.runs.state import END_REASONS, RunState, RunStatus, read_status, within_budget
from furnace_hpc.slurm.job_states import Phase, explain_waiting, meaning
from furnace_hpc.slurm.parsing import Job

CANARY = "canary"  # the end reason of a run that has stopped as planned
CANCELLED = "cancelled"  # an end reason; also part of the reason text of every cancelled run


class StatusResolver:
    """Give the status of each run of a grid, from one query of Slurm."""

    def __init__(self, folder: GridFolder, job_cache: JobCache) -> None:
        self.job_cache = job_cache
        self.places = job_assignments(folder)

    def __call__(self, run: RunFolder) -> RunStatus:
        """The run's status. An interrupted run is queued if its follow-up job will retry it."""
        status, assigned = self.now(run), self.places.get(run.run_id)
        if status.state is not RunState.INTERRUPTED or CANCELLED in status.reason:
            return status
        if status.end_reason == CANARY:  # the follow-up job resumes it in another submission
            return status
        if assigned is None or not assigned.resubmitted or not self._is_live(assigned.follow_up):
            return status
        reason = f"{status.reason}; job {assigned.follow_up} will submit it again"
        return replace(status, state=RunState.QUEUED, reason=reason)

    def now(self, run: RunFolder) -> RunStatus:
        """The run's status, without the retry that a follow-up job will make."""
        return within_budget(run, self._now(run))

    def _now(self, run: RunFolder) -> RunStatus:
        status = read_status(run)
        assigned = self.places.get(run.run_id)
        if status.state is RunState.DONE or assigned is None:
            return status
        if not assigned.job_id:
            return self._of_later_wave(status, assigned)
        attempts = read_attempts(run)
        newest = attempts[-1] if attempts else None
        own = None  # the attempt that this job has made
        if newest and newest.job_id == assigned.job_id:
            own = newest
        elif newest and assigned.is_of_array(newest.job_id):
            own = newest
            will_retry = own.end_unix_s is not None and own.reason in REQUEUED
            if not (will_retry and self._is_live(assigned.job_id)):
                assigned = replace(assigned, job_id=str(own.job_id))
        elif newest and newest.start_unix_s > assigned.submitted_unix_s:
            return status  # started since by another way: by hand, or in a local queue
        status = replace(status, job_id=assigned.job_id)
        job = self.job_cache.job(assigned.job_id)
        if job is None:
            return self._without_job(status, own)
        return _by_job(run, status, job, own, assigned)

    def _of_later_wave(self, status: RunStatus, assigned: JobAssignment) -> RunStatus:
        """The status of a run that a follow-up job is to submit."""
        if assigned.cancelled:
            return replace(status, reason=status.reason or "cancelled before it was submitted")
        follow_up = assigned.follow_up
        if self.job_cache.job(follow_up) is None:
            reason = f"to be submitted by job {follow_up}; {self._why_unknown()}"
            return replace(status, state=RunState.UNKNOWN, reason=reason)
        if self._is_live(follow_up):
            reason = f"waits for a later wave, which job {follow_up} submits"
            return replace(status, state=RunState.QUEUED, reason=reason)
        if status.attempt:
            return status
        reason = gpu_check.stop_reason(str(assigned.submission))
        gone = f"follow-up job {follow_up} is gone; run `furnace submit` again"
        return replace(status, reason=reason or gone)

    def _without_job(self, status: RunStatus, own: Attempt | None) -> RunStatus:
        """Slurm's answers do not show the job. The run's files may be enough."""
        has_end = own is not None and own.end_unix_s is not None
        if has_end or status.state is RunState.RUNNING:
            return status
        reason = f"submitted as job {status.job_id}; {self._why_unknown()}"
        return replace(status, state=RunState.UNKNOWN, reason=reason)

    def _is_live(self, job_id: str) -> bool:
        job = self.job_cache.job(job_id) if job_id else None
        if job is None or job.word == GONE:
            return False
        return meaning(job.word).phase in (Phase.WAITING, Phase.RUNNING)

    def _why_unknown(self) -> str:
        if self.job_cache.failures:
            return self.job_cache.problem
        reason = "Slurm does not list it now"
        if self.job_cache.unread:
            reason += f", and {self.job_cache.unread} lines of squeue or sacct cannot be read"
        return reason


def observe(folder: GridFolder, needs_answer: bool = False) -> StatusResolver:
    """Query Slurm once for the whole grid. Nothing is queried if no run was submitted to Slurm.

    Raises:
        UnavailableError: `needs_answer` is set, and Slurm does not answer.
    """
    return StatusResolver(folder, read_job_cache(folder, needs_answer))


def observe_when_asked(folder: GridFolder) -> Callable[[RunFolder], RunStatus]:
    """Like `observe`, but query Slurm only when the first status is read."""
    resolver = cache(observe)
    return lambda run: resolver(folder)(run)


def batch_log(submission: Path, job_id: str) -> Path:
    """The output of an element's batch script. It is the only log of a run that did not start."""
    return submission / f"{job_id}_0_log.out"


def _by_job(
    run: RunFolder, status: RunStatus, job: Job, own: Attempt | None, assigned: JobAssignment
) -> RunStatus:
    """The status of a run whose job is in Slurm's answers, or is gone."""
    if job.word == GONE:
        return _ended(run, status, job, own, assigned)
    means = meaning(job.word)
    if means.phase is Phase.ENDED:
        return _ended(run, status, job, own, assigned)
    if assigned.shares_node and (own is None or own.end_unix_s):
        # The job is there for its other runs.
        if assigned.cancelled:
            reason = f"cancelled; {status.reason}" if own else "cancelled before it started"
            return replace(status, reason=reason, end_reason=CANCELLED)
        if own and own.reason not in REQUEUED:
            return status
    if means.phase is Phase.RUNNING:
        return _running(run, status, own, means.text)
    state, reason = RunState.UNKNOWN, f"job {job.job_id}: {means.text}"
    if means.phase is Phase.WAITING:
        state = RunState.QUEUED
        reason = f"job {job.job_id} {means.text}{explain_waiting(job.word, job.reason)}"
        if job.start:
            reason += f"; Slurm expects its start at {job.start.replace('T', ' ')[:-3]}"
    return replace(status, state=state, reason=reason)


def _running(run: RunFolder, status: RunStatus, own: Attempt | None, text: str) -> RunStatus:
    """The job is running."""
    if own is None:
        return replace(status, state=RunState.RUNNING, reason=text or "is starting")
    if own.end_unix_s is None:
        reason = text or failure_of_ranks(run, own.attempt)
        return replace(status, state=RunState.RUNNING, reason=reason)
    if own.reason in REQUEUED and status.state is RunState.INTERRUPTED:
        reason = f"{status.reason}; its job will start it again"
        return replace(status, state=RunState.RUNNING, reason=reason)
    return status  # the attempt has ended, and its job is ending


def _ended(
    run: RunFolder, status: RunStatus, job: Job, own: Attempt | None, assigned: JobAssignment
) -> RunStatus:
    """The job has ended or is gone. The run's own end reason counts first, then Slurm's."""
    text, ended = f"{meaning(job.word).text}{_by_whom(job)}", meaning(job.word).end_reason
    if job.word == GONE and assigned.cancelled:
        text = ended = CANCELLED
    elif job.word == GONE:
        text, ended = f"Slurm no longer lists job {job.job_id}", "killed"
    if own is None:
        return _ended_before_start(status, job, text, ended, assigned)
    if own.end_unix_s is None:
        ended, text = with_rank_reason(str(run.path), own.attempt, ended, text)
        return replace(status, state=END_REASONS[ended].state, reason=text, end_reason=ended)
    own_reason = own.reason or ""
    is_retryable = own_reason in END_REASONS and END_REASONS[own_reason].is_retried
    if is_more_specific(ended, own_reason) or (ended == CANCELLED and is_retryable):
        reason, state = f"{text}; {status.reason}", END_REASONS[ended].state
        return replace(status, state=state, reason=reason, end_reason=ended, exhausted_budget="")
    return status


def _ended_before_start(
    status: RunStatus, job: Job, text: str, ended: str, assigned: JobAssignment
) -> RunStatus:
    """The job has ended, and the run has no attempt of this job."""
    if unusable_gpus := gpu_check.stop_reason(str(assigned.submission)):
        return replace(status, reason=unusable_gpus, end_reason=CANCELLED)
    if ended == CANCELLED:
        reason = f"job {job.job_id} was cancelled{_by_whom(job)} before the run started"
        if status.reason:
            reason += f"; before that: {status.reason}"
        return replace(status, reason=reason, end_reason=CANCELLED)
    log_line = _last_line(batch_log(assigned.submission, job.job_id))
    reason = f"job {job.job_id} ended before the run started ({text}): {log_line}"
    return replace(status, state=RunState.INTERRUPTED, reason=reason, end_reason="infrastructure")


def _by_whom(job: Job) -> str:
    """Slurm writes `CANCELLED by 1000`, where 1000 is a user id."""
    _, _, user_id = job.word.partition(" by ")
    return f" by user id {user_id}" if user_id else ""


def _last_line(log: Path) -> str:
    try:
        text = read_regular_text(log, errors="replace")
    except FileNotFoundError:
        return f"there is no {log}. Check that compute nodes can write there, and the free space"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else f"{log} is empty"
