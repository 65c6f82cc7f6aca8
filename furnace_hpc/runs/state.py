"""The state of a run, read from its own files. `monitor/run_status.py` adds Slurm's answers."""

from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from furnace_hpc.host import end_reasons, lifecycle
from furnace_hpc.runs.file_cache import cached_by_stat, once_per_look
from furnace_hpc.runs.folder import RunFolder, has_result
from furnace_hpc.runs.records.attempts import Attempt, holder_is_alive, read_attempt, read_attempts
from furnace_hpc.runs.records.metrics import newest_record


class RunState(StrEnum):
    """What a run is doing."""

    NEW = "new"
    QUEUED = "queued"  # its job is pending, also after a requeue
    RUNNING = "running"
    DONE = "done"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class RunStatus:
    """A run's state, its newest attempt, and the reason."""

    state: RunState
    attempt: int
    step: int
    reason: str
    job_id: str = ""
    end_reason: str = ""  # end reason of its newest attempt, a key of END_REASONS
    exhausted_budget: str = ""  # message about an exhausted budget, which is also in the reason


@dataclass(frozen=True)
class EndRule:
    """The meaning of an end reason for the run."""

    state: RunState
    is_retried: bool  # retried without a command, within the budgets of the run
    detected_by: str  # for the reference in docs/


def _retried(detected_by: str) -> EndRule:
    return EndRule(RunState.INTERRUPTED, True, detected_by)


def _failed(detected_by: str) -> EndRule:
    return EndRule(RunState.FAILED, False, detected_by)


END_REASONS = {
    "done": EndRule(RunState.DONE, False, "`result.json` exists"),
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
    "gpu": _retried(
        "a rank's GPU failed (ECC, NVLink, launch failure, busy); counts against its node"
    ),
    "peer_lost": _retried(
        "ranks lost the connection to others, and every rank reported an end: NCCL, gloo, the store"
    ),
    "oom_halved": _retried(
        "out of memory in a training step, for the first time; the next attempt has half the "
        "micro-batch at the same global batch"
    ),
    "canary": EndRule(
        RunState.INTERRUPTED,
        False,
        "all ranks saved and stopped after the steps of `submit --canary`; that submission resumes "
        "the run",
    ),
    "cancelled": EndRule(
        RunState.INTERRUPTED, False, "Slurm's CANCELLED; the next `submit` resumes the run"
    ),
    "oom": _failed("out of GPU or host memory; Slurm's OUT_OF_MEMORY"),
    "crash": _failed("a rank raised an exception; the reason holds its last line"),
    "nonfinite": _failed(
        "a loss, gradient, parameter or logit is not finite; the reason names the step"
    ),
}


@once_per_look
def read_status(folder: RunFolder) -> RunStatus:
    """The run's state: done if result.json exists, else as its newest attempt ended."""
    return within_budget(folder, _read_status(folder))


def within_budget(folder: RunFolder, status: RunStatus) -> RunStatus:
    """The status, changed to failed if the run would be retried and a budget is exhausted."""
    is_retried = status.state is RunState.INTERRUPTED and status.end_reason != "cancelled"
    if not is_retried or not status.attempt:
        return status
    exhausted = _exhausted_budget(folder, status.attempt)
    if not exhausted:
        return status
    reason = f"{exhausted}; last: {status.reason}"
    return replace(status, state=RunState.FAILED, reason=reason, exhausted_budget=exhausted)


def _files_of_ends(folder: RunFolder, newest: int) -> list[Path]:
    """The files in which attempts and ranks report ends and steps."""
    numbers = lifecycle.attempt_numbers(str(folder.path))
    records = [folder.attempt(number) for number in numbers]
    files = [*records, folder.metrics(newest)]
    if read_attempt(folder, newest).end_unix_s is None:  # else the record has what they say
        files += sorted(folder.verdicts.glob(f"{newest}-*"))
    return files


@cached_by_stat(_files_of_ends)
def _exhausted_budget(folder: RunFolder, newest: int) -> str:
    limits = lifecycle.read_attempt(str(folder.path), newest)
    return lifecycle.exhausted_budget(str(folder.path), limits)


def _read_status(folder: RunFolder) -> RunStatus:
    attempts = read_attempts(folder)
    is_done = has_result(folder)
    if not attempts:
        return RunStatus(RunState.DONE if is_done else RunState.NEW, 0, 0, "")
    newest = attempts[-1]
    step = max(_step(folder, attempt) for attempt in attempts)
    if is_done:
        return RunStatus(RunState.DONE, newest.attempt, step, "")
    if newest.end_unix_s is not None:
        ended, state = newest.reason or "", RunState.UNKNOWN
        if ended in END_REASONS:
            state = END_REASONS[ended].state
        return RunStatus(state, newest.attempt, step, newest.error or ended, end_reason=ended)
    state, reason = _state_of_holder(newest)
    return RunStatus(state, newest.attempt, step, reason)


def _state_of_holder(attempt: Attempt) -> tuple[RunState, str]:
    """The state of a run whose newest attempt has no end, and the reason."""
    match holder_is_alive(attempt):
        case True:
            return RunState.RUNNING, ""
        case False:
            return RunState.INTERRUPTED, "its launcher died and reported no end"
    return RunState.UNKNOWN, (
        f"runs on {attempt.holder_host}, which this host cannot see; if it is gone: --retry lost"
    )


def _step(folder: RunFolder, attempt: Attempt) -> int:
    record = newest_record(folder, attempt.attempt)
    return max(attempt.step, record["step"] if record else 0)


def close_open_attempt(folder: RunFolder, status: RunStatus) -> None:
    """Record the end of the newest attempt if it has none, or a more specific reason."""
    attempts = read_attempts(folder)
    if not attempts:
        return
    newest = attempts[-1]
    error = status.reason.removeprefix(f"{status.exhausted_budget}; last: ")
    reason = "killed"
    # the end may be that of a later job, which never began an attempt
    if status.end_reason in END_REASONS and (newest.job_id or "") == status.job_id:
        reason = status.end_reason
    if newest.end_unix_s is None or end_reasons.is_more_specific(reason, newest.reason or ""):
        lifecycle.close(str(folder.path), newest.attempt, error, reason)
