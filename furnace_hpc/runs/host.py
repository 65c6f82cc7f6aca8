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

STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGHUP)
EXIT_STOPPED = 85  # a rank's exit code after an orderly stop with a checkpoint
MAX_IDLE_ATTEMPTS = 3  # attempts in a row without a new step, after which a run is not requeued
REQUEUED = ("stopped", "infrastructure")  # reasons after which the same run is started again

Record = Dict[str, Any]


class Busy(Exception):
    """Another live attempt holds the run."""


class Done(Busy):
    """There is nothing left to do."""


def holder(pid: Optional[int] = None) -> Record:
    """Who holds a lease: enough to tell later, on this host, whether that very process still lives."""
    pid = pid or os.getpid()
    return {"host": socket.gethostname(), "boot_id": _boot_id(), "pid": pid, "pid_start": _pid_start(pid)}


def is_alive(who: Optional[Record]) -> Optional[bool]:
    """True or False for a process of this boot of this host; None when it cannot be known from here."""
    if not who or who.get("host") != socket.gethostname():
        return None
    if who.get("boot_id") != _boot_id():
        return False
    start = _pid_start(who["pid"])
    return start is not None and start == who["pid_start"]


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
        same_job = facts.get("job_id") and facts["job_id"] == record.get("job_id")  # Slurm started its job again
        if alive or (alive is None and not same_job):
            raise Busy("attempt %d is held by %s" % (newest, describe(record.get("holder"))))
        if is_open:
            again = "its job was started again by Slurm: requeued, preempted, or a node failed"
            close(run_dir, newest, again if same_job else "its launcher died without a word")
    number = newest + 1
    if facts.get("max_attempts") and number > facts["max_attempts"]:
        raise Busy("its %d attempts (resources.max_attempts) are used up" % facts["max_attempts"])
    record = dict(facts, attempt=number, start_unix_s=time.time(), holder=who or holder(), end_unix_s=None)
    path = os.path.join(folder, "%d.json" % number)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
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
    """Write down how an attempt ended that could not do so itself."""
    _update(run_dir, number, end_unix_s=time.time(), reason=reason, error=error)


def hand_over(run_dir: str, number: int, pid: int) -> None:
    """Let another process (the one that really runs the ranks) hold the attempt from now on."""
    _update(run_dir, number, holder=holder(pid))


def decide(run_dir: str, number: int, exit_code: int) -> str:
    """Say why the attempt ended, write it into its record, and return done, requeue or fail.

    The ranks' own verdicts count; an exit code is the largest of all ranks' codes and says little.
    """
    verdicts = read_verdicts(run_dir, number)
    error = ""
    crashes = sorted((v for v in verdicts if v["verdict"] == "crash"), key=lambda v: v["unix_s"])
    if os.path.exists(os.path.join(run_dir, "result.json")):
        reason = "done"
    elif crashes:
        reason, error = "crash", crashes[0].get("error", "")
    elif not verdicts:
        reason, error = "infrastructure", "no rank started (exit code %s)" % exit_code
    elif len(verdicts) < (read_attempt(run_dir, number).get("world_size") or 1):
        reason, error = "killed", "%d ranks never started: see the batch log" % (
            read_attempt(run_dir, number)["world_size"] - len(verdicts)
        )
    elif all(v["verdict"] == "stopped" for v in verdicts):
        reason, error = "stopped", verdicts[0].get("error", "")
    elif all(v["verdict"] == "done" for v in verdicts):
        reason, error = "killed", "the ranks ended without a result.json (exit code %s)" % exit_code
    else:
        reason, error = "killed", "a rank ended without a word (exit code %s)" % exit_code
    step = max([v.get("step", 0) for v in verdicts] or [0])
    _update(run_dir, number, end_unix_s=time.time(), reason=reason, error=error, exit_code=exit_code, step=step)
    if reason == "done":
        return "done"
    limit = read_attempt(run_dir, number).get("max_attempts")
    if newest_attempt(run_dir) != number:  # a node thought dead: its job is the successor's now, and not to be requeued
        return "fail"
    if reason not in REQUEUED or _stands_still(run_dir, number) or (limit and number >= limit):
        return "fail"
    return "requeue"


def _stands_still(run_dir: str, number: int) -> bool:
    """Whether the last attempts brought no new step: requeueing them for ever would be a storm."""
    steps = [read_attempt(run_dir, n).get("step", 0) for n in range(1, number + 1)]
    return len(steps) >= MAX_IDLE_ATTEMPTS and max(steps[-MAX_IDLE_ATTEMPTS:]) <= max(steps[:-MAX_IDLE_ATTEMPTS] or [0])


def newest_attempt(run_dir: str) -> int:
    """Number of the newest attempt; 0 when there is none."""
    try:
        names = os.listdir(os.path.join(run_dir, "attempts"))
    except (FileNotFoundError, NotADirectoryError):
        return 0
    return max([int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit()] or [0])


def read_attempt(run_dir: str, number: int) -> Record:
    """The record of one attempt; an unreadable one counts as not ended."""
    try:
        with open(os.path.join(run_dir, "attempts", "%d.json" % number)) as file:
            return dict(json.load(file))
    except (FileNotFoundError, ValueError):
        return {"attempt": number, "end_unix_s": None}


def read_verdicts(run_dir: str, number: int) -> List[Record]:
    """What each rank of the attempt wrote."""
    folder = os.path.join(run_dir, "verdicts")
    verdicts = []
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        if name.startswith("%d-" % number) and name.endswith(".json"):
            try:
                with open(os.path.join(folder, name)) as file:
                    verdicts.append(json.load(file))
            except ValueError:
                continue  # killed while it wrote its first word
    return verdicts


def describe(who: Optional[Record]) -> str:
    """A holder in words."""
    return "process %s on %s" % (who.get("pid"), who.get("host")) if who else "an unknown process"


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


def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def _pid_start(pid: int) -> Optional[int]:
    """Start time of a process in clock ticks since boot; None when it is gone (a zombie counts as gone)."""
    try:
        with open("/proc/%d/stat" % pid) as file:
            fields = file.read().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])
