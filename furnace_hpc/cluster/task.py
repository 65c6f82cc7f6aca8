"""What every rank executes, in a Slurm array and in the local queue alike."""

import os
import sys
import traceback
from pathlib import Path

from submitit import JobEnvironment

from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.verdict import Verdict


def run_task(submission: str) -> None:
    """Train the run that the host's `begin` chose for this job. Never returns: the process ends with its exit code.

    submitit pickles this function by its name together with the submission's folder, and nothing else.
    """
    environment = JobEnvironment()
    folder, attempt = RunFolder(Path(os.environ["FURNACE_RUN_DIR"])), int(os.environ["FURNACE_ATTEMPT"])
    _write_to(folder.log(attempt, environment.global_rank))
    print(f"run {folder.run_id}, attempt {attempt}, submission {submission}", flush=True)
    try:
        with Verdict(folder, attempt, environment.global_rank) as verdict:
            from furnace_hpc.engine.loop import train  # torch and DeepSpeed are imported on the compute node only
            from furnace_hpc.engine.processes import RankInfo

            place = RankInfo(
                rank=environment.global_rank,
                local_rank=environment.local_rank,
                world_size=environment.num_tasks,
                rendezvous=folder.rendezvous(attempt),
            )
            code = train(folder, attempt, place, verdict)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # interpreter shutdown takes torch and DeepSpeed seconds, and has nothing left to do


def _write_to(log: Path) -> None:
    """Send this process's output, and that of its libraries and children, to the rank's log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
