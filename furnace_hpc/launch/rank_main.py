"""The entry point of every rank, in a Slurm array, a script by hand, or the local queue."""

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
from furnace_hpc.host import portable
from furnace_hpc.host.json_lines import read_json
from furnace_hpc.host.lifecycle import START_S
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.verdict import RankVerdict
from furnace_hpc.runs.trust import check_trusted

SRUN_VARIABLES = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")
LOCAL_VARIABLES = ("SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_LOCALID", "SUBMITIT_LOCAL_NTASKS")


class Rank(NamedTuple):
    """The place of this process among those of its attempt."""

    rank: int
    local_rank: int
    world_size: int
    node: int


def run_task(submission: str = "") -> None:
    """Train the run that the host's `begin` chose for this job, and end the process.

    For Slurm submitit pickles only the name of this function and the submission's folder.
    """
    rank = find_rank()
    folder = RunFolder(Path(os.environ["FURNACE_RUN_DIR"]))
    attempt = int(os.environ["FURNACE_ATTEMPT"])
    _write_to(folder.log(attempt, rank.node), rank)
    print(f"run {folder.run_id}, attempt {attempt}, rank {rank.rank} of {rank.world_size}")
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    started_by = submission or "by hand"
    print(f"submission {started_by}, code {_code()}, cores {cores}", flush=True)
    try:
        with RankVerdict(folder, attempt, rank.rank, rank.node) as verdict:
            code = _train(folder, attempt, rank, verdict)
    except BaseException:
        code = 1
        with suppress(OSError):
            traceback.print_exc()
    with suppress(OSError):  # a full disk
        sys.stdout.flush()
        sys.stderr.flush()
    # The interpreter's shutdown takes torch and DeepSpeed seconds, and has nothing left to do.
    os._exit(code)


def _train(folder: RunFolder, attempt: int, rank: Rank, verdict: RankVerdict) -> int:
    """Import the engine, train, and return the exit code."""
    check_code()
    prepare_portable(folder)
    # A file system may hang during the imports, before any watchdog runs.
    faulthandler.dump_traceback_later(START_S, exit=True, file=2)
    # Only compute nodes import torch and DeepSpeed.
    from furnace_hpc.engine.preload import no_collection

    with no_collection():
        from furnace_hpc.engine.loop import train
        from furnace_hpc.engine.ranks.distributed import RankInfo

    faulthandler.cancel_dump_traceback_later()
    info = RankInfo(*rank[:3], rendezvous=folder.rendezvous(attempt))
    return train(folder, attempt, info, verdict)


def prepare_portable(folder: RunFolder) -> None:
    """Set the environment of a portable run. Call it before torch is imported.

    Raises:
        ConfigError: this process cannot train the run, which is portable.
    """
    if not portable.environment_of(read_json(folder.spec)):
        return
    if problem := portable.prepare():
        raise ConfigError(f"run {folder.run_id} is portable, but {problem}")


def find_rank() -> Rank:
    """Return this process's rank, from the variables of srun or of the local queue.

    Raises:
        ConfigError: neither of them started this process.
    """
    is_local = os.environ.get("SUBMITIT_EXECUTOR") == "local"
    names = LOCAL_VARIABLES if is_local else SRUN_VARIABLES
    if missing := [name for name in names if name not in os.environ]:
        raise ConfigError(
            f"{missing[0]} is not set: start ranks with srun, or with `furnace submit`"
        )
    node = 0 if is_local else int(os.environ.get("SLURM_NODEID", "0"))
    rank, local_rank, world_size = (int(os.environ[name]) for name in names)
    return Rank(rank, local_rank, world_size, node)


def _code() -> Path:
    return Path(furnace_hpc.__file__).resolve().parent.parent


def check_code() -> None:
    """Raise ConfigError unless this code is the snapshot with which the run must be trained."""
    wanted = os.environ.get("FURNACE_CODE")
    if not wanted:
        return
    if _code() != Path(wanted).resolve():
        raise ConfigError(
            f"this rank imported furnace_hpc from {_code()}, wanted the snapshot {wanted}: "
            f"something in the job (a setup line, sitecustomize) puts another folder first on "
            f"Python's path"
        )
    # The last check. The batch script made the first one before it ran anything of it.
    check_trusted(_code(), _code().parent.parent.parent)


def _write_to(log: Path, rank: Rank) -> None:
    """Send the output of this process, its libraries and its children to the log of the node.

    Lines that Python prints begin with the rank, except on the first rank of the node. Text that
    looks like a secret is masked in them. Output of children and C libraries is not masked.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    prefix = f"[rank {rank.rank}] " if rank.local_rank else ""
    sys.stdout, sys.stderr = Masking(sys.stdout, prefix), Masking(sys.stderr, prefix)


if __name__ == "__main__":
    run_task(*sys.argv[1:2])
