"""Start the ranks of one run, pass TERM on to them, and wait until all have ended.

    python -m furnace_hpc.launch.local_ranks.controller QUEUE_PID NUM_RANKS LOG_FOLDER COMMAND ...

As a command it starts each rank as a fresh process. The rank server forks a controller instead,
whose ranks are forks too. If the queue is killed, ranks save and stop. If the controller is killed,
its ranks are killed. Standard library only.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from furnace_hpc.slurm.die_with_parent import die_with

PEERS_S = 1.5  # time for the other ranks to write their verdicts after the first has exited
POLL_S = 0.1
WAKE = (signal.SIGTERM, signal.SIGCHLD)


def control(start: Callable[[int], int], num_ranks: int) -> int:
    """Start the ranks in order and wait for all of them. Return their largest exit code.

    The caller has blocked TERM. A TERM that arrives during the start is passed on later.

    Args:
        start: starts the rank of this number, and returns its process id.
        num_ranks: number of ranks.
    """
    ranks = [start(rank) for rank in range(num_ranks)]
    signal.pthread_sigmask(signal.SIG_BLOCK, WAKE)
    return _wait(set(ranks))


def _wait(ranks: set[int]) -> int:
    """Wait for all ranks. Kill the others some time after one has exited, as srun does.

    A stopped rank would never exit.
    """
    largest, kill_s = 0, float("inf")
    while ranks:
        received = signal.sigtimedwait(WAKE, POLL_S)
        if received and received.si_signo == signal.SIGTERM:
            _signal(ranks, signal.SIGTERM)
        for rank in sorted(ranks):
            pid, status = os.waitpid(rank, os.WNOHANG)
            if pid:
                ranks.remove(rank)
                code = os.waitstatus_to_exitcode(status)
                largest = max(largest, code if code >= 0 else 128 - code)
                kill_s = min(kill_s, time.monotonic() + PEERS_S)
        if time.monotonic() > kill_s:
            _signal(ranks, signal.SIGKILL)
    return largest


def _signal(ranks: set[int], number: int) -> None:
    """Signal ranks. None of them has been waited for, so no other process has their ids."""
    for rank in ranks:
        with suppress(ProcessLookupError):
            os.kill(rank, number)


def write_to(log: Path) -> None:
    """Send the output of this process to a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def log_of(folder: Path, controller: int, rank: int) -> Path:
    """The output of a rank before its run's own log is open."""
    return folder / f"{controller}_{rank}_log.out"


def rank_variables(rank: int) -> dict[str, str]:
    """The variables by which a rank knows its number. submitit's names: older code reads them."""
    return {"SUBMITIT_LOCAL_LOCALID": str(rank), "SUBMITIT_LOCAL_GLOBALID": str(rank)}


def main(queue: int, num_ranks: int, folder: Path, command: list[str]) -> NoReturn:
    """Control ranks that are fresh processes."""
    die_with(queue, signal.SIGTERM)
    controller = os.getpid()

    def start(rank: int) -> int:
        pid = os.fork()
        if pid:
            return pid
        try:
            die_with(controller)
            write_to(log_of(folder, controller, rank))
            os.execvpe(command[0], command, os.environ | rank_variables(rank))
        except OSError as error:
            print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        finally:
            os._exit(1)

    sys.exit(control(start, num_ranks))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
