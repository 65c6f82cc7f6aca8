"""The state of a run, read from its own files. Slurm is evidence that comes on top, never the truth."""

from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from furnace_hpc.host import end_reasons, lifecycle
from furnace_hpc.runs.file_cache import cached_by_stat
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.attempts import Attempt, holder_is_alive, read_attempts
from furnace_hpc.runs.records.metrics import last_record


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
    # the budget for lack of which it does not come back; it stands in the reason too
    used_up: str = ""


@dataclass(frozen=True)
class Ended:
    """What an end reason means for its run."""

    state: RunState
    again: bool  # retried without a command of the user, within the run's budgets
    detected_by: str  # for the reference in docs/


def _retried(detected_by: str) -> Ended:
    return Ended(RunState.INTERRUPTED, True, detected_by)


def _failed(detected_by: str) -> Ended:
    return Ended(RunState.FAILED, False, detected_by)


END_REASONS = {
    "done": Ended(RunState.DONE, False, "`result.json` exists"),
    "preempted": _retried(
        "ranks stopped by TERM, by USR1, or by USR2 long before the time limit; Slurm's PREEMPTED"
    ),
    "time_limit": _retried(
        "ranks stopped by USR2 near the time limit; Slurm's TIMEOUT or DEADLINE"
    ),
    "node_fail": _retried("Slurm's NODE_FAIL, or Slurm restarted the job without a stop signal"),
    "hang": _retried("a rank made no progress for `hang_timeout_s`; its stacks are in its log"),
    "infrastructure": _retried("no rank started; Slurm's BOOT_FAIL or LAUNCH_FAILED"),
    "killed": _retried(
        "a rank started and never reported its end, or reported only a failing disk"
    ),
    "stopped": _retried("all ranks saved and stopped, for example after Ctrl-C in the local queue"),
    "cancelled": Ended(
        RunState.INTERRUPTED, False, "Slurm's CANCELLED; the next `submit` resumes the run"
    ),
    "oom": _failed("out of GPU or host memory; Slurm's OUT_OF_MEMORY"),
    "crash": _failed("a rank raised an exception; the reason holds its last line"),
    "nonfinite": _failed("a loss, gradient or parameter is not finite; the reason names the step"),
}


def read_status(folder: RunFolder) -> RunStatus:
    """The run's state: result.json is done; else its newest attempt tells."""
    return within_budget(folder, _read(folder))


def within_budget(folder: RunFolder, status: RunStatus) -> RunStatus:
    """The status; failed, where the run would come back and has used up a budget of its newest attempt."""
    if (
        status.state is not RunState.INTERRUPTED
        or not status.attempt
        or status.ended == "cancelled"
    ):
        return status
    if used_up := _spent(folder, status.attempt):
        return replace(
            status,
            state=RunState.FAILED,
            reason=f"{used_up}; last: {status.reason}",
            used_up=used_up,
        )
    return status


def _words(folder: RunFolder, newest: int) -> list[Path]:
    """Where the attempts' ends are told."""
    numbers = lifecycle.attempt_numbers(str(folder.path))
    return [
        *(folder.attempt(number) for number in numbers),
        folder.verdicts,
        folder.metrics(newest),
    ]


@cached_by_stat(_words)
def _spent(folder: RunFolder, newest: int) -> str:
    return lifecycle.exhausted_budget(
        str(folder.path), lifecycle.read_attempt(str(folder.path), newest)
    )


def _read(folder: RunFolder) -> RunStatus:
    attempts = read_attempts(folder)
    if not attempts:
        return RunStatus(RunState.DONE if folder.result.is_file() else RunState.NEW, 0, 0, "")
    newest = attempts[-1]
    step = max(_step(folder, attempt) for attempt in attempts)
    if folder.result.is_file():
        return RunStatus(RunState.DONE, newest.attempt, step, "")
    if newest.end_unix_s is not None:
        word = newest.reason or ""
        state = END_REASONS[word].state if word in END_REASONS else RunState.UNKNOWN
        return RunStatus(state, newest.attempt, step, newest.error or word, ended=word)
    alive = holder_is_alive(newest)
    if alive is False:
        return RunStatus(
            RunState.INTERRUPTED, newest.attempt, step, "its launcher died and reported no end"
        )
    if alive is None:
        where = (
            f"held on {newest.holder_host}, not visible from here; if that is gone: --retry lost"
        )
        return RunStatus(RunState.UNKNOWN, newest.attempt, step, where)
    return RunStatus(RunState.RUNNING, newest.attempt, step, "")


def _step(folder: RunFolder, attempt: Attempt) -> int:
    record = last_record(folder.metrics(attempt.attempt))
    return max(attempt.step, record["step"] if record else 0)


def close_open_attempt(folder: RunFolder, status: RunStatus) -> None:
    """Write down how the newest attempt ended, if it could not do so itself, from what else is known of it.

    One that ended without knowing why gets the better reason.
    """
    attempts = read_attempts(folder)
    if not attempts:
        return
    newest, says = attempts[-1], status.reason.removeprefix(f"{status.used_up}; last: ")
    # and not of a job that never began
    of_it = status.ended in END_REASONS and (newest.job_id or "") == status.job_id
    reason = status.ended if of_it else "killed"
    if newest.end_unix_s is None or end_reasons.is_more_specific(reason, newest.reason or ""):
        lifecycle.close(str(folder.path), newest.attempt, says, reason)
