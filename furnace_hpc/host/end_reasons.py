"""Find why an attempt ended, from its ranks' reports, the exit code and the environment.

Pure functions, standard library only, syntax of Python 3.6. `END_REASONS` in `runs/state.py` has
the meaning of each reason.
"""

import re
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

Record = Dict[str, Any]

FATAL = ("oom", "crash", "nonfinite")  # the unchanged run would end the same way again
RETRYABLE = (  # not caused by the run
    "preempted",
    "time_limit",
    "node_fail",
    "hang",
    "infrastructure",
    "killed",
    "stopped",
    "peer_lost",
    "gpu",
    "oom_halved",
)
PROVISIONAL = ("killed", "stopped", "peer_lost")  # may be replaced by a more specific reason
CANARY = "--canary"  # in the place of a signal's name: ranks stop after some steps, as planned
CAUSES = FATAL + ("gpu",)  # verdicts of the rank that failed first; others follow from it
EARLY_S = 90  # Slurm sends the signal of --signal up to 60 s early, and delivery takes some seconds

# Words in errors of CUDA, NCCL, gloo and torch's store -> the verdict. The first match counts, so
# the order matters: NCCL wraps errors of CUDA. tests/host/test_failure_messages.py has real errors.
MESSAGES = tuple(
    (verdict, re.compile("|".join(words)))
    for verdict, words in (
        (
            "oom",
            (
                r"\b(CUDA|HIP|XPU) out of memory",
                r"(CUDA|driver|runtime) error( \(2\) )?: out of memory",
                r"Cuda failure (\d+ )?'out of memory'",
                r"CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation",
                r"CU[A-Z]+_STATUS_ALLOC_FAILED",
                r"NVML_SUCCESS == r INTERNAL ASSERT FAILED",  # hides a failed cudaMalloc
                r"[Cc]an(no|')t allocate memory",
                r"std::bad_alloc",
                r"DefaultCPUAllocator: not enough memory",
            ),
        ),
        (
            "crash",  # the same again on any node
            (
                r"ncclInvalidUsage|ncclInvalidArgument",
                r"device-side assert triggered",
                r"illegal memory access",
            ),
        ),
        (
            "gpu",
            (
                r"uncorrectable (ECC|NVLink) error",
                r"unspecified launch failure",
                r"launch timed out and was terminated",
                r"CUDA-capable device\S* (is/)?are busy or unavailable",
                r"peer GPU memory over nvlink or a hardware error",
                r"hardware stack error",
                r"system not yet initialized",  # the fabric manager of an NVSwitch node is down
                r"no CUDA-capable device is detected",
                r"CUDA unknown error",
                r"fallen off the bus|GPU is lost",
                r"\bXid \([^)]*\): (48|63|64|74|79|92|94|95|119|120)\b",
            ),
        ),
        (
            "hang",
            (
                r"Watchdog caught collective operation timeout",
                r"watchdog got stuck for \d+ seconds",
                r"Heartbeat monitor timed out",
            ),
        ),
        (
            "peer_lost",
            (
                r"ncclRemoteError|ncclSystemError|ncclInternalError",
                r"NCCL communicator was aborted|remote process exited",
                r"Connection (closed by|reset by|refused|timed out|was likely closed)",
                r"Broken pipe|No route to host|Network is unreachable",
                r"Software caused connection abort",
                r"Got completion from peer",
                r"Timed out (waiting|after)|[Ww]ait timeout after|Socket Timeout",
                r"client socket has (timed out|failed to connect)",
                r"did not publish its address",
            ),
        ),
    )
)
# torch's exceptions about other ranks, if no word above says more
PEER_ERRORS = ("DistBackendError", "DistNetworkError", "DistStoreError")
# Begins the last words of a process that C++ aborts, such as NCCL's watchdog in torch.
ABORTED = re.compile(
    r"terminate called after throwing|[Ww]atchdog (thread terminated|caught|got stuck)"
    r"|Heartbeat monitor timed out"
)

