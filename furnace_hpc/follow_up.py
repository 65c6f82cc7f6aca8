"""Continue a submission after a wave: submit the next runs, retry interrupted ones, make the table.

At the end it mirrors the runs to the trackers of the profile. If it cannot continue, it sends a
notification with the reason.

After the trials of a tuned grid, the next runs are those of the table, with the chosen values. Runs
that start from the weights of others follow these.

A follow-up job runs this on a compute node when all elements of its wave have ended. If a site
allows no sbatch on compute nodes, run `furnace submit --grid NAME` again instead.
"""

import time
from pathlib import Path
from typing import Annotated

import typer

from furnace_hpc.cli import run_command
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.grid import read_grid
from furnace_hpc.launch.follow_up import (
    close_attempts,
    plan_next_stage,
    read_profile,
    remaining_rows,
)
from furnace_hpc.launch.planning.node_exclusion import excluded_nodes
from furnace_hpc.launch.planning.show_plan import print_plan
from furnace_hpc.launch.submission import grid_lock, record, recover_pending_submissions
from furnace_hpc.monitor.run_status import StatusResolver, observe
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.journal import Submission
from furnace_hpc.runs.records.attempts import AttemptHistory
from furnace_hpc.runs.trust import keep_private

PATIENCE_S = 3000  # while another process holds the lock, or the controller is away
RETRY_S = 30


def main(
    path: Annotated[Path, typer.Argument(help="a submission's folder", metavar="SUBMISSION")],
) -> None:
    """Continue a submission after a wave."""
    submission = Submission(path.resolve())
    folder = GridFolder(submission.path.parent.parent)
    profile = read_profile(submission)
    keep_private(profile.group)
    try:
        if not _submit_or_report(submission, folder):
            _end(submission, folder)
    finally:
        if profile.trackers:
            from furnace_hpc.trackers.mirror_all import mirror_to_all

            mirror_to_all(profile.trackers, folder)


def _end(submission: Submission, folder: GridFolder) -> None:
    """Write and print the table, then send the notification."""
    from furnace_hpc.aggregate import show_table
    from furnace_hpc.api.notice import notify

    grid = read_grid(submission.path / "grid.yaml")
    try:
        show_table(grid, folder)
    finally:  # also if no run has a result
        notify(grid, folder, submission.path)


def _submit_or_report(submission: Submission, folder: GridFolder) -> bool:
    """Submit the next wave. If that fails, or no job follows it, send a notification."""
    from furnace_hpc.api.notice import notify_stuck

    try:
        is_submitted = _submit_rest(submission, folder)
    except Exception as error:
        kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        notify_stuck(folder, submission.path, f"{kind}{error}")
        raise
    newest = [Submission(path.resolve()) for path in folder.all_submissions()[-1:]]
    for one in dict.fromkeys([submission, *newest]):  # a next stage has a submission of its own
        if is_submitted and one.lacks_follow_up():
            notify_stuck(folder, one.path, "sbatch refused the next follow-up job")
    return is_submitted


def _submit_rest(submission: Submission, folder: GridFolder) -> bool:
    """Submit the next wave. Return False if nothing is left."""
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            with grid_lock(folder):
                return _submit_next_wave(submission, folder)
        except ConfigError as error:
            if time.monotonic() > deadline_s:
                raise
            print(f"{error} (trying again)", flush=True)
            time.sleep(RETRY_S)


def _submit_next_wave(submission: Submission, folder: GridFolder) -> bool:
    from furnace_hpc.launch import slurm_array

    recover_pending_submissions(folder)
    resolver = observe(folder, needs_answer=True)
    profile = read_profile(submission)
    left = remaining_rows(submission, folder, profile.retries, resolver)
    close_attempts(submission, folder, resolver)
    if not left:
        return _submit_next_stage(submission, folder, resolver)
    # The live jobs include this one.
    limits = slurm_array.site_limits(profile, resolver.job_cache.live_jobs)
    runs = [folder.run(row.run_id) for row in submission.rows]
    exclude = excluded_nodes(map(AttemptHistory.read, runs), profile)
    lines = slurm_array.submit_wave(submission, profile, folder.path.name, left, limits, exclude)
    print(*lines, sep="\n", flush=True)
    return True


def _submit_next_stage(
    submission: Submission, folder: GridFolder, resolver: StatusResolver
) -> bool:
    """Submit the runs that waited for those that have ended. Return False if none is left.

    They become a submission of their own, with its own follow-up job.
    """
    from furnace_hpc.launch import slurm_array

    plan = plan_next_stage(submission, folder, resolver)
    if plan is None:
        return False
    print_plan(plan)
    if not plan.to_do:
        record(plan)
        return False
    lines = slurm_array.submit_plan(plan, resolver.job_cache.live_jobs)
    print(*lines, sep="\n", flush=True)
    return True


if __name__ == "__main__":
    run_command(main)
