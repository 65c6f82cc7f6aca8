"""The state of a run, read from its own files. Slurm is evidence that comes on top, never the truth."""

from dataclasses import dataclass
from enum import StrEnum

from furnace_hpc.runs import host
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.ledger import Attempt, holder_is_alive, read_attempts
from furnace_hpc.runs.records import last_record


class RunState(StrEnum):
    """What a run is doing."""

    NEW = "new"
    QUEUED = "queued"  # its job waits, or waits again
    RUNNING = "running"
    DONE = "done"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class RunStatus:
    """A run's state with what people ask next."""

    state: RunState
    attempt: int
    step: int
    reason: str
    job_id: str = ""
    ended: str = ""  # the word that its newest attempt ended with, a key of ENDED


# Why an attempt ended -> the state it leaves the run in.
ENDED = {
    "done": RunState.DONE,
    "stopped": RunState.INTERRUPTED,
    "infrastructure": RunState.INTERRUPTED,
    "killed": RunState.INTERRUPTED,
    "oom": RunState.FAILED,  # said by Slurm; the same run on the same nodes would end the same way
    "crash": RunState.FAILED,
}


def read_status(folder: RunFolder) -> RunStatus:
    """The run's state: result.json is done; else its newest attempt tells."""
    attempts = read_attempts(folder)
    if not attempts:
        return RunStatus(RunState.DONE if folder.result.exists() else RunState.NEW, 0, 0, "")
    newest = attempts[-1]
    step = max(_step(folder, attempt) for attempt in attempts)
    if folder.result.exists():
        return RunStatus(RunState.DONE, newest.attempt, step, "")
    if newest.end_unix_s is not None:
        state = ENDED.get(newest.reason or "", RunState.UNKNOWN)
        word = newest.reason or ""
        return RunStatus(state, newest.attempt, step, newest.error or word, ended=word)
    alive = holder_is_alive(newest)
    if alive is False:
        return RunStatus(RunState.INTERRUPTED, newest.attempt, step, "its launcher died without a word")
    if alive is None:
        where = f"held on {newest.holder_host}, not visible from here; if that is gone: --retry lost"
        return RunStatus(RunState.UNKNOWN, newest.attempt, step, where)
    return RunStatus(RunState.RUNNING, newest.attempt, step, "")


def _step(folder: RunFolder, attempt: Attempt) -> int:
    record = last_record(folder.metrics(attempt.attempt))
    return max(attempt.step, record["step"] if record else 0)


def close_open_attempt(folder: RunFolder, status: RunStatus) -> None:
    """Write down how the newest attempt ended, if it could not do so itself, from what else is known of it."""
    attempts = read_attempts(folder)
    if attempts and attempts[-1].end_unix_s is None:
        host.close(str(folder.path), attempts[-1].attempt, status.reason, status.ended or "killed")
