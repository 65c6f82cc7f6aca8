"""Begin an attempt before its ranks start, and decide what comes next after they ended.

It runs outside containers and with the node's own Python: standard library only, syntax of Python
3.6. The batch script calls it through batch.py.
"""

import json
import os
import signal
import time
from typing import Any, Dict, List, NamedTuple, Optional

from furnace_hpc.host import budget_limits, end_reasons, last_activity
from furnace_hpc.host.durable_files import create_file, replace_file
from furnace_hpc.host.end_reasons import EndReason
from furnace_hpc.host.json_lines import parse_line, parse_lines, read_json
from furnace_hpc.host.lease import describe as describe
from furnace_hpc.host.lease import holder as holder
from furnace_hpc.host.lease import is_alive as is_alive
from furnace_hpc.host.regular_file import read_regular_text

STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGHUP)
EXIT_STOPPED = 85  # a rank's exit code after it saved and stopped
EXIT_HANG = 86  # a rank's exit code after its watchdog killed it
# the longest time from a rank's start to its first step: a thousand ranks may import from a cold
# file system, and load a checkpoint
START_S = 1800.0
LOG_BYTES = 65536  # the end of a rank's log that is searched; C++ stacks are long
# After these reasons the batch script requeues the job itself. For a killed attempt Slurm may have
# a more specific reason (oom).
REQUEUED = tuple(reason for reason in end_reasons.RETRYABLE if reason != "killed")

Record = Dict[str, Any]


class Busy(Exception):
    """The run cannot begin an attempt: another one may still run, or a budget is exhausted."""


class Done(Busy):
    """The run has its result."""


class _AttemptFiles(NamedTuple):
    """The content of one attempt's files, each read once."""

    number: int
    record: Record
    verdicts: List[Record]
    step: int  # last step that any of them names


def begin(run_dir: str, facts: Record, who: Optional[Record] = None) -> int:
    """Create the record of the next attempt, and return its number.

    Args:
        run_dir: the run folder.
        facts: the content of the record that the submission knows.
        who: the holder. None: this process.

    Raises:
        Done: the run has its result.
        Busy: the newest attempt has no end, and its holder lives, or is on another host in another
            job. Or a budget is exhausted.
    """
    if os.path.exists(os.path.join(run_dir, "result.json")):
        _close_finished(run_dir, facts.get("job_id"))
        raise Done("it is done already")
    for name in ("attempts", "logs", "verdicts", "metrics"):
        os.makedirs(os.path.join(run_dir, name), exist_ok=True)
    newest, job_id = newest_attempt(run_dir), facts.get("job_id")
    if newest:
        _close_dead(run_dir, newest, job_id)
    exhausted = exhausted_budget(run_dir, facts)
    if exhausted:
        raise Busy(exhausted)
    number = max(newest, int(facts.get("attempts_before", 0))) + 1
    record = dict(facts, attempt=number, start_unix_s=time.time(), end_unix_s=None)
    record["overrides"] = _overrides(run_dir, facts)
    record["holder"] = who or holder()
    if job_id:
        record["nodelist"] = os.environ.get("SLURM_JOB_NODELIST", "")
        record["cluster"] = os.environ.get("SLURM_CLUSTER_NAME", "")
    try:
        create_file(_record_path(run_dir, number), _as_json(record))
    except FileExistsError:
        raise Busy(f"attempt {number} was just started by another process")
    _link_log(run_dir, number)
    return number


def _overrides(run_dir: str, facts: Record) -> Record:
    """The overrides of the submission, and those that attempts since then have asked for."""
    overrides = dict(facts.get("overrides") or {})
    for number in attempt_numbers(run_dir):
        if number > int(facts.get("known_attempts", 0)):
            overrides.update(read_attempt(run_dir, number).get("next_overrides") or {})
    return overrides


def _close_finished(run_dir: str, job_id: Optional[str]) -> None:
    """Record the end of the attempt that finished the run, if its batch script could not."""
    number = newest_attempt(run_dir)
    if not number:
        return
    attempt = _read_files(run_dir, number)
    if attempt.record.get("end_unix_s") is None and not _may_live(attempt.record, job_id):
        _close(run_dir, attempt, EndReason("done", ""))


def _may_live(record: Record, job_id: Optional[str]) -> bool:
    """Whether the holder of an attempt may be alive: on another host, and in another job."""
    alive = is_alive(record.get("holder"))
    restarted = bool(job_id) and job_id == record.get("job_id")
    return bool(alive) or (alive is None and not restarted)


def _close_dead(run_dir: str, number: int, job_id: Optional[str]) -> None:
    """Record the end of an attempt that has none. Raises Busy if its holder may live."""
    attempt = _read_files(run_dir, number)
    if attempt.record.get("end_unix_s") is not None:
        return
    if _may_live(attempt.record, job_id):
        raise Busy(f"attempt {number} is held by {describe(attempt.record.get('holder'))}")
    if job_id and job_id == attempt.record.get("job_id"):
        end = end_reasons.reason_after_restart(attempt.verdicts, attempt.step > 0)
    else:
        end = EndReason("killed", "its launcher died and reported no end")
    _close(run_dir, attempt, end)


