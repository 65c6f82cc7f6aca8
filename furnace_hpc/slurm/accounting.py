"""Sum the time that Slurm's accounting recorded for a grid's jobs.

Every allocation counts, so a requeued job counts once per start. An allocation lasts from the start
of the job to its end. The attempts' own records begin later, when the run starts. Both leave out
what has not ended, so the same runs always give the same sentence.
"""

from collections.abc import Iterable
from typing import NamedTuple

from furnace_hpc.config.errors import UnavailableError
from furnace_hpc.runs.records.attempts import Attempt
from furnace_hpc.slurm import client
from furnace_hpc.slurm.gres import gpus
from furnace_hpc.slurm.parsing import JOB_ID, PLAIN, read_table

COMMAND = (
    *("sacct", "--duplicates", "--allocations", "--noheader", "--parsable2"),
    "--format=JobID,Cluster,ElapsedRaw,AllocTRES,End",
)
_FIELDS = (JOB_ID, PLAIN, r"[0-9]{1,12}", PLAIN, r"[0-9].*|[A-Za-z/ ]*")


class Allocation(NamedTuple):
    """One start of a job, as sacct prints it."""

    job_id: str
    cluster: str
    elapsed_s: str
    resources: str  # TRES; empty if the job waits, or was cancelled before it got any
    end: str  # a date, or `Unknown` or `None assigned` if it has not ended

    @property
    def has_ended(self) -> bool:
        """Whether the job got resources and has ended."""
        return bool(self.resources) and self.end[:1].isdigit()

    @property
    def hours(self) -> float:
        """Hours of the job."""
        return int(self.elapsed_s) / 3600

    @property
    def num_gpus(self) -> int:
        """GPUs of the job, all types together."""
        return sum(gpus(self.resources).values())


class AccountedHours(NamedTuple):
    """The sum of all allocations that have ended."""

    allocations: int
    jobs: int
    hours: float  # of the jobs
    gpu_hours: float | None  # None if the jobs had no GPUs
    # hours of the same jobs by the attempts' own records: GPU-hours if the jobs had GPUs
    ledger_hours: float


def sum_allocations(attempts: Iterable[Attempt]) -> AccountedHours | None:
    """Sum the allocations of these attempts' jobs with one sacct.

    None if there is no accounting, or Slurm does not answer.
    """
    attempts = list(attempts)
    clusters = {attempt.job_id: attempt.cluster for attempt in attempts if attempt.job_id}
    if not clusters or not client.has_slurm():
        return None
    ended = _ended_allocations(clusters)
    if not ended:
        return None
    jobs = {one.job_id for one in ended}
    gpu_hours = None
    if any(one.num_gpus for one in ended):
        gpu_hours = sum(one.hours * one.num_gpus for one in ended)
    return AccountedHours(
        allocations=len(ended),
        jobs=len(jobs),
        hours=sum(one.hours for one in ended),
        gpu_hours=gpu_hours,
        ledger_hours=sum(_ledger_hours(one) for one in attempts if one.job_id in jobs),
    )


def _ended_allocations(clusters: dict[str, str]) -> list[Allocation]:
    """Ask sacct for the allocations of these jobs (job id -> cluster, empty if not recorded)."""
    arrays = sorted({job_id.partition("_")[0] for job_id in clusters})
    try:
        text = client.run_checked(*COMMAND, f"--jobs={','.join(arrays)}")
    except UnavailableError:
        return []
    found = (Allocation(*row) for row in read_table(text, _FIELDS).rows)
    ours = (one for one in found if clusters.get(one.job_id) in ("", one.cluster))
    return [one for one in ours if one.has_ended]


def _ledger_hours(attempt: Attempt) -> float:
    if attempt.end_unix_s is None:
        return 0.0
    hours = (attempt.end_unix_s - attempt.start_unix_s) / 3600
    return hours * (attempt.gpus or 1 / attempt.runs_per_node)


def describe_hours(attempts: Iterable[Attempt]) -> str:
    """Describe the accounted time for a footnote. Empty if nothing is accounted."""
    found = sum_allocations(attempts)
    if found is None:
        return ""
    took = f"{found.hours:,.2f} hours of jobs without GPUs"
    if found.gpu_hours is not None:
        took = f"{found.gpu_hours:,.2f} GPU-hours"
    starts, jobs = _count(found.allocations, "allocation"), _count(found.jobs, "job")
    return (
        f"Slurm's accounting: {took} in {starts} of {jobs}, from allocation to end, each start of "
        f"a requeued job; the attempts' own records of these jobs have {found.ledger_hours:,.2f}"
    )


def _count(number: int, noun: str) -> str:
    plural = "s" * (number > 1)
    return f"{number:,} {noun}{plural}"
