"""The queue on this machine: its process, and the runs that wait for it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from furnace_hpc.host import lifecycle
from furnace_hpc.host.json_lines import read_json
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.journal import submissions
from furnace_hpc.runs.notices.outbox import is_local
from furnace_hpc.runs.state import RunState, RunStatus

WAITING = (RunState.NEW, RunState.INTERRUPTED, RunState.FAILED)  # the queue may start these


def read_holder(folder: GridFolder) -> dict[str, Any] | None:
    """Return the holder of the grid's lock. None if there is none, or it cannot be read."""
    try:
        content = read_json(folder.lock)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def live_queue(folder: GridFolder) -> str:
    """Describe the process of the queue that works on a grid on this machine. Empty if none."""
    holder = read_holder(folder)
    if not holder or holder.get("what") != "queue" or lifecycle.is_alive(holder) is not True:
        return ""
    return lifecycle.describe(holder)


def status_in_queue(folder: GridFolder) -> Callable[[str, RunStatus], RunStatus]:
    """Return a function that adds to the status of a run (by its id) that it waits for the queue.

    A run that was to start in a queue that has ended gets the reason. Plans do not count these
    states: the queue itself plans too.
    """
    whole = [submission for submission in submissions(folder) if submission.rows]
    if not whole or not is_local(whole[-1].path):
        return lambda _, status: status
    holder, queue = read_holder(folder), live_queue(folder)
    gone = "the queue on this machine has ended; run `furnace submit` again"
    if holder and holder.get("what") == "queue" and lifecycle.is_alive(holder) is None:
        gone = f"may wait in the queue of {lifecycle.describe(holder)}. Look at it there"
    known = {row.run_id: row.attempt.known_attempts for row in whole[-1].rows if row.to_do}

    def found(run_id: str, status: RunStatus) -> RunStatus:
        begun = run_id not in known or status.attempt > known[run_id]
        if begun or status.state not in WAITING:
            return status
        if queue:
            return replace(status, state=RunState.QUEUED, reason=f"waits in the queue of {queue}")
        if status.state is not RunState.NEW:
            return status
        return replace(status, reason=status.reason or gone)

    return found
