"""Find runs that the user's own batch scripts (slurm/*.sbatch) began. No journal has their jobs."""

from furnace_hpc.runs.folder import GridFolder, has_result
from furnace_hpc.runs.journal import Submission
from furnace_hpc.runs.records.attempts import Attempt, read_attempts


def manually_started(folder: GridFolder, submissions: list[Submission]) -> dict[str, Attempt]:
    """Run id -> its newest attempt, if the attempt's Slurm job is in no journal.

    Runs that are done are left out.
    """
    known_jobs: set[str] = set()
    run_ids: dict[str, None] = {}
    for submission in submissions:
        run_ids |= dict.fromkeys(row.run_id for row in submission.rows)
        for call in submission.sbatch_calls():
            if call.job_id:
                known_jobs.update(call.elements.values())
    found = {}
    for run_id in run_ids:
        run = folder.run(run_id)
        if has_result(run):
            continue
        attempts = read_attempts(run)
        if attempts and attempts[-1].job_id and attempts[-1].job_id not in known_jobs:
            found[run_id] = attempts[-1]
    return found
