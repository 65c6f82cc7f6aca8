"""Find what a grid waits for in vain: held jobs, missing follow-up jobs, trials without one."""

from furnace_hpc.config.grids.trials import row_of
from furnace_hpc.config.parsing.run_names import TRIAL
from furnace_hpc.launch.grids.messages import show_message
from furnace_hpc.launch.planning.plan import Plan
from furnace_hpc.monitor.run_status import StatusResolver
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.state import RunState


def recover_stalled(folder: GridFolder, resolver: StatusResolver) -> None:
    """Release jobs that Slurm holds, and submit follow-up jobs that are missing."""
    if not resolver.places:
        return
    from furnace_hpc.launch import slurm_array
    from furnace_hpc.monitor.held_jobs import release_held
    from furnace_hpc.monitor.job_cache import expire_job_cache

    if released := release_held(resolver.job_cache):
        expire_job_cache(folder)
    followed = slurm_array.submit_missing_follow_ups(folder, resolver.job_cache)
    for line in (*released, *followed):
        show_message(line)


def unattended_trials(plan: Plan, resolver: StatusResolver) -> str:
    """A line on trials in the queue that no follow-up job waits for. Empty if there are none."""
    alone: list[str] = []
    for run in plan.runs if plan.scope else ():
        is_live = run.status.state in (RunState.QUEUED, RunState.RUNNING)
        job = resolver.places.get(run.folder.run_id)
        row = row_of(run.spec.variant)
        if TRIAL in run.spec.variant and is_live and job and not job.follow_up:
            alone += [row] * (row not in alone)
    if not alone:
        return ""
    rows = ", ".join(alone)
    return f"no follow-up job waits for trials of {rows}: submit again when they have ended"
