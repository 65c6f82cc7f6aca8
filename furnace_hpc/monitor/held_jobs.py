"""Jobs that Slurm has requeued and holds, after a launch that failed or as a site's RequeueExitHold asks for."""

from furnace_hpc.config.errors import UnavailableError
from furnace_hpc.monitor.job_cache import Evidence
from furnace_hpc.slurm import client
from furnace_hpc.slurm.job_states import plain
from furnace_hpc.slurm.parsing import Job

# newer Slurms write _ for a space
REASONS = ("job requeued in held state", "launch failed requeued held")


def is_held(job: Job) -> bool:
    """Whether Slurm holds it after a requeue; what its user or an administrator holds is theirs to release."""
    return plain(job.word) == "REQUEUE_HOLD" or job.reason.replace("_", " ") in REASONS


def release_held(evidence: Evidence) -> list[str]:
    """Let a grid's held jobs go on, each of which is a run that comes back; what was done, a line each."""
    lines = []
    for job in filter(is_held, evidence.queued.values()):
        try:
            client.run_checked("scontrol", "release", job.job_id)
            lines.append(f"released job {job.job_id}, which Slurm had requeued and held")
        except UnavailableError as error:
            lines.append(f"job {job.job_id} stays held: {error}")
    return lines
