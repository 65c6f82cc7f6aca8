"""Find the place of waiting runs in the queues of their partitions: `furnace status --queue`.

The squeue of `status` lists the jobs of this user alone. So the place needs a second squeue, of all
jobs that wait in these partitions. An array whose elements wait is one job of the queue. Jobs that
wait for other jobs, for a time or for a limit are not in the queue.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from furnace_hpc.monitor.grid_status import StatusLine
from furnace_hpc.monitor.job_cache import JobCache
from furnace_hpc.slurm import client
from furnace_hpc.slurm.parsing import PendingJob
from furnace_hpc.slurm.reasons import as_letters

IN_LINE = ("priority", "resources", "none", "waitingforscheduling")  # reasons, as letters


class Place(NamedTuple):
    """A job's place in the queue of a partition. The first is 1."""

    partition: str
    place: int
    length: int

    def __str__(self) -> str:
        return f"place {self.place:,} of {self.length:,} in the queue of {self.partition}"


def with_places(lines: Sequence[StatusLine], job_cache: JobCache) -> list[StatusLine]:
    """Add the places to the reasons of waiting runs.

    Raises:
        UnavailableError: Slurm does not answer.
    """
    jobs = {line.status.job_id: job_cache.queued.get(line.status.job_id) for line in lines}
    waiting = {job_id: job for job_id, job in jobs.items() if job and job.partition}
    names = sorted({name for job in waiting.values() for name in job.partition.split(",")})
    if not names:
        return list(lines)
    found = places(client.pending(names), {_base(job_id) for job_id in waiting})
    return [_with_place(line, found) for line in lines]


def places(pending: Iterable[PendingJob], bases: set[str]) -> dict[str, list[Place]]:
    """Return the places of these jobs and arrays, by id. Jobs that are in no queue are left out."""
    queues: dict[str, dict[str, int]] = {}  # partition -> id -> priority
    for job in pending:
        queue = queues.setdefault(job.partition, {})
        if job.priority and as_letters(job.reason) in IN_LINE:
            queue[job.base_id] = max(job.priority, queue.get(job.base_id, 0))
    found: dict[str, list[Place]] = {}
    for partition, queue in queues.items():
        order = sorted(queue, key=lambda base: (-queue[base], int(base)))
        for number, base in enumerate(order, 1):
            if base in bases:
                found.setdefault(base, []).append(Place(partition, number, len(order)))
    return found


def _with_place(line: StatusLine, found: dict[str, list[Place]]) -> StatusLine:
    its_places = found.get(_base(line.status.job_id), [])
    if line.waiting is None or not its_places:
        return line
    reason = "; ".join([line.status.reason, *map(str, its_places)])
    return replace(line, status=replace(line.status, reason=reason))


def _base(job_id: str) -> str:
    return job_id.partition("_")[0]
