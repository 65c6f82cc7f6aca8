"""After a wave of a submission: send what is left, retry what was interrupted, and at the end make the table.

A follow-up job runs this on a compute node, once all elements of its wave have ended. Where a site lets no job submit
jobs, `furnace submit --grid NAME` given again does the same.
"""

import time
from pathlib import Path
from typing import Annotated

import typer

from furnace_hpc.cli import run_command
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.grid import read_grid
from furnace_hpc.launch.follow_up import close_attempts, read_profile, remaining_rows
from furnace_hpc.launch.node_exclusion import excluded_nodes
from furnace_hpc.launch.submission import grid_lock, recover_pending_submissions
from furnace_hpc.monitor.run_status import observe
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.journal import Submission
from furnace_hpc.runs.trust import keep_private

PATIENCE_S = 3000  # for a lock that somebody else holds, and for a controller that is away


def main(
    path: Annotated[Path, typer.Argument(help="a submission's folder", metavar="SUBMISSION")],
) -> None:
    """Do what comes after a wave of a submission."""
    submission = Submission(path.resolve())
    folder = GridFolder(submission.path.parent.parent)
    keep_private(read_profile(submission).group)
    if _send_what_is_left(submission, folder):
        return
    from furnace_hpc.aggregate import show_table

    show_table(read_grid(submission.path / "grid.yaml"), folder)


def _send_what_is_left(submission: Submission, folder: GridFolder) -> bool:
    """Whether anything was sent: then a later follow-up job goes on from there."""
    from furnace_hpc.launch import slurm_array

    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            with grid_lock(folder):
                recover_pending_submissions(folder)
                observer = observe(folder, must=True)
                profile = read_profile(submission)
                left = remaining_rows(submission, folder, profile.retries, observer)
                close_attempts(submission, folder, observer)
                if not left:
                    return False
                # this very job is one of them
                limits = slurm_array.site_limits(profile, observer.evidence.live_jobs)
                exclude = excluded_nodes(
                    [folder.run(row["run_id"]) for row in submission.rows], profile
                )
                print(
                    *slurm_array.submit_wave(
                        submission, profile, folder.path.name, left, limits, exclude
                    ),
                    sep="\n",
                    flush=True,
                )
                return True
        except ConfigError as error:
            if time.monotonic() > deadline_s:
                raise
            print(f"{error} (trying again)", flush=True)
            time.sleep(30)


if __name__ == "__main__":
    run_command(main)
