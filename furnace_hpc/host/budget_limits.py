"""The budgets of a run: attempts without a new step, all attempts, GPU-hours.

Pure functions, standard library only, syntax of Python 3.6.
"""

from typing import Any, Dict, Sequence

from furnace_hpc.host.end_reasons import RETRYABLE

Record = Dict[str, Any]


def exhausted_budget(attempts: Sequence[Record], limits: Record, now_unix_s: float) -> str:
    """The budget that is exhausted, and how to raise it. Empty if there is none.

    Args:
        attempts: records of the run's attempts, oldest first.
        limits: `max_idle_attempts`, `max_attempts`, `max_gpu_hours`. A missing one sets no limit.
        now_unix_s: the time, for attempts that have not ended.
    """
    idle, max_idle = idle_attempts(attempts), limits.get("max_idle_attempts")
    if max_idle and idle >= max_idle:
        plural = "s" if idle > 1 else ""
        what = f"{idle} attempt{plural} in a row without a new step"
        return _message(what, "max_idle_attempts", idle + 1)
    count = sum(attempt.get("reason") != "canary" for attempt in attempts)
    max_count = limits.get("max_attempts")
    if max_count and count >= max_count:
        return _message(f"{count} of {max_count} attempts are used", "max_attempts", count + 1)
    hours, max_hours = gpu_hours(attempts, now_unix_s), limits.get("max_gpu_hours")
    if max_hours and hours >= max_hours:
        what = f"{hours:.1f} of {max_hours:g} GPU-hours are used"
        return _message(what, "max_gpu_hours", int(2 * hours) + 1)
    return ""


def idle_attempts(attempts: Sequence[Record]) -> int:
    """The number of newest attempts in a row that trained no step beyond the best before them.

    Attempts that ended with a fatal reason or were cancelled are not counted: only the user retries
    them.
    """
    best, idle = 0, 0
    for attempt in attempts:
        if attempt.get("step", 0) > best:
            best, idle = attempt["step"], 0
        elif attempt.get("reason") is None or attempt["reason"] in RETRYABLE:
            idle += 1
    return idle


def gpu_hours(attempts: Sequence[Record], now_unix_s: float) -> float:
    """GPU-hours of all attempts. An attempt without an end counts up to now."""
    total = 0.0
    for attempt in attempts:
        start = attempt.get("start_unix_s") or now_unix_s
        end = attempt.get("end_unix_s") or now_unix_s
        total += max(0.0, end - start) / 3600 * (attempt.get("gpus") or 0)
    return total


def _message(what: str, key: str, enough: int) -> str:
    return f"budget: {what} (raise it with --set resources.{key}={enough} or more)"