# How torch's messages name the rank that prints them.
RANK_IN_LOG = re.compile(r"^\[rank(\d+)\]|\bRank (\d+)\]", re.MULTILINE)


class EndReason(NamedTuple):
    """Why an attempt ended: a key of `END_REASONS`, and a message for people."""

    reason: str
    error: str


def verdict_of_message(text: str) -> str:
    """The verdict that an error's words mean. Empty if they are not known."""
    for verdict, pattern in MESSAGES:
        if pattern.search(text):
            return verdict
    return ""


def verdict_of_log(tail: str) -> Optional[EndReason]:
    """The verdict of a process that C++ aborted, from the end of its log. None if unknown."""
    aborted = ABORTED.search(tail)
    if not aborted:
        return None
    words = tail[tail.rfind("\n", 0, aborted.start()) + 1 :]
    verdict = verdict_of_message(words)
    if not verdict:
        return None
    pattern = dict(MESSAGES)[verdict]
    line = next((line for line in words.splitlines() if pattern.search(line)), words)
    return EndReason(verdict, line.strip()[:300])


def aborted_ranks(tail: str) -> List[int]:
    """The ranks that C++ aborted, from the end of the log of their node."""
    ranks = []
    for line in tail.splitlines():
        if ABORTED.search(line) or line.lstrip().startswith("what():"):
            ranks += [int(first or second) for first, second in RANK_IN_LOG.findall(line)]
    return ranks


def reason_of_ranks(
    verdicts: Sequence[Record], record: Record, environment: Mapping[str, str]
) -> Optional[EndReason]:
    """The end reason that the ranks reported. None if they reported none."""
    causes = [v for v in verdicts if v["verdict"] in CAUSES]
    if causes:  # the earliest is the cause; other ranks fail as a consequence
        first = min(causes, key=lambda v: v["unix_s"])
        return EndReason(first["verdict"], first.get("error", ""))
    hung = [v for v in verdicts if v["verdict"] == "hang"]
    if hung:
        return EndReason("hang", _hang_error(hung, verdicts))
    for verdict in verdicts:
        if verdict["verdict"] == "io_error":
            return EndReason("killed", verdict.get("error", ""))
    return _reason_of_stop(verdicts, record, environment) or _reason_of_lost_peer(verdicts)


def _reason_of_lost_peer(verdicts: Sequence[Record]) -> Optional[EndReason]:
    """The reason if ranks lost others. None if a rank reported no end: Slurm may know why."""
    lost = [v for v in verdicts if v["verdict"] == "peer_lost"]
    if not lost or any(v["verdict"] == "entered" for v in verdicts):
        return None
    return EndReason("peer_lost", min(lost, key=lambda v: v["unix_s"]).get("error", ""))


def _hang_error(hung: Sequence[Record], verdicts: Sequence[Record]) -> str:
    # a frozen rank is the cause: the others waited for it
    first = min(hung, key=lambda v: (not v.get("frozen"), v["unix_s"]))
    error = str(first.get("error", ""))
    silent = [v for v in verdicts if v["verdict"] == "entered"]
    if silent:
        error += f"; {len(silent)} ranks reported no end: look at their logs first"
    return error


def _reason_of_stop(
    verdicts: Sequence[Record], record: Record, environment: Mapping[str, str]
) -> Optional[EndReason]:
    """The reason if all ranks stopped after a signal, else None."""
    leaving = [v for v in verdicts if v["verdict"] in ("stopping", "stopped")]
    if not leaving or len(leaving) < len(verdicts):
        return None
    unsaved = [v for v in leaving if v["verdict"] == "stopping"]
    first = (unsaved or leaving)[0]
    reason = reason_of_signal(first.get("signal", ""), record, first["unix_s"], environment)
    return EndReason(reason, first.get("error", ""))


