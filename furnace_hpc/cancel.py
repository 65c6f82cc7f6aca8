"""Stop a grid's jobs: `python -m furnace_hpc.cancel --grid NAME`. What they did is kept, and submit goes on from it."""

import os
import signal

from furnace_hpc.cli import run_command
from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.parsing.lookup import runs_root
from furnace_hpc.host import lifecycle
from furnace_hpc.launch.arrays import ranges
from furnace_hpc.launch.submission import grid_lock, read_holder, recover_pending_submissions
from furnace_hpc.monitor.run_status import observe
from furnace_hpc.options import RunsRoot, SubmittedGrid, Variants
from furnace_hpc.runs.by_hand import manually_started
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.journal import submissions
from furnace_hpc.runs.submitted import find_submitted
from furnace_hpc.slurm import client
from furnace_hpc.slurm.job_states import Phase, meaning

NOTHING = "nothing is running or waiting"


def main(
    grid: SubmittedGrid,
    variant: Variants = None,
    runs_dir: RunsRoot = None,
) -> None:
    """Stop a grid's jobs, waiting ones too: one scancel, or an orderly stop of the queue on this machine.

    Ranks that get the time (KillWait) save a checkpoint. The next submit goes on from there.
    """
    folder = find_submitted(grid, runs_root(runs_dir))
    runs = {row["run_id"] for submission in submissions(folder) for row in submission.rows}
    chosen = {run_id for run_id in runs if not variant or _variant(run_id) in variant}
    for name in variant or []:
        if name not in (known := {_variant(run_id) for run_id in runs}):
            raise ConfigError(f"unknown variant {name!r}; {nearest(name, known)}")
    if _stop_local_queue(folder, bool(variant)):
        return
    jobs = _cancel(folder, chosen, whole=not variant)
    print(
        f"cancelled {len(jobs):,} jobs; submit goes on from what they have saved"
        if jobs
        else NOTHING
    )


def _cancel(folder: GridFolder, chosen: set[str], whole: bool) -> list[str]:
    """Cancel the jobs of these runs. A follow-up job that is at work finds them cancelled, or waits for the lock."""
    sent = [submission for submission in submissions(folder) if submission.sent()]
    for submission in sent:
        try:
            submission.note("cancelled", runs=[] if whole else sorted(chosen))
        except OSError as error:  # a full disk is no reason to let the jobs run
            print(
                f"could not be written down: {error.strerror}: a follow-up job that is at work now may send more"
            )
    if not sent and not manually_started(folder, submissions(folder)):
        return []
    with grid_lock(folder, patience_s=60):  # a follow-up job holds it for seconds
        recover_pending_submissions(folder)
        observer = observe(folder, must=True)
        live = {
            j
            for j, job in observer.evidence.queued.items()
            if meaning(job.word).phase is not Phase.ENDED
        }
        of_run = {place.job_id: run_id for run_id, place in observer.places.items()}
        jobs = sorted(job_id for job_id in live & of_run.keys() if of_run[job_id] in chosen)
        if whole:
            # follow-up jobs first, so that none starts in between
            jobs = sorted(live - of_run.keys()) + jobs
        if jobs:
            client.cancel(named(jobs, whole))
    return jobs


def named(jobs: list[str], whole: bool) -> list[str]:
    """Jobs in few words, since each is a request to the controller: whole arrays, or `12_[0-3,7]` of one."""
    arrays: dict[str, list[int]] = {}
    for job_id in jobs:
        array, element, index = job_id.partition("_")
        arrays.setdefault(array, []).extend([int(index)] if element else [])
    return [
        f"{array}_[{ranges(sorted(indices))}]" if indices and not whole else array
        for array, indices in arrays.items()
    ]


def _variant(run_id: str) -> str:
    return run_id.rsplit("-", 2)[0]


def _stop_local_queue(folder: GridFolder, part: bool) -> bool:
    """Whether a queue on this machine runs the grid; it is told to stop.

    Raises:
        ConfigError: only a part is to be stopped, or the queue is on another machine.
    """
    who = read_holder(folder)
    if not who or who.get("what") != "queue" or (alive := lifecycle.is_alive(who)) is False:
        return False
    if alive is None:
        raise ConfigError(f"a queue on {who.get('host')} runs this grid: give the command there")
    if part:
        raise ConfigError("a queue on this machine can only be stopped whole: leave --variant away")
    os.kill(who["pid"], signal.SIGTERM)
    print(
        f"told the queue of {lifecycle.describe(who)} to stop; its runs save a checkpoint and leave"
    )
    return True


if __name__ == "__main__":
    run_command(main)
