"""Follow the runs of a grid until none of them can change without a command."""

import time
from collections.abc import Callable, Iterator

from furnace_hpc.monitor.grid_status import StatusLine, continues, overview
from furnace_hpc.monitor.job_cache import JobCache
from furnace_hpc.monitor.local_queue import live_queue
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.state import RunState

MOVING = (RunState.QUEUED, RunState.RUNNING)
EVERY_S = 3.0  # between two reads of the run files; Slurm is queried less often
MAX_BUSY = 0.05  # share of the time spent on reading, for any number of runs
MAX_PAUSE_S = 30.0  # between two reads on a slow file system


def follow(
    folder: GridFolder, has_queue: Callable[[], bool] | None = None
) -> Iterator[tuple[list[StatusLine], JobCache]]:
    """Yield all runs and Slurm's answer, again and again. The last ones are final.

    Args:
        folder: a submitted grid.
        has_queue: whether a queue on this machine works on the grid. None: it is looked up.
    """
    while True:
        started_s = time.monotonic()
        # before the runs are read, so that the last ones are final
        is_queued = has_queue() if has_queue else bool(live_queue(folder))
        lines, job_cache = overview(folder)
        yield lines, job_cache
        if not is_queued and has_ended(folder, lines, job_cache):
            return
        time.sleep(max(0.0, next_read_s(started_s) - time.monotonic()))


def has_ended(folder: GridFolder, lines: list[StatusLine], job_cache: JobCache) -> bool:
    """Whether no run can change without a command of the user.

    A queue on this machine may still start runs. Call `live_queue` before the runs are read.
    """
    return not any(map(_moves, lines)) and not continues(folder, job_cache)


def next_read_s(started_s: float) -> float:
    """When to read again, after a read that began at `started_s`."""
    took_s = time.monotonic() - started_s
    return started_s + max(EVERY_S, min(MAX_PAUSE_S, took_s / MAX_BUSY))


def _moves(line: StatusLine) -> bool:
    if line.status.state is RunState.UNKNOWN:
        return bool(line.status.job_id)  # Slurm's next answer may list the job
    return line.status.state in MOVING
