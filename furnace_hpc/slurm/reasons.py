"""Explain why a job waits: what Slurm's reason means, and whether the job starts by itself.

The reasons are those of Slurm 22.05 to 26.05. Limits of accounts and of qualities of service have
names that are made of parts, such as QOSMaxGRESPerUser, so rules explain them.
"""

import re
from enum import StrEnum
from functools import cache
from typing import NamedTuple


class Starts(StrEnum):
    """Whether a waiting job starts."""

    ALONE = "by itself"
    SITE = "when the site changes something"
    ACTION = "after an action of yours"
    NEVER = "never"


class Reason(NamedTuple):
    """The meaning of a reason, and what to do. Both are written for the user."""

    starts: Starts
    text: str
    action: str = ""

    def __str__(self) -> str:
        return f"{self.text}; {self.action}" if self.action else self.text


def _alone(text: str, action: str = "") -> Reason:
    return Reason(Starts.ALONE, text, action)


def _site(text: str, action: str = "wait for the site") -> Reason:
    return Reason(Starts.SITE, text, action)


def _held(text: str, action: str) -> Reason:
    return Reason(Starts.ACTION, text, action)


def _never(text: str, fix: str) -> Reason:
    return Reason(Starts.NEVER, text, f"{fix}, {CANCEL_AND_SUBMIT}")


CANCEL_AND_SUBMIT = "cancel it and submit"
SUBMIT_RELEASES = "run `furnace submit` to release it"
RELEASE = "run `scontrol release JOB` to release it"
_OTHER_ACCOUNT = "fix account in the profile"
_OTHER_QOS = "fix qos in the profile"
_ENDS_BY_SLURM = "it ended, and Slurm has not removed it yet"

REASONS = {
    # the queue
    "None": _alone("Slurm has not considered it yet"),
    "WaitingForScheduling": _alone("Slurm has not considered it yet"),
    "Priority": _alone("jobs of higher priority are before it"),
    "Resources": _alone("it is at the front of the queue and waits for free nodes"),
    "SchedDefer": _alone("Slurm starts jobs at intervals, not when they are submitted"),
    "JobArrayTaskLimit": _alone(
        "as many runs as array_parallelism of the profile allows are running",
        "raise it to run more at the same time",
    ),
    "Dependency": _alone("it starts after other jobs"),
    "DependencyNeverSatisfied": Reason(Starts.NEVER, "it will never run", "cancel it"),
    "BeginTime": _alone("its earliest start time is later; after a requeue it is 2 minutes later"),
    "Cleaning": _alone("processes from before the requeue are still ending"),
    "Prolog": _alone("the site's prolog is running"),
    "Licenses": _alone("all licenses that it asks for are in use"),
    "BurstBufferResources": _alone("the burst buffer is full"),
    "BurstBufferStageIn": _alone("its files are copied to the burst buffer"),
    "BurstBufferOperation": _site("the burst buffer failed"),
    "PowerNotAvail": _alone("the cluster's power limit is reached"),
    "PowerReserved": _alone("the power for it is reserved for other jobs"),
    "FedJobLock": _alone("the federation is choosing the cluster that starts it"),
    # reservations and nodes
    "Reservation": _alone("its reservation has not begun, or is full"),
    "ReservationDeleted": _never("its reservation was deleted", "fix sbatch.reservation"),
    "ReqNodeNotAvail": _site(
        "a node that it needs is down, drained, or reserved, for example for maintenance",
        "a shorter timeout_min may end before a reservation; else wait for the site",
    ),
    "NodesRequiredForJobAreDOWN": _site(
        "nodes that it needs are down, drained, or reserved for jobs in partitions of higher "
        "priority"
    ),
    "NodeDown": _site("a node that it needs is down"),
    "FrontEndDown": _site("the front end that starts jobs is down"),
    "PartitionDown": _site("the partition is down"),
    "PartitionInactive": _site("the partition is inactive"),
    # what it asks for
    "PartitionTimeLimit": _never(
        "its time limit is above the partition's", "lower resources.timeout_min"
    ),
    "PartitionNodeLimit": _never("it asks for more nodes than the partition allows", "lower nodes"),
    "PartitionConfig": _never(
        "no node of the partition has what it asks for, or it exceeds a limit of the partition",
        "fix the profile",
    ),
    "BadConstraints": _never("no node has what it asks for", "fix the profile"),
    "MaxMemPerLimit": _never(
        "it asks for more memory per core than the site allows", "lower mem_gb"
    ),
    "DeadLine": _never("it cannot end before its deadline", "fix sbatch.deadline"),
    # accounts
    "InvalidAccount": _never("its account does not exist any more", _OTHER_ACCOUNT),
    "AccountNotAllowed": _never("the partition does not accept its account", _OTHER_ACCOUNT),
    "InvalidQOS": _never("its quality of service does not exist any more", _OTHER_QOS),
    "QOSNotAllowed": _never("the partition or account does not accept its QOS", _OTHER_QOS),
    "QOSUsageThreshold": _site(
        "the account has used more than its QOS allows", "wait until the usage decays"
    ),
    "AccountingPolicy": _alone("a limit of the account or QOS is reached"),
    "AssociationJobLimit": _alone("the account has as many running jobs as its limit allows"),
    "AssociationResourceLimit": _alone("the account uses as many resources as its limit allows"),
    "AssociationTimeLimit": _site("the account has used all its time", "ask the site for more"),
    "QOSJobLimit": _alone("the QOS has as many running jobs as its limit allows"),
    "QOSResourceLimit": _alone("the QOS uses as many resources as its limit allows"),
    "QOSTimeLimit": _site("the QOS has used all its time", "ask the site for more"),
    # held
    "JobHeldUser": _held("it is held", RELEASE),
    "JobHeldAdmin": Reason(Starts.SITE, "it is held by an administrator", "ask the site"),
    "JobHoldMaxRequeue": _held(
        "it was requeued too often and is held", f"find the cause, then {RELEASE}"
    ),
    "launch failed requeued held": _held("its launch failed", SUBMIT_RELEASES),
    "job requeued in held state": _held("it was requeued and is held", SUBMIT_RELEASES),
    # jobs that have ended
    "JobLaunchFailure": _alone("it could not be launched"),
    "NonZeroExitCode": _alone(_ENDS_BY_SLURM),
    "OutOfMemory": _alone(_ENDS_BY_SLURM),
    "SystemFailure": _alone("Slurm, the network or a file system failed"),
    "TimeLimit": _alone(_ENDS_BY_SLURM),
    "InactiveLimit": _alone(_ENDS_BY_SLURM),
}