def write_spec(run_dir: str, spec: str) -> None:
    """Write a run's spec.json unless it exists. It never changes."""
    path = os.path.join(run_dir, "spec.json")
    if not os.path.exists(path):
        os.makedirs(run_dir, exist_ok=True)
        replace_file(path, _as_json(json.loads(spec)))


def close(run_dir: str, number: int, error: str, reason: str = "killed") -> None:
    """Record the end of an attempt that did not record it itself, or a more specific reason.

    Without a recorded end, its last write counts as its end.
    """
    _close(run_dir, _read_files(run_dir, number), EndReason(reason, error))


def _close(run_dir: str, attempt: _AttemptFiles, given: EndReason) -> None:
    start = attempt.record.get("start_unix_s", 0.0)
    end = attempt.record.get("end_unix_s")
    end = end or last_activity.last_write(run_dir, attempt.number, start)
    _record_end(run_dir, attempt, _prefer_ranks(attempt, given), end_unix_s=end)


def with_rank_reason(run_dir: str, number: int, reason: str, error: str) -> EndReason:
    """The given reason, or the one that the ranks reported if that is more specific."""
    return _prefer_ranks(_read_files(run_dir, number), EndReason(reason, error))


def _prefer_ranks(attempt: _AttemptFiles, given: EndReason) -> EndReason:
    own = end_reasons.reason_of_ranks(attempt.verdicts, attempt.record, {})
    if own and (own.reason in end_reasons.FATAL or given.reason in end_reasons.PROVISIONAL):
        return own
    return given


def transfer_lease(run_dir: str, number: int, pid: int) -> None:
    """Make another process the holder of the attempt: the one that runs the ranks."""
    record = read_attempt(run_dir, number)
    _write_record(run_dir, number, dict(record, holder=holder(pid)))


def decide(run_dir: str, number: int, exit_code: int) -> str:
    """Record why the attempt ended, and return done, requeue or fail.

    The ranks' verdicts decide. The exit code is the largest code of all ranks, and does not tell
    causes apart.
    """
    # the run was moved aside, and another one has its folder
    if number not in attempt_numbers(run_dir):
        return "fail"
    attempt = _read_files(run_dir, number)
    is_replaced = newest_attempt(run_dir) != number
    # The newer attempt has recorded this end. This node may be back after hours.
    if is_replaced and attempt.record.get("end_unix_s") is not None:
        return "fail"
    if os.path.exists(os.path.join(run_dir, "result.json")):
        end = EndReason("done", "")
    else:
        end = _reason_of_end(attempt, exit_code)
    end = _record_end(run_dir, attempt, end, end_unix_s=time.time(), exit_code=exit_code)
    if end.reason == "done":
        return "done"
    # Slurm considered this node dead and restarted the job, which belongs to the next attempt
    if is_replaced:
        return "fail"
    if end.reason == "canary":  # its job is done. Another one continues the run
        return "done"
    if end.reason not in REQUEUED or exhausted_budget(run_dir, attempt.record):
        return "fail"
    return "requeue"


def _reason_of_end(attempt: _AttemptFiles, exit_code: int) -> EndReason:
    verdicts, record = attempt.verdicts, attempt.record
    known = end_reasons.reason_of_ranks(verdicts, record, os.environ)
    if known:
        is_complete = len(verdicts) >= (record.get("world_size") or 1)
        if is_complete or known.reason in end_reasons.CAUSES + ("hang",):
            return known
    return end_reasons.reason_of_exit(verdicts, record, exit_code)


def exhausted_budget(run_dir: str, limits: Record) -> str:
    """The message about a budget that the run has exhausted. Empty if there is none."""
    attempts = []
    for number in attempt_numbers(run_dir):
        record = read_attempt(run_dir, number)
        # The record of an attempt that has ended has the last step of all its files.
        if record.get("end_unix_s") is None or "step" not in record:
            record["step"] = last_step(run_dir, number)
        attempts.append(dict(record, step=int(record["step"])))
    return budget_limits.exhausted_budget(attempts, limits, time.time())


def newest_attempt(run_dir: str) -> int:
    """Number of the newest attempt. 0 if there is none."""
    return max(attempt_numbers(run_dir), default=0)


def attempt_numbers(run_dir: str) -> List[int]:
    """Numbers of all attempts, oldest first.

    A run that was started again by `--code new` continues the numbers of the run that was moved
    aside.
    """
    try:
        names = os.listdir(os.path.join(run_dir, "attempts"))
    except (FileNotFoundError, NotADirectoryError):
        return []
    stems = [name[:-5] for name in names if name.endswith(".json")]
    return sorted(int(stem) for stem in stems if stem.isdigit())


def read_attempt(run_dir: str, number: int) -> Record:
    """The record of one attempt. An unreadable one counts as not ended."""
    try:
        return dict(read_json(_record_path(run_dir, number)))
    except (FileNotFoundError, ValueError, TypeError):
        return {"attempt": number, "end_unix_s": None}


