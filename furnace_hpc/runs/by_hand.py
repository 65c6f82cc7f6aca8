"""Runs that a batch script of the user's own has begun (slurm/*.sbatch): no journal has their jobs."""

from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.journal import Submission
from furnace_hpc.runs.records.attempts import Attempt, read_attempts


def manually_started(folder: GridFolder, submissions: list[Submission]) -> dict[str, Attempt]:
    """Run id -> its newest attempt, where that belongs to a Slurm job which no submission has sent.

    Runs that are done are left out.
    """
    ours = {
        job
        for one in submissions
        for sent in one.sent()
        if sent.job_id
        for job in sent.elements.values()
    }
    found = {}
    for run_id in dict.fromkeys(
        row.run_id for submission in submissions for row in submission.rows
    ):
        run = folder.run(run_id)
        attempts = [] if run.result.is_file() else read_attempts(run)
        if attempts and attempts[-1].job_id and attempts[-1].job_id not in ours:
            found[run_id] = attempts[-1]
    return found
