"""Cache the jobs of a grid: one squeue and at most one sacct, in a file that all commands share.

A failed query changes nothing. A job counts as gone if two answers, some seconds apart, do not list
it.
"""

import json
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from furnace_hpc.config.errors import ConfigError, UnavailableError
from furnace_hpc.host.json_lines import read_json
from furnace_hpc.runs.file_cache import look_again, once_per_look
from furnace_hpc.runs.folder import GridFolder, RunFolder, has_result, write_atomically
from furnace_hpc.runs.journal import SCOPE, SbatchCall, Submission, submissions
from furnace_hpc.runs.manual_starts import manually_started
from furnace_hpc.runs.records.attempts import read_attempts
from furnace_hpc.slurm import client
from furnace_hpc.slurm.job_states import Phase, meaning
from furnace_hpc.slurm.parsing import Job

FRESH_S = 10  # commands within this time share one answer
# The same if no job of the grid is in the queue. Only a requeue by hand could change that.
IDLE_S = 60
GONE_AFTER_S = 5  # between the two answers that make a job gone
MAX_BACK_OFF_S = 300
GONE = "GONE"  # Furnace's own word: no answer lists the job any more


@dataclass
class JobCache:
    """What Slurm has answered about a grid's jobs."""

    queued: dict[str, Job] = field(default_factory=dict)  # by id, from the last squeue
    # by id, from sacct: jobs that squeue no longer lists
    ended: dict[str, Job] = field(default_factory=dict)
    # job id -> time of the first answer that did not list it
    missing: dict[str, float] = field(default_factory=dict)
    # of this user and of all grids, for the site's submit limit
    live_jobs: int = 0
    answered_unix_s: float = 0.0
    asked_unix_s: float = 0.0
    # unreadable lines of the last answers; each may be a job
    unread: int = 0
    failures: int = 0  # since the last answer
    error: str = ""

    @property
    def problem(self) -> str:
        """The error without the hint on how to fix it."""
        return self.error.partition(". ")[0]

    def job(self, job_id: str) -> Job | None:
        """The job from the newest answer. None if no answer shows whether it exists."""
        job = self.queued.get(job_id) or self.ended.get(job_id)
        if job is None and self.is_gone(job_id):
            return Job(job_id, GONE, "")
        return job

    def is_fresh(self, jobs: Iterable[str]) -> bool:
        """Whether the last answer is recent and covers all these jobs.

        After failures: whether the pause before the next query has not passed.
        """
        return self.is_recent() and (self.failures > 0 or self._covers(jobs))

    def is_recent(self) -> bool:
        """Whether the last query was not long ago, or after failures: the pause has not passed."""
        pause_s: float = min(FRESH_S * 2**self.failures, MAX_BACK_OFF_S)
        if not self.failures and not self.queued and all(map(self.is_gone, self.missing)):
            pause_s = IDLE_S
        return time.time() < self.asked_unix_s + pause_s

    def _covers(self, jobs: Iterable[str]) -> bool:
        return all(job in self.queued or job in self.ended or job in self.missing for job in jobs)

    def is_gone(self, job_id: str) -> bool:
        """Whether Slurm no longer lists the job."""
        first = self.missing.get(job_id)
        return first is not None and self.answered_unix_s - first >= GONE_AFTER_S


class ExpectedJob(NamedTuple):
    """A job in the journals. Its name is unique. Its id is not: another cluster may use it too."""

    run: RunFolder | None  # None for a follow-up job
    name: str  # empty if the user submitted it by hand under any name
    cluster: str
    submitted_unix_s: float = 0.0
    # of a follow-up job: the runs that it may submit again; of a job with several runs: those
    follows: tuple[RunFolder, ...] = ()
    continues: bool = False  # a follow-up job that submits the table's runs after trials

    def is_named(self, name: str) -> bool:
        """Whether a job of this name can be the expected one."""
        return self.name in ("", name)

    @property
    def has_result(self) -> bool:
        """Whether the job's run is done."""
        return self.run is not None and has_result(self.run)


