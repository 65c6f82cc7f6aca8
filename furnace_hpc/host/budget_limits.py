"""The budgets of a run: attempts without a new step, attempts in all, GPU-hours.

Pure, standard library only, syntax of Python 3.6: the host side uses it.
"""

from typing import Any, Dict, Sequence

from furnace_hpc.host.end_reasons import RETRYABLE

Record = Dict[str, Any]


def exhausted_budget(attempts: Sequence[Record], limits: Record, now_unix_s: float) -> str:
    """Which budget is used up, in a sentence that says what to do; empty when none is. A missing limit is none."""
    idle, most_idle = idle_attempts(attempts), limits.get("max_idle_attempts")
    if most_idle and idle >= most_idle:
        what = "%d attempt%s in a row brought no new step" % (idle, "s" if idle > 1 else "")
        return _say(what, "max_idle_attempts", idle + 1)
    most = limits.get("max_attempts")
    if most and len(attempts) >= most:
        return _say(
            "%d of %d attempts are used up" % (len(attempts), most),
            "max_attempts",
            len(attempts) + 1,
        )
    hours, most_hours = gpu_hours(attempts, now_unix_s), limits.get("max_gpu_hours")
    if most_hours and hours >= most_hours:
        return _say(
            "%.1f of %g GPU-hours are used up" % (hours, most_hours),
            "max_gpu_hours",
            int(2 * hours) + 1,
        )
    return ""


def idle_attempts(attempts: Sequence[Record]) -> int:
    """Attempts in a row, up to the newest, that trained no step beyond the best before them.

    One that failed by itself or was cancelled counts neither way: it comes back only when somebody asks for it.
    """
    best, idle = 0, 0
    for attempt in attempts:
        if attempt.get("step", 0) > best:
            best, idle = attempt["step"], 0
        elif attempt.get("reason") is None or attempt["reason"] in RETRYABLE:
            idle += 1
    return idle


def gpu_hours(attempts: Sequence[Record], now_unix_s: float) -> float:
    """GPU-hours of all attempts; one without an end goes on."""
    total = 0.0
    for attempt in attempts:
        start = attempt.get("start_unix_s") or now_unix_s
        end = attempt.get("end_unix_s") or now_unix_s
        total += max(0.0, end - start) / 3600 * (attempt.get("gpus") or 0)
    return total


def _say(what: str, field: str, enough: int) -> str:
    return "budget: %s: raise it with --set resources.%s=%d, or more" % (what, field, enough)
