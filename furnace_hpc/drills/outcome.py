"""What a drill's disturbance cost: read from the files of the disturbed run and of the undisturbed one."""

from dataclasses import dataclass
from typing import Any

from furnace_hpc.drills.faults import Disturbance
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.attempts import read_attempts
from furnace_hpc.runs.records.metrics import read_metrics, records_of_attempt
from furnace_hpc.runs.records.result import read_result

CALM = "undisturbed"
OF_TIME = {"step_time_s", "samples_per_s", "time_unix_s", "attempt"}


@dataclass(frozen=True)
class Outcome:
    """One disturbed run against the undisturbed one."""

    way: Disturbance
    attempts: int
    ended: str
    """Why its first attempt ended, as the attempt's record says."""
    lost_steps: int | None
    """Steps that were trained again; None: it never went on."""
    back_s: float | None
    """From the last step of the first attempt to the first step beyond it."""
    problem: str
    """What went wrong, or differs; empty when the result is identical."""

    def at_most(self, interval: int) -> int:
        """The steps that may be lost: unwarned, an interval, and as many as are made while a save is being written."""
        return 1 if self.way.warned else 2 * interval - 1

    def is_good(self, interval: int) -> bool:
        """Whether no more was lost than is promised, and the result is identical."""
        return (
            not self.problem
            and self.lost_steps is not None
            and self.lost_steps <= self.at_most(interval)
        )

    def cells(self, interval: int) -> tuple[str, ...]:
        """The row of the report."""
        lost = "-" if self.lost_steps is None else str(self.lost_steps)
        back = "-" if self.back_s is None else f"{self.back_s:.0f} s"
        verdict = "ok" if self.is_good(interval) else "LOST"
        result = self.problem or "identical"
        return (
            self.way.name,
            str(self.attempts),
            self.ended,
            lost,
            str(self.at_most(interval)),
            back,
            result,
            verdict,
        )

    def record(self, interval: int) -> dict[str, Any]:
        """The same for scripts."""
        return {
            "disturbance": self.way.name,
            "what": self.way.what,
            "warned": self.way.warned,
            "attempts": self.attempts,
            "ended": self.ended,
            "lost_steps": self.lost_steps,
            "at_most": self.at_most(interval),
            "back_s": self.back_s,
            "problem": self.problem,
            "is_good": self.is_good(interval),
        }


def read_outcome(run: RunFolder, calm: RunFolder, way: Disturbance, problem: str) -> Outcome:
    """Compare a disturbed run with the undisturbed one. `problem`: what is known to have gone wrong already."""
    attempts = read_attempts(run)
    first, later = (
        _trained(run, 1),
        [record for n in range(2, len(attempts) + 1) for record in _trained(run, n)],
    )
    lost = back_s = None
    if first and later:
        last = first[-1]
        lost = max(0, last["step"] - later[0]["step"] + 1)
        beyond = [record for record in later if record["step"] > last["step"]]
        back_s = beyond[0]["time_unix_s"] - last["time_unix_s"] if beyond else None
    ended = (attempts[0].reason or "no end") if attempts else "never began"
    return Outcome(
        way, len(attempts), ended, lost, back_s, problem or _difference(run, calm, len(attempts))
    )


def _difference(run: RunFolder, calm: RunFolder, attempts: int) -> str:
    here, there = read_result(run), read_result(calm)
    if there is None:
        return "the undisturbed run is not done"
    if here is None:
        return "not done"
    if attempts < 2:
        return "it was over before the disturbance came: give more --steps"
    if here.parameters_sha256 != there.parameters_sha256:
        return f"parameters differ: {here.parameters_sha256[:12]}, undisturbed {there.parameters_sha256[:12]}"
    ours, theirs = _curve(run), _curve(calm)
    if ours != theirs:
        step = next(
            (n for n, (a, b) in enumerate(zip(ours, theirs, strict=False), 1) if a != b), len(ours)
        )
        return f"the loss curve differs from step {step} on"
    return ""


def _trained(run: RunFolder, attempt: int) -> list[dict[str, Any]]:
    return [record for record in records_of_attempt(run, attempt) if record["kind"] == "train"]


def _curve(run: RunFolder) -> list[dict[str, Any]]:
    """All numbers of every step, but those that tell of time."""
    records = [record for record in read_metrics(run) if record["kind"] == "train"]
    return [
        {key: value for key, value in record.items() if key not in OF_TIME} for record in records
    ]