def read_verdicts(run_dir: str, number: int) -> List[Record]:
    """The last verdict of each of an attempt's ranks, in the order of ranks.

    The log tells more about ranks that reported no end: a stuck interpreter, or an abort in C++.
    """
    folder = os.path.join(run_dir, "verdicts")
    if not os.path.isdir(folder):
        return []
    verdicts = []  # type: List[Record]
    for name in os.listdir(folder):
        stem, ending = os.path.splitext(name)
        # older code wrote a .json file per rank
        if not stem.startswith(f"{number}-") or ending not in (".jsonl", ".json"):
            continue
        of_node = _read_verdicts_of_node(os.path.join(folder, name), stem)
        _add_ends_in_log(of_node, run_dir, f"logs/{stem}.log")
        verdicts += of_node
    return sorted(verdicts, key=lambda verdict: int(verdict["rank"]))


def _read_verdicts_of_node(path: str, stem: str) -> List[Record]:
    """The last verdict of each rank of a node. An incomplete line counts as none."""
    try:
        text = read_regular_text(path, errors="replace")
    except ValueError:  # not a regular file
        return []
    whole = parse_line(text)  # older code, with the number of a rank in the name
    lines = [whole] if whole else parse_lines(text.splitlines())
    of_rank = {}  # type: Dict[int, Record]
    for verdict in lines:
        if isinstance(verdict.get("verdict"), str):
            rank = verdict.setdefault("rank", stem.partition("-")[2])
            if str(rank).isdecimal():
                of_rank[int(rank)] = verdict
    return [of_rank[rank] for rank in sorted(of_rank)]


def _add_ends_in_log(verdicts: List[Record], run_dir: str, log: str) -> None:
    """Complete the verdicts of a node's ranks that reported no end, as far as the log tells."""
    silent = [verdict for verdict in verdicts if verdict["verdict"] == "entered"]
    if not silent:
        return
    path = os.path.join(run_dir, log)
    tail = last_activity.tail(path, LOG_BYTES * len(verdicts))
    # faulthandler dumps stacks also if Python's own threads are blocked. It names no rank.
    num_stuck = (b"\n" + tail).count(b"\nTimeout (")
    for verdict in silent[:num_stuck]:
        error = f"its interpreter was stuck; the stacks of its threads are in {log}"
        verdict.update({"verdict": "hang", "error": error})
    silent = silent[num_stuck:]
    text = tail.decode("utf-8", "replace")
    end = end_reasons.verdict_of_log(text)
    if not silent or not end:
        return
    try:
        unix_s = os.path.getmtime(path)
    except OSError:
        return
    named = end_reasons.aborted_ranks(text)
    for verdict in [v for v in silent if int(v["rank"]) in named] or silent[:1]:
        verdict.update(
            {"verdict": end.reason, "error": f"{end.error}; see {log}", "unix_s": unix_s}
        )


def last_step(run_dir: str, number: int) -> int:
    """The last step of an attempt in its record, its verdicts, or its metrics."""
    return _read_files(run_dir, number).step


def _read_files(run_dir: str, number: int) -> _AttemptFiles:
    record, verdicts = read_attempt(run_dir, number), read_verdicts(run_dir, number)
    steps = [int(source.get("step", 0)) for source in [record] + verdicts]
    steps.append(last_activity.last_step_in_metrics(run_dir, number))
    return _AttemptFiles(number, record, verdicts, max(steps))


def _record_end(run_dir: str, attempt: _AttemptFiles, end: EndReason, **more: Any) -> EndReason:
    """Write the end into the attempt's record. Return it as it was recorded."""
    if end.reason == "oom":
        earlier = [number for number in attempt_numbers(run_dir) if number < attempt.number]
        before = [read_attempt(run_dir, number) for number in earlier]
        size = end_reasons.halved_micro_batch(attempt.verdicts, before)
        if size is not None:
            error = f"{end.error}; retried with micro_batch_size {size}"
            end = EndReason("oom_halved", error)
            more["next_overrides"] = {"micro_batch_size": size}
    record = dict(attempt.record, reason=end.reason, error=end.error, step=attempt.step, **more)
    record["blamed"] = end_reasons.suspect_hosts(end.reason, attempt.verdicts)
    _write_record(run_dir, attempt.number, record)
    return end


def _link_log(run_dir: str, number: int) -> None:
    """Link the grid's `logs/<run id>.log` to this attempt's log."""
    grid_dir, run_id = os.path.split(os.path.normpath(run_dir))
    folder = os.path.join(grid_dir, "logs")
    temporary = os.path.join(folder, f".{run_id}.{os.getpid()}")
    try:
        os.makedirs(folder, exist_ok=True)
        os.symlink(os.path.join("..", run_id, "logs", f"{number}-0.log"), temporary)
        os.replace(temporary, os.path.join(folder, f"{run_id}.log"))
    except OSError:
        pass  # a file system without links: the logs in the run folder are enough


def _record_path(run_dir: str, number: int) -> str:
    return os.path.join(run_dir, "attempts", f"{number}.json")


def _write_record(run_dir: str, number: int, record: Record) -> None:
    replace_file(_record_path(run_dir, number), _as_json(record))


def _as_json(content: Record) -> bytes:
    return json.dumps(content, indent=2).encode("utf-8")
