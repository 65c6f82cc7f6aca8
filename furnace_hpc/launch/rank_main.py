"""What every rank executes, in a Slurm array, from a batch script of one's own, and in the local queue alike."""

import faulthandler
import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import furnace_hpc
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.text_safety import Masking
from furnace_hpc.host.lifecycle import START_S
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.verdict import Verdict
from furnace_hpc.runs.trust import check_trusted


class Rank(NamedTuple):
    """Where this process stands among those of its attempt."""

    rank: int
    local_rank: int
    world_size: int


def run_task(submission: str = "") -> None:
    """Train the run that the host's `begin` chose for this job. Never returns: the process ends with its exit code.

    submitit pickles this function by its name together with the submission's folder, and nothing else.
    """
    place = find_rank()
    folder, attempt = (
        RunFolder(Path(os.environ["FURNACE_RUN_DIR"])),
        int(os.environ["FURNACE_ATTEMPT"]),
    )
    _write_to(folder.log(attempt, place.rank))
    print(
        f"run {folder.run_id}, attempt {attempt}, rank {place.rank} of {place.world_size}",
        flush=True,
    )
    print(f"submission {submission or 'by hand'}, code {_code()}, cores {_cores()}", flush=True)
    try:
        with Verdict(folder, attempt, place.rank) as verdict:
            _check_code()
            # a file system may hang, before any watchdog
            faulthandler.dump_traceback_later(START_S, exit=True, file=2)
            from furnace_hpc.engine.distributed import RankInfo

            # torch and DeepSpeed are imported on the compute node only
            from furnace_hpc.engine.loop import train

            faulthandler.cancel_dump_traceback_later()

            code = train(
                folder, attempt, RankInfo(*place, rendezvous=folder.rendezvous(attempt)), verdict
            )
    except BaseException:
        code = 1
        with suppress(OSError):
            traceback.print_exc()
    with suppress(OSError):  # a full disk
        sys.stdout.flush()
        sys.stderr.flush()
    # interpreter shutdown takes torch and DeepSpeed seconds, and has nothing left to do
    os._exit(code)


def find_rank() -> Rank:
    """This process's rank, as srun or submitit's local controller tells it.

    Raises:
        ConfigError: neither has started this process.
    """
    names = (
        ("SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_LOCALID", "SUBMITIT_LOCAL_NTASKS")
        if os.environ.get("SUBMITIT_EXECUTOR") == "local"
        else ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")
    )
    if missing := [name for name in names if name not in os.environ]:
        raise ConfigError(
            f"{missing[0]} is not set: a rank is started by srun, or by furnace submit"
        )
    return Rank(*(int(os.environ[name]) for name in names))


def _code() -> Path:
    return Path(furnace_hpc.__file__).resolve().parent.parent


def _check_code() -> None:
    """Raise ConfigError unless this code is the snapshot that the run is to be trained with."""
    wanted = os.environ.get("FURNACE_CODE")
    if wanted and _code() != Path(wanted).resolve():
        raise ConfigError(
            f"this rank imported furnace_hpc from {_code()}, wanted the snapshot {wanted}: "
            f"something in the job (a setup line, sitecustomize) puts another folder before it on Python's path"
        )
    if wanted:  # the last to look; the batch script did before it ran any of it
        check_trusted(_code(), _code().parent.parent.parent)


def _cores() -> str:
    return ",".join(map(str, sorted(os.sched_getaffinity(0))))


def _write_to(log: Path) -> None:
    """Send this process's output, and that of its libraries and children, to the rank's log.

    What looks like a secret is masked in all that Python prints; what children and C libraries write is not.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stdout, sys.stderr = Masking(sys.stdout), Masking(sys.stderr)


if __name__ == "__main__":
    run_task()