def reason_of_signal(
    name: str, record: Record, at_unix_s: float, environment: Mapping[str, str]
) -> str:
    """The reason behind a stop signal.

    Batch scripts ask for USR2 before the time limit. TERM and USR1 come with a preemption. Some
    sites send USR2 at preemption too. There the end of the job's time decides. `scancel` kills the
    batch script, so it does not get here.
    """
    if name == CANARY:
        return "canary"
    if not record.get("job_id"):
        return "stopped"
    if name == "SIGUSR2":
        end_s, lead_s = _job_end_unix_s(record, environment), record.get("signal_delay_s")
        if end_s is None or lead_s is None or at_unix_s >= end_s - lead_s - EARLY_S:
            return "time_limit"
        return "preempted"
    if name in ("SIGTERM", "SIGUSR1"):
        return "preempted"
    return "stopped"


def _job_end_unix_s(record: Record, environment: Mapping[str, str]) -> Optional[float]:
    """The end of the job's time. Older Slurm versions do not set SLURM_JOB_END_TIME."""
    end = environment.get("SLURM_JOB_END_TIME", "")
    if end.isdigit():
        return int(end)
    if record.get("time_limit_s"):
        return float(record["start_unix_s"] + record["time_limit_s"])
    return None


def halved_micro_batch(verdicts: Sequence[Record], before: Sequence[Record]) -> Optional[int]:
    """The micro-batch size with which a run that is out of memory is retried. None: it is not.

    A rank that runs out of memory in a training step reports half of its size. The run is retried
    once with it, at the same global batch size.

    Args:
        verdicts: of the attempt's ranks.
        before: records of the earlier attempts.
    """
    if any(record.get("reason") == "oom_halved" for record in before):
        return None
    for verdict in verdicts:
        size = verdict.get("half_micro_batch_size")
        if verdict["verdict"] == "oom" and isinstance(size, int) and size >= 1:
            return size
    return None


def reason_of_exit(verdicts: Sequence[Record], record: Record, exit_code: int) -> EndReason:
    """The reason if the ranks reported none: too few started, or a rank reported no end."""
    missing = (record.get("world_size") or 1) - len(verdicts)
    if not verdicts:
        return EndReason("infrastructure", f"no rank started (exit code {exit_code})")
    if missing > 0:
        return EndReason("killed", f"{missing} ranks never started: see the batch log")
    if all(v["verdict"] == "done" for v in verdicts):
        error = f"the ranks ended without a result.json (exit code {exit_code})"
        return EndReason("killed", error)
    return EndReason("killed", f"a rank reported no end (exit code {exit_code})")


def reason_after_restart(verdicts: Sequence[Record], has_steps: bool) -> EndReason:
    """The reason of an attempt without a recorded end whose job Slurm has restarted.

    Before Slurm requeues or preempts a job it sends TERM and waits (KillWait, 30 s). So ranks that
    train report the signal. If they trained and reported none, their node failed.
    """
    stopped = []
    for verdict in verdicts:
        if verdict["verdict"] == "hang":
            return EndReason("hang", verdict.get("error", ""))
        if verdict["verdict"] in ("stopping", "stopped"):
            stopped.append(verdict)
    if stopped:
        return EndReason("preempted", f"Slurm restarted its job: {stopped[0].get('error', '')}")
    if has_steps:
        return EndReason(
            "node_fail", "Slurm restarted its job, and no rank got a stop signal: a node failed"
        )
    error = "Slurm restarted its job before the first step: requeue, preemption or a failed node"
    return EndReason("killed", error)


def is_more_specific(reason: str, known: str) -> bool:
    """Whether Slurm's reason says more than the reason that an attempt ended with."""
    if reason == "oom" and known == "hang":
        return True
    return known in PROVISIONAL and reason not in PROVISIONAL


def suspect_hosts(reason: str, verdicts: Sequence[Record]) -> List[str]:
    """Hosts of ranks with a broken GPU, or that were frozen or reported no end in a hang."""
    suspects = []  # type: List[Record]
    if reason == "gpu":
        suspects = [v for v in verdicts if v["verdict"] == "gpu"]
    elif reason == "hang":
        suspects = [v for v in verdicts if v["verdict"] == "entered" or v.get("frozen")]
    return sorted({v.get("host", "") for v in suspects} - {""})