def read_job_cache(folder: GridFolder, needs_answer: bool = False) -> JobCache:
    """Read the cached answers on a grid. Query Slurm and write the cache if they are not fresh.

    Args:
        folder: the grid.
        needs_answer: query now, and again until no job is in doubt, for commands that act on the
            answer.

    Raises:
        UnavailableError: `needs_answer` is set, and Slurm does not answer.
    """
    known = _read(folder)
    # The runs' files are read once, after Slurm's answer. So a certain query needs no other reason.
    if needs_answer or known.is_recent() or not _has_open_job(folder, known):
        jobs = newest_jobs(folder)
        open_ids = [job_id for job_id, job in jobs.items() if not _is_settled(job_id, job, known)]
        if needs_answer:
            _check_cluster(
                {jobs[job_id].cluster for job_id in open_ids if job_id not in known.ended}
            )
            return _query_until_certain(folder, known)
        if not open_ids:
            return replace(known, failures=0)  # earlier failures do not matter any more
        if known.is_fresh(open_ids):
            return known
    asked_unix_s = time.time()
    try:
        return _query(folder, known)
    except UnavailableError as error:
        failures = known.failures + 1
        now = replace(known, failures=failures, error=str(error), asked_unix_s=asked_unix_s)
        _write(folder, now)
        return now


def expire_job_cache(folder: GridFolder) -> None:
    """Let the next command query Slurm, because this one has changed the state of jobs."""
    _write(folder, replace(_read(folder), asked_unix_s=0.0, failures=0))


def _is_settled(job_id: str, job: ExpectedJob, known: JobCache) -> bool:
    """Whether no answer about the job can change the status of a run."""
    if job.run:
        return _is_done_or_superseded(job.run, job.submitted_unix_s)
    if job_id in known.ended or known.is_gone(job_id):
        return True
    if job.continues:
        return False
    return all(_is_done_or_superseded(run, job.submitted_unix_s) for run in job.follows)


def _is_done_or_superseded(run: RunFolder, submitted_unix_s: float) -> bool:
    """Whether the run is done, or was started later without Slurm."""
    if has_result(run):
        return True
    attempts = read_attempts(run) if submitted_unix_s else []
    if not attempts:
        return False
    return attempts[-1].job_id is None and attempts[-1].start_unix_s > submitted_unix_s


def _check_cluster(clusters: set[str]) -> None:
    """Raise ConfigError if an open job is on another cluster. It would count as gone here."""
    named = clusters - {""}
    here = client.cluster_name() if named else None
    others = sorted(named - {here})
    if here and others:
        raise ConfigError(
            f"jobs of this grid were submitted on cluster {others[0]!r}, but this is {here!r}: run "
            f"the command there, or give another --runs-root here"
        )


def _has_open_job(folder: GridFolder, known: JobCache) -> bool:
    """Whether an answer about a job in the journals can change the status of a run.

    It stops at the first such job, which is among the newest ones of a grid that has any.
    """
    jobs = _jobs_in_journals(folder)
    return any(not _is_settled(job_id, jobs[job_id], known) for job_id in reversed(jobs))


def _query_until_certain(folder: GridFolder, known: JobCache) -> JobCache:
    """Query Slurm. If a job is missing from one answer only, query again after GONE_AFTER_S."""
    now = _retry_once(lambda: _query(folder, known))
    in_doubt = [since for job_id, since in now.missing.items() if not now.is_gone(job_id)]
    if not in_doubt:
        return now
    time.sleep(max(0.0, max(in_doubt) + GONE_AFTER_S + 0.1 - time.time()))
    return _retry_once(lambda: _query(folder, now))


def _retry_once(query: Callable[[], JobCache]) -> JobCache:
    try:
        return query()
    except UnavailableError:
        time.sleep(2)  # Slurm's commands themselves have tried for about ten seconds
        return query()


def newest_jobs(folder: GridFolder) -> dict[str, ExpectedJob]:
    """Map job id to the newest job of each run, all follow-up jobs, and jobs submitted by hand."""
    by_hand = {
        attempt.job_id or "": ExpectedJob(folder.run(run_id), "", "")
        for run_id, attempt in manually_started(folder, submissions(folder)).items()
    }
    return _jobs_in_journals(folder) | by_hand


@once_per_look
def _jobs_in_journals(folder: GridFolder) -> dict[str, ExpectedJob]:
    """Map job id to the newest job of each run, and all follow-up jobs, after the runs' jobs."""
    newest: dict[str, tuple[str, ExpectedJob]] = {}  # run id -> job id, job
    shared: dict[str, ExpectedJob] = {}
    follow_ups: dict[str, ExpectedJob] = {}
    for submission in submissions(folder):
        for call in submission.sbatch_calls():
            if call.outcome != "submitted":
                continue
            job = ExpectedJob(None, call.name, call.cluster, call.unix_s)
            if call.kind != "array":
                follows = _runs_to_do(folder, submission)
                has_trials = (submission.path / SCOPE).exists()
                follow_ups[call.job_id] = job._replace(follows=follows, continues=has_trials)
                continue
            if call.runs_per_node > 1:
                shared |= _shared_jobs(folder, submission, call, job)
                continue
            for row, job_id in call.elements.items():
                run = folder.run(submission.rows[row].run_id)
                newest[run.run_id] = job_id, job._replace(run=run)
    return dict(newest.values()) | shared | follow_ups


