"""What Slurm knows of a grid's jobs: one squeue, at most one sacct, kept in a file for all commands.

Slurm is evidence, not the truth. No answer changes nothing; and a job counts as gone only when two answers, some
seconds apart, did not have it.
"""

import json
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from furnace_hpc.config.errors import ConfigError, UnavailableError
from furnace_hpc.host.regular_file import read_regular
from furnace_hpc.runs.by_hand import manually_started
from furnace_hpc.runs.folder import GridFolder, RunFolder, write_json
from furnace_hpc.runs.journal import Sent, submissions
from furnace_hpc.runs.records.attempts import read_attempts
from furnace_hpc.slurm import client
from furnace_hpc.slurm.job_states import Phase, meaning
from furnace_hpc.slurm.parsing import Job

FRESH_S = 10  # commands given within this time share one answer
# the same, where nothing of the grid is in the queue: only somebody's requeue could change that
IDLE_S = 60
GONE_AFTER_S = 5  # between the two answers that make a job gone
MAX_BACK_OFF_S = 300
GONE = "GONE"  # not Slurm's word: Slurm has forgotten the job


@dataclass
class Evidence:
    """What is known of a grid's jobs."""

    # of the last squeue: the grid's jobs, by id
    queued: dict[str, Job] = field(default_factory=dict)
    # what accounting said of those that squeue had no more
    ended: dict[str, Job] = field(default_factory=dict)
    # job id -> when an answer first did not have it
    missing: dict[str, float] = field(default_factory=dict)
    live_jobs: int = 0  # of this user, other grids' too: they count for the site's submit limit
    answered_unix_s: float = 0.0
    asked_unix_s: float = 0.0
    # lines of the last answers that could not be read: each may be a job that is not in them
    unread: int = 0
    failures: int = 0  # since the last answer
    error: str = ""

    def job(self, job_id: str) -> Job | None:
        """The job, as the newest answer has it; None when no answer tells."""
        if job_id in self.queued:
            return self.queued[job_id]
        if job_id in self.ended:
            return self.ended[job_id]
        if self.is_gone(job_id):
            return Job(job_id, GONE, "")
        return None

    def is_fresh(self, jobs: Iterable[str]) -> bool:
        """Whether the last answer is recent and knew of all these jobs; after failures, whether to wait with asking."""
        settled = not self.queued and all(map(self.is_gone, self.missing))
        pause_s = (
            IDLE_S
            if settled and not self.failures
            else min(FRESH_S * 2**self.failures, MAX_BACK_OFF_S)
        )
        knows = self.failures or all(
            j in self.queued or j in self.ended or j in self.missing for j in jobs
        )
        return bool(knows) and time.time() < self.asked_unix_s + pause_s

    def is_gone(self, job_id: str) -> bool:
        """Whether Slurm has forgotten the job."""
        first = self.missing.get(job_id)
        return first is not None and self.answered_unix_s - first >= GONE_AFTER_S


def gather(folder: GridFolder, must: bool = False) -> Evidence:
    """The evidence on a grid: from the file when it is fresh, else asked anew and written there.

    Args:
        folder: the grid.
        must: ask now, and go on asking until no job is in doubt: for commands that act on the answer.

    Raises:
        UnavailableError: `must`, and Slurm does not answer.
    """
    known = _read(folder)
    jobs = newest_jobs(folder)
    open_jobs = [job_id for job_id, job in jobs.items() if not _is_settled(job_id, job, known)]
    if not must and not open_jobs:
        return replace(known, failures=0)  # that Slurm was away before does not matter any more
    if not must and known.is_fresh(open_jobs):
        return known
    if not must:
        return _ask(folder, known, jobs)
    _check_cluster({jobs[job_id].cluster for job_id in open_jobs if job_id not in known.ended})
    now = _patiently(lambda: _ask(folder, known, jobs, must=True))
    if in_doubt := [job_id for job_id in now.missing if not now.is_gone(job_id)]:
        youngest = max(now.missing[job_id] for job_id in in_doubt)
        time.sleep(max(0.0, youngest + GONE_AFTER_S + 0.1 - time.time()))
        now = _patiently(lambda: _ask(folder, now, jobs, must=True))
    return now


def _is_settled(job_id: str, job: "Expected", known: Evidence) -> bool:
    """Whether nothing that Slurm could say of the job matters any more."""
    if job.run is None and (job_id in known.ended or known.is_gone(job_id)):
        return True
    runs = job.follows if job.run is None else (job.run,)
    return all(run.result.is_file() or _is_superseded(run, job.sent_unix_s) for run in runs)


def _is_superseded(run: RunFolder, sent_unix_s: float) -> bool:
    """Whether the run has since begun without Slurm: what its older job does is nothing to it."""
    attempts = read_attempts(run) if sent_unix_s else []
    return (
        bool(attempts) and attempts[-1].job_id is None and attempts[-1].start_unix_s > sent_unix_s
    )


def _check_cluster(clusters: set[str]) -> None:
    """Raise ConfigError when jobs that may live are on another cluster: this one would call them gone."""
    here = client.cluster_name() if clusters - {""} else None
    if here and (others := sorted(clusters - {here, ""})):
        raise ConfigError(
            f"jobs of this grid were submitted on cluster {others[0]!r}, and this is {here!r}: give the command there, "
            f"or another --runs-root here"
        )