_WHAT = {
    "bb": "burst buffer",
    "billing": "billing units",
    "cpu": "CPUs",
    "energy": "energy",
    "gres": "GPUs or other GRES",
    "jobs": "jobs",
    "license": "licenses",
    "mem": "memory",
    "memory": "memory",
    "node": "nodes",
    "submitjob": "waiting and running jobs",
    "submitjobs": "waiting and running jobs",
    "unknown": "resources",
    "wall": "time",
    "wallduration": "time",
}
_NOUNS = "|".join(sorted(_WHAT, key=len, reverse=True))
_LIMIT = re.compile(
    rf"(?P<whose>assoc|qos)?(?P<kind>grp|max|min)(?P<what>{_NOUNS})"
    r"(?P<time>minutes|runminutes)?(?P<each>per(job|node|user|account))?(limit|notsatisfied)?"
)


@cache
def explain(reason: str) -> Reason | None:
    """Explain a reason that squeue prints. None if it is not known.

    A reason may have details behind it: `ReqNodeNotAvail, UnavailableNodes:node[1-2]`.
    """
    letters = as_letters(reason)
    if found := _BY_LETTERS.get(letters) or _BY_LETTERS.get(as_letters(reason.partition(",")[0])):
        return found
    if letters.startswith(_NODES_DOWN):
        return _BY_LETTERS[_NODES_DOWN]
    limit = _LIMIT.fullmatch(letters)
    return _explain_limit(limit) if limit else None


def _explain_limit(found: re.Match[str]) -> Reason:
    """Explain a limit by the parts of its name."""
    what, each = _WHAT[found["what"]], found["each"] or ""
    owner = {"assoc": "account", "qos": "QOS"}.get(found["whose"] or "", "account")
    fix = {"account": _OTHER_ACCOUNT, "QOS": _OTHER_QOS}[owner]
    if found["time"]:
        what += " x minutes"
    if found["kind"] == "min":
        return _never(f"it asks for less than the {owner}'s minimum of {what}", fix)
    if found["kind"] == "grp" and found["time"] == "minutes":
        text = f"the {owner}'s budget of {what} is used up"
        return _site(text, "ask the site for more, or use another account or qos")
    if found["kind"] == "grp":
        return _alone(f"all jobs of the {owner} together are at its limit of {what}")
    if found["what"].startswith(("jobs", "submit")) or each in ("peruser", "peraccount"):
        return _alone(f"your jobs are at the {owner}'s limit of {what}")
    return _never(
        f"it asks for more than the {owner}'s limit of {what} for one job",
        f"ask for less, or {fix}",
    )


def as_letters(reason: str) -> str:
    """Return a reason in one form: Slurm writes Partition_Down, PartitionDown, (PartitionDown)."""
    return re.sub(r"[\s_()]", "", reason).lower()


_BY_LETTERS = {as_letters(name): reason for name, reason in REASONS.items()}
_NODES_DOWN = as_letters("NodesRequiredForJobAreDOWN")