def _shared_jobs(
    folder: GridFolder, submission: Submission, call: SbatchCall, job: ExpectedJob
) -> dict[str, ExpectedJob]:
    """Map job ids to jobs whose runs share a node."""
    runs: dict[str, list[RunFolder]] = {}
    for row, job_id in call.elements.items():
        runs.setdefault(job_id, []).append(folder.run(submission.rows[row].run_id))
    return {job_id: job._replace(follows=tuple(of_job)) for job_id, of_job in runs.items()}


def _runs_to_do(folder: GridFolder, submission: Submission) -> tuple[RunFolder, ...]:
    return tuple(folder.run(row.run_id) for row in submission.rows if row.to_do)


def _query(folder: GridFolder, known: JobCache) -> JobCache:
    """Run squeue, and sacct for the jobs that squeue no longer lists. Write the cache.

    Raises:
        UnavailableError: Slurm does not answer. The cache stays as it is.
    """
    asked_unix_s, asked_for = time.time(), _jobs_in_journals(folder)
    listed = client.queue(_users(folder))
    look_again()  # a run may have ended before Slurm's answer
    jobs = newest_jobs(folder)
    queued = {
        job.job_id: job
        for job in listed
        if job.job_id in jobs and jobs[job.job_id].is_named(job.name)
    }
    unseen = [job_id for job_id in jobs if job_id not in queued and job_id not in known.ended]
    absent = {job_id: jobs[job_id] for job_id in unseen if not jobs[job_id].has_result}
    accounted = _accounted(absent)
    ended = known.ended | _ended_jobs(accounted, absent)
    unread = sum(not job.job_id for job in [*listed, *accounted])
    # A job that was submitted since the query is not missing from its answer.
    old = [job_id for job_id, job in absent.items() if job_id in asked_for or not job.name]
    unlisted = [job_id for job_id in old if job_id not in ended]
    missing = {job_id: known.missing.get(job_id, asked_unix_s) for job_id in unlisted}
    if unread:  # an unreadable line may be the missing job: only jobs that were gone before stay so
        missing = {job_id: since for job_id, since in missing.items() if known.is_gone(job_id)}
    # of all users of a shared grid; a limit of one user counts fewer jobs, so this is safe
    live = sum(meaning(job.word).phase is not Phase.ENDED for job in listed)
    now = JobCache(queued, ended, missing, live, asked_unix_s, asked_unix_s, unread)
    _write(folder, now)
    return now


def _users(folder: GridFolder) -> set[str]:
    """Name this user, and all who submitted parts of a shared grid."""
    owners = {path.stat().st_uid for path in folder.all_submissions()} | {os.getuid()}
    return {client.user_name(uid) for uid in owners}


def _accounted(absent: Iterable[str]) -> list[Job]:
    """List these jobs as the accounting has them. Empty if accounting is off."""
    arrays = sorted({job_id.partition("_")[0] for job_id in absent}, key=int)
    if not arrays:
        return []
    return client.accounting(arrays) or []


def _ended_jobs(accounted: list[Job], absent: dict[str, ExpectedJob]) -> dict[str, Job]:
    ours = (job for job in accounted if job.job_id in absent)
    named = (job for job in ours if absent[job.job_id].is_named(job.name))
    return {job.job_id: job for job in named if meaning(job.word).phase is Phase.ENDED}


def _read(folder: GridFolder) -> JobCache:
    try:
        content: dict[str, Any] = read_json(folder.slurm_cache)
        for name in ("queued", "ended"):
            content[name] = {job["job_id"]: Job(**job) for job in content[name]}
        known = JobCache(**content)
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return JobCache()  # no query yet, or a file of another version
    if not isinstance(known.missing, dict) or not isinstance(known.failures, int):
        return JobCache()
    return known


def _write(folder: GridFolder, job_cache: JobCache) -> None:
    content = vars(job_cache) | {
        "queued": [vars(job) for job in job_cache.queued.values()],
        "ended": [vars(job) for job in job_cache.ended.values()],
    }
    # the grid of another user, or a full disk: only other commands miss the cache
    with suppress(OSError):
        write_atomically(folder.slurm_cache, json.dumps(content) + "\n")
