"""The host side of an attempt: begin before the ranks start, decide after they ended.

Runs outside containers and under the node's own Python: standard library only, syntax of Python 3.6. The batch script
calls it through batch.py.
"""

import json
import os
import signal
import socket
import time
from typing import Any, Dict, List, Optional

from furnace_hpc.host import budget_limits, end_reasons, last_activity
from furnace_hpc.host.lease import describe as describe
from furnace_hpc.host.lease import holder as holder
from furnace_hpc.host.lease import is_alive as is_alive
from furnace_hpc.host.regular_file import read_regular_text

STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGHUP)
EXIT_STOPPED = 85  # a rank's exit code after an orderly stop with a checkpoint
EXIT_HANG = 86  # of a rank whose watchdog ended it
# a rank's time until its first step: a thousand that import from a cold file system, loading
START_S = 1800.0
# Reasons after which the batch script itself starts the run again; of what was killed Slurm may
# know more (oom).
REQUEUED = tuple(reason for reason in end_reasons.RETRYABLE if reason != "killed")

Record = Dict[str, Any]


class Busy(Exception):
    """Another live attempt holds the run."""


class Done(Busy):
    """There is nothing left to do."""


def begin(run_dir: str, facts: Record, who: Optional[Record] = None) -> int:
    """Make the next attempt's record, exclusively, and return its number.

    An attempt without an end whose holder cannot be seen from this host is over when Slurm started its job again.

    Raises:
        Done: the run has its result.
        Busy: its newest attempt has no end, and its holder lives or cannot be seen from this host.
    """
    if os.path.exists(os.path.join(run_dir, "result.json")):
        raise Done("it is done already")
    folder = os.path.join(run_dir, "attempts")
    for name in ("attempts", "logs", "verdicts", "metrics"):
        os.makedirs(os.path.join(run_dir, name), exist_ok=True)
    newest = newest_attempt(run_dir)
    if newest:
        record = read_attempt(run_dir, newest)
        is_open = record.get("end_unix_s") is None
        alive = is_alive(record.get("holder")) if is_open else False
        # Slurm started its job again
        same_job = facts.get("job_id") and facts["job_id"] == record.get("job_id")
        if alive or (alive is None and not same_job):
            raise Busy("attempt %d is held by %s" % (newest, describe(record.get("holder"))))
        if is_open:
            _close_behind(run_dir, newest, restarted=bool(same_job))
    number = max(newest, int(facts.get("attempts_before", 0))) + 1
    used_up = exhausted_budget(run_dir, facts)
    if used_up:
        raise Busy(used_up)
    record = dict(
        facts, attempt=number, start_unix_s=time.time(), holder=who or holder(), end_unix_s=None
    )
    if facts.get("job_id"):
        record["nodelist"] = os.environ.get("SLURM_JOB_NODELIST", "")
        record["cluster"] = os.environ.get("SLURM_CLUSTER_NAME", "")
    path = os.path.join(folder, "%d.json" % number)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        raise Busy("attempt %d has just been begun by somebody else" % number)
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(record, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:  # no space: an empty record would be held by nobody for ever
        os.unlink(path)
        raise
    _link_log(run_dir, number)
    return number


def write_spec(run_dir: str, spec: str) -> None:
    """Write a run's spec.json, unless it is there: it never changes."""
    path = os.path.join(run_dir, "spec.json")
    if not os.path.exists(path):
        os.makedirs(run_dir, exist_ok=True)
        _write(path, json.loads(spec))


def close(run_dir: str, number: int, error: str, reason: str = "killed") -> None:
    """Write down how an attempt ended that could not do so itself, or did without knowing what is known now.

    Its end is the last sign of it, where nobody has written one.
    """
    record, verdicts = read_attempt(run_dir, number), read_verdicts(run_dir, number)
    reason, error = with_own_word(run_dir, number, reason, error)
    end = record.get("end_unix_s") or last_activity.last_sign(
        run_dir, number, record.get("start_unix_s", 0.0)
    )
    step, blamed = last_step(run_dir, number), end_reasons.suspect_hosts(reason, verdicts)
    _update(run_dir, number, end_unix_s=end, reason=reason, error=error, step=step, blamed=blamed)


def with_own_word(run_dir: str, number: int, reason: str, error: str) -> end_reasons.Ending:
    """A reason that somebody else gives, unless the ranks of the attempt know better."""
    own = end_reasons.of_ranks(read_verdicts(run_dir, number), read_attempt(run_dir, number), {})
    if own and (own[0] in end_reasons.FATAL or reason in end_reasons.PROVISIONAL):
        return own
    return reason, error


def transfer_lease(run_dir: str, number: int, pid: int) -> None:
    """Let another process (the one that really runs the ranks) hold the attempt from now on."""
    _update(run_dir, number, holder=holder(pid))


def decide(run_dir: str, number: int, exit_code: int) -> str:
    """Say why the attempt ended, write it into its record, and return done, requeue or fail.

    The ranks' own verdicts count; an exit code is the largest of all ranks' codes and says little.
    """
    # its run was put aside, and another stands in its place
    if number not in attempt_numbers(run_dir):
        return "fail"
    verdicts, record = read_verdicts(run_dir, number), read_attempt(run_dir, number)
    if os.path.exists(os.path.join(run_dir, "result.json")):
        reason, error = "done", ""
    else:
        known = end_reasons.of_ranks(verdicts, record, os.environ)
        complete = len(verdicts) >= (record.get("world_size") or 1)
        certain = known and (complete or known[0] in end_reasons.FATAL or known[0] == "hang")
        reason, error = (
            known if known and certain else end_reasons.of_exit(verdicts, record, exit_code)
        )
    step, blamed = last_step(run_dir, number), end_reasons.suspect_hosts(reason, verdicts)
    end = {"end_unix_s": time.time(), "reason": reason, "error": error, "exit_code": exit_code}
    _update(run_dir, number, step=step, blamed=blamed, **end)
    if reason == "done":
        return "done"
    # a node thought dead: its job is the successor's now, and not to be requeued
    if newest_attempt(run_dir) != number:
        return "fail"
    return "requeue" if reason in REQUEUED and not exhausted_budget(run_dir, record) else "fail"


def exhausted_budget(run_dir: str, limits: Record) -> str:
    """Which of these budgets the run's attempts have used up, in a sentence; empty when none is."""
    attempts = [
        dict(read_attempt(run_dir, n), step=last_step(run_dir, n)) for n in attempt_numbers(run_dir)
    ]
    return budget_limits.exhausted_budget(attempts, limits, time.time())


def newest_attempt(run_dir: str) -> int:
    """Number of the newest attempt; 0 when there is none."""
    return (attempt_numbers(run_dir) or [0])[-1]


def attempt_numbers(run_dir: str) -> List[int]:
    """Numbers of all attempts, oldest first; those of a run that was started anew go on from the one put aside."""
    try:
        names = os.listdir(os.path.join(run_dir, "attempts"))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(
        int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit()
    )


def read_attempt(run_dir: str, number: int) -> Record:
    """The record of one attempt; an unreadable one counts as not ended."""
    try:
        return dict(
            json.loads(read_regular_text(os.path.join(run_dir, "attempts", "%d.json" % number)))
        )
    except (FileNotFoundError, ValueError, TypeError, RecursionError):
        return {"attempt": number, "end_unix_s": None}


def read_verdicts(run_dir: str, number: int) -> List[Record]:
    """What each rank of the attempt wrote; of one whose interpreter hung, what the net below its watchdog wrote."""
    folder = os.path.join(run_dir, "verdicts")
    verdicts = []
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        if name.startswith("%d-" % number) and name.endswith(".json"):
            try:
                word = json.loads(read_regular_text(os.path.join(folder, name)))
            except (ValueError, RecursionError):
                continue  # killed while it wrote its first word
            if not isinstance(word, dict) or not isinstance(word.get("verdict"), str):
                continue
            log = "logs/%s.log" % name[:-5]
            if word["verdict"] == "entered" and b"\nTimeout (" in b"\n" + last_activity.tail(
                os.path.join(run_dir, log)
            ):
                word.update(
                    verdict="hang",
                    error="its interpreter was stuck; the stacks of its threads are in " + log,
                )
            verdicts.append(word)
    return verdicts


def last_step(run_dir: str, number: int) -> int:
    """The last step that anything tells of an attempt: its record, its ranks, or its metrics."""
    steps = [word.get("step", 0) for word in read_verdicts(run_dir, number)]
    steps += [
        last_activity.step_of_metrics(run_dir, number),
        read_attempt(run_dir, number).get("step", 0),
    ]
    return max([int(step) for step in steps])


def _close_behind(run_dir: str, number: int, restarted: bool) -> None:
    """Close an open attempt before the next one begins."""
    if restarted:
        has_steps = last_step(run_dir, number) > 0
        reason, error = end_reasons.after_restart(read_verdicts(run_dir, number), has_steps)
    else:
        reason, error = "killed", "its launcher died without a word"
    close(run_dir, number, error, reason)


def _link_log(run_dir: str, number: int) -> None:
    """Let `logs/<run id>.log` beside the run folders lead to this attempt's log: a name that stays the same."""
    run_id = os.path.basename(os.path.normpath(run_dir))
    folder = os.path.join(os.path.dirname(os.path.normpath(run_dir)), "logs")
    aside = os.path.join(folder, ".%s.%d" % (run_id, os.getpid()))
    try:
        os.makedirs(folder, exist_ok=True)
        os.symlink(os.path.join("..", run_id, "logs", "%d-0.log" % number), aside)
        os.replace(aside, os.path.join(folder, "%s.log" % run_id))
    except OSError:
        pass  # a file system without links: the run's own logs are where they are


def _update(run_dir: str, number: int, **changes: Any) -> None:
    path = os.path.join(run_dir, "attempts", "%d.json" % number)
    _write(path, dict(read_attempt(run_dir, number), **changes))


def _write(path: str, content: Record) -> None:
    aside = "%s.%s.%d" % (path, socket.gethostname(), os.getpid())
    try:
        with open(aside, "w") as file:
            json.dump(content, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        if os.path.exists(aside):
            os.unlink(aside)
        raise
