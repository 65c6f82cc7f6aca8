"""Why an attempt ended: the reasons, and how they are told from the words of its ranks and from its host's environment.

Pure, standard library only, syntax of Python 3.6: the host side uses it. `runs/state.py` says what each reason means.
"""

from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

Record = Dict[str, Any]
Ending = Tuple[str, str]  # reason, and in words

FATAL = ("oom", "crash", "nonfinite")  # the same run, unchanged, would end the same way
RETRYABLE = (
    "preempted",
    "time_limit",
    "node_fail",
    "hang",
    "infrastructure",
    "killed",
    "stopped",
)  # no fault of the run
PROVISIONAL = ("killed", "stopped")  # whoever knows more may say it later
EARLY_S = 90  # Slurm sends the signal of --signal up to a minute early; and some seconds to pass on


def of_ranks(
    verdicts: Sequence[Record], record: Record, environment: Mapping[str, str]
) -> Optional[Ending]:
    """What the ranks themselves know of the end; None when they do not."""
    fatal = sorted((v for v in verdicts if v["verdict"] in FATAL), key=lambda v: v["unix_s"])
    if fatal:  # the first in time is the cause, not the first in rank
        return fatal[0]["verdict"], fatal[0].get("error", "")
    hung = sorted(
        (v for v in verdicts if v["verdict"] == "hang"),
        key=lambda v: (not v.get("frozen"), v["unix_s"]),
    )
    if hung:  # a frozen one is the cause: the others waited for it
        silent = len([v for v in verdicts if v["verdict"] == "entered"])
        return "hang", hung[0].get("error", "") + (
            "; %d ranks gave no word: look there first" % silent if silent else ""
        )
    weather = [v for v in verdicts if v["verdict"] == "io_error"]
    if weather:
        return "killed", weather[0].get("error", "")
    leaving = [v for v in verdicts if v["verdict"] in ("stopping", "stopped")]
    if verdicts and len(leaving) == len(verdicts):
        late = [v for v in leaving if v["verdict"] == "stopping"]
        first = (late or leaving)[0]
        return of_signal(first.get("signal", ""), record, first["unix_s"], environment), first.get(
            "error", ""
        )
    return None


def of_signal(name: str, record: Record, at_unix_s: float, environment: Mapping[str, str]) -> str:
    """The reason behind a signal: batch scripts ask for USR2 before the time limit; TERM and USR1 come with preemption.

    Where a site sends USR2 at preemption too, the end of the job's time tells them apart: SLURM_JOB_END_TIME of newer
    Slurms, else the attempt's begin and the time that was asked for. Somebody's scancel kills the batch script, so it
    is not told here: Slurm knows.
    """
    if not record.get("job_id"):
        return "stopped"
    if name == "SIGUSR2":
        end, lead_s = environment.get("SLURM_JOB_END_TIME", ""), record.get("signal_delay_s")
        limit_s = record.get("time_limit_s")
        end_s = int(end) if end.isdigit() else record["start_unix_s"] + limit_s if limit_s else None
        early = end_s is not None and lead_s is not None and at_unix_s < end_s - lead_s - EARLY_S
        return "preempted" if early else "time_limit"
    return "preempted" if name in ("SIGTERM", "SIGUSR1") else "stopped"


def of_exit(verdicts: Sequence[Record], record: Record, exit_code: int) -> Ending:
    """The reason where ranks do not know it: too few of them have spoken, or some went without a word."""
    missing = (record.get("world_size") or 1) - len(verdicts)
    if not verdicts:
        return "infrastructure", "no rank started (exit code %s)" % exit_code
    if missing > 0:
        return "killed", "%d ranks never started: see the batch log" % missing
    if all(v["verdict"] == "done" for v in verdicts):
        return "killed", "the ranks ended without a result.json (exit code %s)" % exit_code
    return "killed", "a rank ended without a word (exit code %s)" % exit_code


def after_restart(verdicts: Sequence[Record], has_steps: bool) -> Ending:
    """The reason of an attempt whose job Slurm has started again while nobody was left to say how it ended.

    Before Slurm requeues or preempts a job it sends TERM and waits (KillWait, 30 s), so ranks that train say that they
    are told to stop. Ranks that trained and said nothing were not asked: their node failed.
    """
    again = "its job was started again by Slurm"
    hung = [v for v in verdicts if v["verdict"] == "hang"]
    if hung:
        return "hang", hung[0].get("error", "")
    told = [v for v in verdicts if v["verdict"] in ("stopping", "stopped")]
    if told:
        return "preempted", "%s: %s" % (again, told[0].get("error", ""))
    if has_steps:
        return "node_fail", "%s, and no rank was told to stop: a node failed" % again
    return "killed", "%s before it trained: requeued, preempted, or a node failed" % again


def is_more_specific(reason: str, known: str) -> bool:
    """Whether a reason that Slurm gives says more than the one that an attempt ended with."""
    return (known in PROVISIONAL and reason not in PROVISIONAL) or (
        reason == "oom" and known == "hang"
    )


def suspect_hosts(reason: str, verdicts: Sequence[Record]) -> List[str]:
    """The hosts of a hang: of the ranks that were frozen or gave no last word; empty where that is not known."""
    guilty = (
        [v for v in verdicts if v["verdict"] == "entered" or v.get("frozen")]
        if reason == "hang"
        else []
    )
    return sorted({v.get("host", "") for v in guilty} - {""})
