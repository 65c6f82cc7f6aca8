"""List Slurm's words for the state of a job, and what each means for its run.

The words are those in the manuals of squeue and sacct, 22.05 to 24.11. Any other word is UNKNOWN,
which is never a failure.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from furnace_hpc.runs.state import END_REASONS, RunState
from furnace_hpc.slurm.reasons import RELEASE, SUBMIT_RELEASES, as_letters, explain


class Phase(StrEnum):
    """What a job is doing."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Meaning:
    """The meaning of a state word."""

    phase: Phase
    text: str  # for people
    end_reason: str = "killed"  # end reason of an attempt that recorded none itself

    @property
    def run_state(self) -> RunState:
        """The state of a run whose attempt ended in this way."""
        if self.end_reason not in END_REASONS:
            return RunState.UNKNOWN
        return END_REASONS[self.end_reason].state


def _waiting(text: str) -> Meaning:
    return Meaning(Phase.WAITING, text)


def _running(text: str) -> Meaning:
    return Meaning(Phase.RUNNING, text)


def _ended(text: str, reason: str = "killed") -> Meaning:
    return Meaning(Phase.ENDED, text, reason)


MEANINGS = {
    "PENDING": _waiting("waits"),
    "REQUEUED": _waiting("was requeued"),
    "REQUEUE_FED": _waiting("was requeued by the federation"),
    "REVOKED": _waiting("was given to another cluster of the federation"),
    "EXPEDITING": _waiting("waits to be requeued at once"),
    "REQUEUE_HOLD": _waiting(f"was requeued and is held: {SUBMIT_RELEASES}"),
    "SPECIAL_EXIT": _waiting(f"was requeued as special exit and is held: {RELEASE}"),
    "RESV_DEL_HOLD": _waiting(f"is held, its reservation was deleted: {RELEASE}"),
    "CONFIGURING": _running("its nodes are being prepared"),
    "POWER_UP_NODE": _running("its nodes are being powered up"),
    "RUNNING": _running(""),
    "COMPLETING": _running("its processes are ending"),
    "RESIZING": _running("is changing its size"),
    "SIGNALING": _running("is being signalled"),
    "STAGE_OUT": _running("its files are being staged out"),
    "STOPPED": _running("paused by a signal; it keeps its nodes"),
    "SUSPENDED": _running("suspended by Slurm; other jobs use its nodes"),
    "UPDATE_DB": _running("its end is being recorded"),
    "COMPLETED": _ended("its job ended with exit code 0"),
    "FAILED": _ended("its job failed"),
    "TIMEOUT": _ended("killed at its time limit", "time_limit"),
    "DEADLINE": _ended("ended at its deadline", "time_limit"),
    "PREEMPTED": _ended("preempted", "preempted"),
    "NODE_FAIL": _ended("a node failed", "node_fail"),
    "BOOT_FAIL": _ended("a node did not boot", "infrastructure"),
    "LAUNCH_FAILED": _ended("could not be launched on its nodes", "infrastructure"),
    "RECONFIG_FAIL": _ended("a node could not be reconfigured", "infrastructure"),
    "CANCELLED": _ended("cancelled", "cancelled"),
    "OUT_OF_MEMORY": _ended("out of memory", "oom"),
}

_SHORT = {  # squeue's compact forms, %t
    "BF": "BOOT_FAIL",
    "CA": "CANCELLED",
    "CD": "COMPLETED",
    "CF": "CONFIGURING",
    "CG": "COMPLETING",
    "DL": "DEADLINE",
    "F": "FAILED",
    "NF": "NODE_FAIL",
    "OOM": "OUT_OF_MEMORY",
    "PD": "PENDING",
    "PR": "PREEMPTED",
    "R": "RUNNING",
    "RD": "RESV_DEL_HOLD",
    "RF": "REQUEUE_FED",
    "RH": "REQUEUE_HOLD",
    "RQ": "REQUEUED",
    "RS": "RESIZING",
    "RV": "REVOKED",
    "S": "SUSPENDED",
    "SE": "SPECIAL_EXIT",
    "SI": "SIGNALING",
    "SO": "STAGE_OUT",
    "ST": "STOPPED",
    "TO": "TIMEOUT",
}

# Flags that Slurm adds to a state such as RUNNING. Of several flags, the first one here counts.
_FLAGS = (
    *("COMPLETING", "STAGE_OUT", "CONFIGURING", "POWER_UP_NODE", "RESIZING", "REQUEUED"),
    *("REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "STOPPED", "REVOKED", "RESV_DEL_HOLD"),
    *("SIGNALING", "UPDATE_DB"),
)

_NO_REASON = ("", "none", "noneassigned", "null", "unknown", "n/a")
_HELD_AFTER_REQUEUE = ("jobrequeuedinheldstate", "launchfailedrequeuedheld")


def base_state(word: str) -> str:
    """Reduce a state to one word: RUNNING+COMPLETING, `CANCELLED by 0`, RUNNING+, PD."""
    first, *_ = [*word.split(), ""]
    parts = [_SHORT.get(part, part) for part in re.split("[+,]", first.removesuffix("+"))]
    if len(parts) == 1:
        return parts[0]
    if not MEANINGS.keys() >= set(parts):
        return first
    for flag in _FLAGS:
        if flag in parts:
            return flag
    return parts[0] if len(set(parts)) == 1 else first


@lru_cache(1024)  # thousands of jobs have few different states
def meaning(word: str) -> Meaning:
    """Look up a state in any form that squeue and sacct print: PD, `CANCELLED by 0`, RUNNING+."""
    unknown = Meaning(Phase.UNKNOWN, f"unknown Slurm state {word!r}", "")
    return MEANINGS.get(base_state(word), unknown)


def is_held_after_requeue(word: str, reason: str) -> bool:
    """Whether Slurm requeued the job and holds it. A hold by a person does not count."""
    return base_state(word) == "REQUEUE_HOLD" or as_letters(reason) in _HELD_AFTER_REQUEUE


def explain_waiting(word: str, reason: str) -> str:
    """Why a job waits and what to do, in parentheses. Empty if Slurm gives no reason."""
    if as_letters(reason) in _NO_REASON:
        return ""
    if is_held_after_requeue(word, reason):
        return f" ({reason}: {SUBMIT_RELEASES})"
    known = explain(reason)
    return f" ({reason}: {known})" if known else f" ({reason})"
