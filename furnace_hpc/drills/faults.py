"""End attempts on purpose, in the ways in which a cluster ends them. It needs no root."""

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil

from furnace_hpc.config.errors import ConfigError, UnavailableError
from furnace_hpc.launch.local_ranks.jobs import ranks_of
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.attempts import Attempt
from furnace_hpc.slurm import client

# Runs on a node with the arguments SIGNAL RANK RUN_DIR, and finds the rank by its environment.
# Standard library only, old Pythons too.
_ON_NODE = """
import os, sys
number, rank, run_dir = int(sys.argv[1]), sys.argv[2], sys.argv[3]
wanted = {b"FURNACE_RUN_DIR=" + run_dir.encode(), b"SLURM_PROCID=" + rank.encode()}
found = []
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        with open("/proc/%s/environ" % pid, "rb") as file:
            is_rank = wanted <= set(file.read().split(b"\\0"))
        with open("/proc/%s/cmdline" % pid, "rb") as file:
            words = file.read()
    except OSError:
        continue
    is_python = b"submitit" in words or b"furnace_hpc.launch.rank_main" in words
    if is_rank and is_python and int(pid) != os.getpid():
        found.append(int(pid))
for pid in found:
    os.kill(pid, number)
sys.exit(0 if found else "rank %s is not on this node" % rank)
"""


# Called with the run, its attempt, and the process of `submit` that the drill has started.
Act = Callable[[RunFolder, Attempt, psutil.Process], None]


@dataclass(frozen=True)
class Disturbance:
    """One way to end an attempt."""

    name: str
    """The row of the drill's grid."""
    what: str
    """The description in the report."""
    warned: bool
    """Whether ranks get a signal and time to save. Then at most one step may be lost."""
    do: Act
    stops_all: bool = False
    """Whether it ends the runs beside it too. Then its run trains alone."""


def disturbances(executor: str) -> list[Disturbance]:
    """Return the disturbances for runs of Slurm, or of the local queue."""
    return _ON_SLURM if executor == "slurm" else _HERE


def stages(chosen: Sequence[Disturbance], undisturbed: str) -> list[list[str]]:
    """Return the rows that train at the same time, stage by stage.

    A disturbance that stops all runs would also stop the runs beside it, before their own
    disturbance. So its run has a stage of its own.
    """
    together = [one.name for one in chosen if not one.stops_all]
    return [[undisturbed, *together], *([one.name] for one in chosen if one.stops_all)]


def signal_rank(rank: int, number: signal.Signals) -> Act:
    """Return an act that signals one rank, on any node."""

    def do(folder: RunFolder, attempt: Attempt, submit: psutil.Process) -> None:
        if attempt.job_id is None:
            _local_ranks(attempt)[rank].send_signal(number)
            return
        job = client.node_job(attempt.job_id)
        if job is None:
            raise UnavailableError(f"job {attempt.job_id} is not in squeue")
        step = ["srun", f"--jobid={job}", "--overlap", "--nodes=1", "--ntasks=1"]
        if host := _host_of(folder, attempt, rank):
            step.append(f"--nodelist={host}")
        arguments = (str(int(number)), str(rank), str(folder.path.resolve()))
        client.run_checked(*step, "python3", "-S", "-c", _ON_NODE, *arguments)

    return do


def _host_of(folder: RunFolder, attempt: Attempt, rank: int) -> str:
    """The host of a rank. Empty if it has not reported yet."""
    from furnace_hpc.host.lifecycle import read_verdicts

    for verdict in read_verdicts(str(folder.path), attempt.attempt):
        if int(verdict["rank"]) == rank:
            return str(verdict.get("host", ""))
    return ""


def _local_ranks(attempt: Attempt) -> list[psutil.Process]:
    """Return the ranks of an attempt of the local queue, in order."""
    if attempt.holder is None:
        raise ConfigError(f"attempt {attempt.attempt} has no holder: its ranks cannot be signalled")
    return ranks_of(int(attempt.holder["pid"]))


def _signal_step(number: signal.Signals) -> Act:
    """Return an act that signals the job's step, not the job.

    If the job is requeued meanwhile, scancel would repeat its request for a minute.
    """
    name = number.name.removeprefix("SIG")

    def do(folder: RunFolder, attempt: Attempt, submit: psutil.Process) -> None:
        client.run_checked("scancel", f"--signal={name}", f"{_job(attempt)}.0")

    return do


def _requeue(folder: RunFolder, attempt: Attempt, submit: psutil.Process) -> None:
    client.run_checked("scontrol", "requeue", _job(attempt))


def _job(attempt: Attempt) -> str:
    if attempt.job_id is None:
        raise ConfigError(f"attempt {attempt.attempt} has no job")
    return attempt.job_id


def _terminate_ranks(folder: RunFolder, attempt: Attempt, submit: psutil.Process) -> None:
    for rank in _local_ranks(attempt):
        rank.terminate()


def _interrupt(folder: RunFolder, attempt: Attempt, submit: psutil.Process) -> None:
    submit.send_signal(signal.SIGINT)


def _kill_everything(folder: RunFolder, attempt: Attempt, submit: psutil.Process) -> None:
    for process in [submit, *submit.children(recursive=True)]:
        process.kill()


_ONE_RANK = [
    Disturbance("rank_killed", "SIGKILL of one rank", False, signal_rank(1, signal.SIGKILL)),
    Disturbance("rank_frozen", "SIGSTOP of one rank", False, signal_rank(1, signal.SIGSTOP)),
]
_ON_SLURM = [
    Disturbance("time_limit", "USR2, as before a time limit", True, _signal_step(signal.SIGUSR2)),
    Disturbance("preempted", "TERM, as at a preemption", True, _signal_step(signal.SIGTERM)),
    Disturbance("requeued", "scontrol requeue: TERM, then KILL", True, _requeue),
    Disturbance("step_killed", "SIGKILL of all ranks", False, _signal_step(signal.SIGKILL)),
    *_ONE_RANK,
]
_HERE = [
    Disturbance("terminated", "TERM to all ranks", True, _terminate_ranks),
    Disturbance("interrupted", "Ctrl-C in the terminal of submit", True, _interrupt, True),
    *_ONE_RANK,
    Disturbance(
        "all_killed", "SIGKILL of submit and all its children", False, _kill_everything, True
    ),
]
