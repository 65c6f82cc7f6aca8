"""What Slurm's accounting says that a grid's jobs took: each start of a requeued job counts, from allocation to end.

The ledger of attempts begins when a run does and ends when it writes its last word; Slurm bills from the allocation on.
In both, what has not ended is not counted, so that the same runs give the same words.
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
    """One time that Slurm gave a job its nodes, as sacct has it."""

    job_id: str
    cluster: str
    elapsed_s: str
    resources: str  # empty: it waits, or was cancelled before it had any
    end: str  # Unknown, None assigned: it has not ended


class Accounted(NamedTuple):
    """All allocations of some jobs together, those that have ended."""

    allocations: int
    jobs: int
    hours: float  # of the jobs
    gpu_hours: float | None  # None: the jobs had no GPUs
    # what the attempts themselves say of these jobs: GPU-hours, where they had GPUs
    ledger_hours: float


def accounted(attempts: Iterable[Attempt]) -> Accounted | None:
    """What the jobs of these attempts took, from one sacct; None where there is no accounting, or no answer."""
    attempts = list(attempts)
    clusters = {attempt.job_id: attempt.cluster for attempt in attempts if attempt.job_id}
    if not clusters or not client.has_slurm():
        return None
    arrays = sorted({job_id.partition("_")[0] for job_id in clusters})
    try:
        text = client.run_checked(*COMMAND, f"--jobs={','.join(arrays)}")
    except UnavailableError:
        return None
    lines = [Allocation(*row) for row in read_table(text, _FIELDS).rows]
    ended = [line for line in lines if line.resources and line.end[:1].isdigit()]
    ours = [
        line
        for line in ended
        if line.job_id in clusters and clusters[line.job_id] in ("", line.cluster)
    ]
    if not ours:
        return None
    hours = [int(line.elapsed_s) / 3600 for line in ours]
    widths = [sum(gpus(line.resources).values()) for line in ours]
    gpu_hours = (
        sum(took * width for took, width in zip(hours, widths, strict=True))
        if any(widths)
        else None
    )
    jobs = {line.job_id for line in ours}
    of_them = [attempt for attempt in attempts if attempt.job_id in jobs and attempt.end_unix_s]
    ledger = sum((a.gpus or 1) * ((a.end_unix_s or 0) - a.start_unix_s) / 3600 for a in of_them)
    return Accounted(len(ours), len(jobs), sum(hours), gpu_hours, ledger)


def in_words(attempts: Iterable[Attempt]) -> str:
    """What `accounted` says, as one sentence for a footnote; empty where it knows nothing."""
    found = accounted(attempts)
    if found is None:
        return ""
    on_gpus = found.gpu_hours is not None
    took = (
        f"{found.gpu_hours:,.2f} GPU-hours"
        if on_gpus
        else f"{found.hours:,.2f} hours of jobs without GPUs"
    )
    starts, jobs = (
        _number(n, word) for n, word in ((found.allocations, "allocation"), (found.jobs, "job"))
    )
    return (
        f"Slurm's accounting: {took} in {starts} of {jobs}, requeued ones counted each time, from the allocation on; "
        f"the attempts' own records of these jobs have {found.ledger_hours:,.2f}"
    )


def _number(count: int, word: str) -> str:
    return f"{count:,} {word}{'s' if count > 1 else ''}"
