"""Every word that Slurm has for a job's state, and what it means for a run.

The words are those of squeue's and sacct's manuals, 22.05 to 24.11. A word that is not here is UNKNOWN, and an unknown
word is never a failure.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from furnace_hpc.runs.state import END_REASONS, RunState


class Phase(StrEnum):
    """Where a job stands."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Meaning:
    """What a word says; `ended` is the reason of an attempt whose job ended so before the run itself said anything."""

    phase: Phase
    says: str
    ended: str = "killed"

    @property
    def leaves(self) -> RunState:
        """The state of a run whose attempt ended so."""
        return END_REASONS[self.ended].state if self.ended in END_REASONS else RunState.UNKNOWN


def _waiting(says: str) -> Meaning:
    return Meaning(Phase.WAITING, says)


def _running(says: str) -> Meaning:
    return Meaning(Phase.RUNNING, says)


def _ended(says: str, reason: str = "killed") -> Meaning:
    return Meaning(Phase.ENDED, says, reason)


MEANINGS = {
    "PENDING": _waiting("waits"),
    "REQUEUED": _waiting("was requeued"),
    "REQUEUE_FED": _waiting("was requeued by the federation"),
    "REVOKED": _waiting("was given to another cluster of the federation"),
    "EXPEDITING": _waiting("waits to be requeued at once"),
    "REQUEUE_HOLD": _waiting("was requeued and is held: submit again lets it go on"),
    "SPECIAL_EXIT": _waiting(
        "was requeued as special exit and is held: `scontrol release JOB` lets it go on"
    ),
    "RESV_DEL_HOLD": _waiting(
        "is held, its reservation was deleted: `scontrol release JOB` lets it go on"
    ),
    "CONFIGURING": _running("its nodes are being made ready"),
    "POWER_UP_NODE": _running("its nodes are being powered up"),
    "RUNNING": _running(""),
    "COMPLETING": _running("its processes are ending"),
    "RESIZING": _running("is changing its size"),
    "SIGNALING": _running("is being signalled"),
    "STAGE_OUT": _running("its files are being staged out"),
    "STOPPED": _running("stopped by a signal, and holds its nodes"),
    "SUSPENDED": _running("suspended by Slurm, its nodes given to others"),
    "UPDATE_DB": _running("its end is being written down"),
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


_FLAGS = (  # beside a state such as RUNNING; in this order Slurm itself writes one of them instead
    *(
        "COMPLETING",
        "STAGE_OUT",
        "CONFIGURING",
        "POWER_UP_NODE",
        "RESIZING",
        "REQUEUED",
        "REQUEUE_FED",
    ),
    *(
        "REQUEUE_HOLD",
        "SPECIAL_EXIT",
        "STOPPED",
        "REVOKED",
        "RESV_DEL_HOLD",
        "SIGNALING",
        "UPDATE_DB",
    ),
)


def plain(word: str) -> str:
    """The one word of a state with what is added to it: RUNNING+COMPLETING, `CANCELLED by 0`, RUNNING+, PD."""
    first = word.split()[0] if word.split() else ""
    parts = [_SHORT.get(part, part) for part in re.split("[+,]", first.removesuffix("+"))]
    if len(parts) == 1 or not all(part in MEANINGS for part in parts):
        return parts[0] if len(parts) == 1 else first
    flags = sorted((part for part in parts if part in _FLAGS), key=_FLAGS.index)
    return flags[0] if flags else parts[0] if len(set(parts)) == 1 else first


def meaning(word: str) -> Meaning:
    """What a state word means, in any of the forms that squeue and sacct write it: PD, `CANCELLED by 0`, RUNNING+."""
    known = MEANINGS.get(plain(word))
    return known or Meaning(Phase.UNKNOWN, f"Slurm says {word!r}, which is not known here", "")