def _patiently(ask: Callable[[], Evidence], tries: int = 2) -> Evidence:
    for number in range(tries):
        try:
            return ask()
        except UnavailableError:
            if number == tries - 1:
                raise
            time.sleep(2)  # the clients themselves have tried for some ten seconds
    raise AssertionError


class Expected(NamedTuple):
    """A job that the journals know. Its name is unique; its id may be another cluster's, or an older one's, too."""

    run: RunFolder | None  # none: a follow-up job
    name: str  # none: it was submitted by hand, under whatever name
    cluster: str
    sent_unix_s: float = 0.0
    follows: tuple[RunFolder, ...] = ()  # of a follow-up job: the runs that it may send again


def newest_jobs(folder: GridFolder) -> dict[str, Expected]:
    """Job id -> what it is, for the newest job of each run, for those begun by hand, and for the follow-up jobs."""
    all_ = submissions(folder)
    by_hand = {attempt.job_id or "": i for i, attempt in manually_started(folder, all_).items()}
    of_run: dict[str, tuple[str, Sent]] = {}
    others: dict[str, Expected] = {}
    for submission in all_:
        for sent in submission.sent():
            if sent.outcome == "submitted" and sent.kind == "array":
                of_run |= {
                    submission.rows[row]["run_id"]: (job_id, sent)
                    for row, job_id in sent.elements.items()
                }
            elif sent.outcome == "submitted":
                follows = tuple(
                    folder.run(row["run_id"]) for row in submission.rows if row.get("to_do")
                )
                others[sent.job_id] = Expected(None, sent.name, sent.cluster, sent.unix_s, follows)
    runs = {
        job: Expected(folder.run(run_id), sent.name, sent.cluster, sent.unix_s)
        for run_id, (job, sent) in of_run.items()
    }
    return (
        runs
        | others
        | {job_id: Expected(folder.run(run_id), "", "") for job_id, run_id in by_hand.items()}
    )


def _ask(
    folder: GridFolder, known: Evidence, jobs: dict[str, Expected], must: bool = False
) -> Evidence:
    asked_unix_s = time.time()
    try:
        answer = client.queue(_users(folder))
        queued = {
            j.job_id: j for j in answer if j.job_id in jobs and jobs[j.job_id].name in ("", j.name)
        }
        # Of a shared grid these are too many for one user, which is safe.
        live = sum(meaning(job.word).phase is not Phase.ENDED for job in answer)
        unknown = [job_id for job_id in jobs if job_id not in queued and job_id not in known.ended]
        absent = [
            job_id
            for job_id in unknown
            if not (run := jobs[job_id].run) or not run.result.is_file()
        ]
        told = _accounting(absent)
        ended = known.ended | _ended(told, {job_id: jobs[job_id].name for job_id in absent})
    except UnavailableError as error:
        if must:
            raise
        known.failures, known.error, known.asked_unix_s = (
            known.failures + 1,
            str(error),
            asked_unix_s,
        )
        _write(folder, known)
        return known
    unread = sum(not job.job_id for job in [*answer, *told])
    missing = {
        job_id: known.missing.get(job_id, asked_unix_s) for job_id in absent if job_id not in ended
    }
    if unread:  # a job that is absent may stand in a line that could not be read
        missing = {
            job_id: at_unix_s for job_id, at_unix_s in missing.items() if known.is_gone(job_id)
        }
    now = Evidence(queued, ended, missing, live, asked_unix_s, asked_unix_s, unread)
    _write(folder, now)
    return now


def _users(folder: GridFolder) -> set[str]:
    """Whose jobs they are: of a shared grid, everybody's who has submitted some of it."""
    owners = {path.stat().st_uid for path in folder.all_submissions()} | {os.getuid()}
    return {client.user_name(uid) for uid in owners}


def _accounting(absent: Iterable[str]) -> list[Job]:
    """What the accounting has of jobs that squeue has no more."""
    arrays = sorted({job_id.partition("_")[0] for job_id in absent}, key=int)
    return (client.accounting(arrays) or []) if arrays else []


def _ended(told: list[Job], absent: dict[str, str]) -> dict[str, Job]:
    ours = [job for job in told if job.job_id in absent and absent[job.job_id] in ("", job.name)]
    return {job.job_id: job for job in ours if meaning(job.word).phase is Phase.ENDED}


def _read(folder: GridFolder) -> Evidence:
    try:
        content: dict[str, Any] = json.loads(read_regular(folder.slurm_cache))
        for name in ("queued", "ended"):
            content[name] = {job["job_id"]: Job(**job) for job in content[name]}
        known = Evidence(**content)
        return (
            known
            if isinstance(known.missing, dict) and isinstance(known.failures, int)
            else Evidence()
        )
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return Evidence()  # never asked, or another version's file


def _write(folder: GridFolder, evidence: Evidence) -> None:
    content = asdict(evidence)
    for name in ("queued", "ended"):
        content[name] = list(content[name].values())
    # a grid of somebody else's, or a full disk: it is only kept for other commands
    with suppress(OSError):
        write_json(folder.slurm_cache, content)
