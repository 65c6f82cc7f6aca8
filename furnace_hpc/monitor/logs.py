"""Print the logs of one run: the output of its ranks, and of its batch script."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.host.json_lines import last_lines
from furnace_hpc.host.lifecycle import attempt_numbers, newest_attempt
from furnace_hpc.monitor.run_status import batch_log
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.journal import SbatchCall, submissions
from furnace_hpc.runs.records.attempts import Attempt, read_attempt, read_attempts
from furnace_hpc.runs.submitted import find_run


class Wanted(NamedTuple):
    """Which logs of a run are wanted."""

    attempt: int = 0  # 0: the newest
    rank: int | None = None  # None: all ranks, and the output of the batch script


NEWEST = Wanted()


def print_logs(folder: GridFolder, name: str, lines: int) -> None:
    """Print the last lines of the newest attempt's logs, and of the newest job's batch log.

    Raises:
        ConfigError: no run, or more than one, has a name that begins with `name`.
    """
    print_logs_of(folder, find_run(folder, name), lines)


def print_logs_of(folder: GridFolder, run: RunFolder, lines: int, wanted: Wanted = NEWEST) -> None:
    """Print the last lines of the wanted logs of a run.

    Raises:
        ConfigError: the run has no such attempt or rank.
    """
    files = log_files(folder, run, wanted)
    if not files:
        print(f"run {run.run_id} has no logs yet, because it has not started")
    shown: set[str] = set()
    for path in files:
        text = _tail(path, lines, line_filter(run, wanted))
        if text in shown:  # often all ranks print the same
            print(f"==> {path}: same as above")
            continue
        shown.add(text)
        print(f"==> {path}\n{text}")


def log_files(folder: GridFolder, run: RunFolder, wanted: Wanted = NEWEST) -> list[Path]:
    """List the wanted logs of a run that exist.

    These are the batch log, the output of other nodes, and the logs of one attempt. A rank is in
    the log of its node alone.

    Raises:
        ConfigError: the run has no such attempt or rank.
    """
    number = _attempt_number(run, wanted.attempt)
    if wanted.rank is not None:
        if not number:
            return []
        node, _ = _place_of(read_attempt(run, number), wanted.rank)
        return [path for path in [run.log(number, node)] if path.exists()]
    files = []
    for logs in _batch_logs_of(folder, run, wanted.attempt)[-1:]:
        files += logs + _other_nodes(logs[0])
    of_attempt = run.logs.glob(f"{number}-*.log")
    return files + sorted(of_attempt, key=lambda path: int(path.stem.partition("-")[2]))


def line_filter(run: RunFolder, wanted: Wanted) -> Callable[[str], bool]:
    """Return the test of lines that the wanted rank has written. True for all without a rank."""
    number = _attempt_number(run, wanted.attempt)
    if wanted.rank is None or not number:
        return lambda line: True
    _, is_first = _place_of(read_attempt(run, number), wanted.rank)
    if is_first:  # of its node: its lines have no prefix, and libraries write none
        return lambda line: not line.startswith("[rank ")
    return lambda line: line.startswith(f"[rank {wanted.rank}] ")


def _attempt_number(run: RunFolder, wanted: int) -> int:
    """Return the number of the wanted attempt. 0 if the run has none yet."""
    if not wanted:
        return newest_attempt(str(run.path))
    known = attempt_numbers(str(run.path))
    if wanted not in known:
        found = f"It has {', '.join(map(str, known))}" if known else "It has none yet"
        raise ConfigError(f"run {run.run_id} has no attempt {wanted}. {found}")
    return wanted


def _place_of(attempt: Attempt, rank: int) -> tuple[int, bool]:
    """Return the node of a rank, and whether the rank is the first one of that node."""
    size = attempt.world_size or 1
    if not 0 <= rank < size:
        raise ConfigError(
            f"attempt {attempt.attempt} has no rank {rank}. Its ranks are 0 to {size - 1}"
        )
    per_node = max(1, size // (attempt.nodes or 1))
    return rank // per_node, rank % per_node == 0


def _batch_logs_of(folder: GridFolder, run: RunFolder, attempt: int) -> list[list[Path]]:
    """Logs of all array elements of the run, or of the job of one attempt."""
    found = _batch_logs(folder, run)
    if not attempt:
        return found
    job_id = read_attempt(run, attempt).job_id
    return [logs for logs in found if logs[0].name == batch_log(Path(), job_id or "").name]


def _batch_logs(folder: GridFolder, run: RunFolder) -> list[list[Path]]:
    """Logs of all array elements that were submitted for the run, oldest first.

    If it shares a node, the output of its own srun follows the log of the job.
    """
    found = []
    for submission in submissions(folder):
        for call in submission.sbatch_calls():
            if call.outcome != "submitted" or call.kind != "array":
                continue
            for row, job_id in call.elements.items():
                if submission.rows[row].run_id == run.run_id:
                    job_id = _started_by(run, job_id, call)
                    of_srun = submission.path.glob(f"{job_id}-{row}_*_log.out")
                    outputs = sorted(path for path in of_srun if path.stat().st_size)
                    found.append([batch_log(submission.path, job_id), *outputs])
    return [logs for logs in found if logs[0].exists()]


def _started_by(run: RunFolder, job_id: str, call: SbatchCall) -> str:
    """The job that started the run. On a shared node it may be another one of the array."""
    if call.runs_per_node > 1:
        for attempt in reversed(read_attempts(run)):
            if (attempt.job_id or "").partition("_")[0] == call.job_id:
                return str(attempt.job_id)
    return job_id


def _other_nodes(batch_log: Path) -> list[Path]:
    """Output of other nodes before ranks opened their own logs, such as a missing library."""
    found = batch_log.parent.glob(batch_log.name.replace("_0_log.out", "_[1-9]*_log.out"))
    return sorted(path for path in found if path.stat().st_size)


def _tail(path: Path, lines: int, is_wanted: Callable[[str], bool]) -> str:
    return last_lines(path, lines, is_wanted).rstrip("\n")
