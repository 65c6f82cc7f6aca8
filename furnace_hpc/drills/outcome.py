"""Compare a disturbed run of a drill with the undisturbed one, from their files."""

from dataclasses import dataclass
from typing import Any

from furnace_hpc.drills.faults import Disturbance
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.attempts import AttemptHistory
from furnace_hpc.runs.records.metrics import MEASURED, read_metrics, records_of_attempt
from furnace_hpc.runs.records.result import read_result

UNDISTURBED = "undisturbed"


@dataclass(frozen=True)
class Outcome:
    """One disturbed run against the undisturbed one."""

    disturbance: Disturbance
    attempts: int
    ended: str
    """Why its first attempt ended, from the attempt's record."""
    lost_steps: int | None
    """Steps that were trained again. None if it never resumed."""
    recovery_s: float | None
    """Seconds from the last step of the first attempt to the next new step. None if none came."""
    problem: str
    """What went wrong or differs. Empty if the result is identical."""

    def at_most(self, interval: int) -> int:
        """Return how many steps may be lost.

        After a warning that is one step. Without a warning it is one interval, and the steps during
        the write of a checkpoint.
        """
        return 1 if self.disturbance.warned else 2 * interval - 1

    def is_good(self, interval: int) -> bool:
        """Return whether the result is identical, and no more steps were lost than allowed."""
        return (
            not self.problem
            and self.lost_steps is not None
            and self.lost_steps <= self.at_most(interval)
        )

    def cells(self, interval: int) -> tuple[str, ...]:
        """Return the row of the report."""
        lost = "-" if self.lost_steps is None else str(self.lost_steps)
        back = "-" if self.recovery_s is None else f"{self.recovery_s:.0f} s"
        verdict = "ok" if self.is_good(interval) else "LOST"
        result = self.problem or "identical"
        return (
            self.disturbance.name,
            str(self.attempts),
            self.ended,
            lost,
            str(self.at_most(interval)),
            back,
            result,
            verdict,
        )

    def record(self, interval: int) -> dict[str, Any]:
        """Return the outcome as JSON, for scripts."""
        return {
            "disturbance": self.disturbance.name,
            "what": self.disturbance.what,
            "warned": self.disturbance.warned,
            "attempts": self.attempts,
            "ended": self.ended,
            "lost_steps": self.lost_steps,
            "at_most": self.at_most(interval),
            "back_s": self.recovery_s,
            "problem": self.problem,
            "is_good": self.is_good(interval),
        }


def read_outcome(
    run: RunFolder, undisturbed: RunFolder, disturbance: Disturbance, problem: str
) -> Outcome:
    """Compare a disturbed run with the undisturbed one.

    Args:
        run: the disturbed run.
        undisturbed: the undisturbed run.
        disturbance: the disturbance.
        problem: why the disturbance failed. Empty if it did not.
    """
    attempts = AttemptHistory.read(run).attempts
    first = _trained(run, 1)
    later = [record for n in range(2, len(attempts) + 1) for record in _trained(run, n)]
    lost = recovery_s = None
    if first and later:
        last = first[-1]
        lost = max(0, last["step"] - later[0]["step"] + 1)
        beyond = [record for record in later if record["step"] > last["step"]]
        recovery_s = beyond[0]["time_unix_s"] - last["time_unix_s"] if beyond else None
    ended = "never began"
    if attempts:
        ended = attempts[0].reason or "no end"
    problem = problem or _difference(run, undisturbed, len(attempts))
    return Outcome(disturbance, len(attempts), ended, lost, recovery_s, problem)


def _difference(run: RunFolder, undisturbed: RunFolder, attempts: int) -> str:
    here, there = read_result(run), read_result(undisturbed)
    if there is None:
        return "the undisturbed run is not done"
    if here is None:
        return "not done"
    if attempts < 2:
        return "it ended before the disturbance: use more --steps"
    ours, theirs = here.parameters_sha256, there.parameters_sha256
    if ours != theirs:
        return f"parameters differ: {ours[:12]}, undisturbed {theirs[:12]}"
    return _curve_difference(_curve(run), _curve(undisturbed))


def _curve_difference(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    for step, (our, their) in enumerate(zip(ours, theirs, strict=False), 1):
        if our != their:
            return f"the loss curve differs from step {step} on"
    if len(ours) != len(theirs):
        return f"the loss curve has {len(ours)} steps, undisturbed {len(theirs)}"
    return ""


def _trained(run: RunFolder, attempt: int) -> list[dict[str, Any]]:
    return [record for record in records_of_attempt(run, attempt) if record["kind"] == "train"]


def _curve(run: RunFolder) -> list[dict[str, Any]]:
    """Return all numbers of every step, except measured ones such as times."""
    records = [record for record in read_metrics(run) if record["kind"] == "train"]
    return [
        {key: value for key, value in record.items() if key not in MEASURED} for record in records
    ]
