"""Release jobs that Slurm requeued and holds, after a failed launch or by RequeueExitHold."""

from furnace_hpc.config.errors import UnavailableError
from furnace_hpc.monitor.job_cache import JobCache
from furnace_hpc.slurm import client
from furnace_hpc.slurm.job_states import is_held_after_requeue


def release_held(job_cache: JobCache) -> list[str]:
    """Release a grid's held jobs, so that their runs resume. Returns one line per job."""
    lines = []
    for job in job_cache.queued.values():
        if not is_held_after_requeue(job.word, job.reason):
            continue
        try:
            client.run_checked("scontrol", "release", job.job_id)
            lines.append(f"released job {job.job_id}, which Slurm had requeued and held")
        except UnavailableError as error:
            lines.append(f"job {job.job_id} stays held. {error}")
    return lines
