"""Print the logs of one run: the output of its ranks, and of its batch script."""

from pathlib import Path

from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.host.json_lines import last_lines
from furnace_hpc.host.lifecycle import newest_attempt
from furnace_hpc.monitor.run_status import batch_log
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.journal import SbatchCall, submissions
from furnace_hpc.runs.records.attempts import read_attempts


def print_logs(folder: GridFolder, name: str, lines: int) -> None:
    """Print the last lines of the newest attempt's logs, and of the newest job's batch log.

    Raises:
        ConfigError: no run, or more than one, has a name that begins with `name`.
    """
    run = _find(folder, name)
    files = _log_files(folder, run)
    if not files:
        print(f"run {run.run_id} has no logs yet, because it has not started")
    shown: set[str] = set()
    for path in files:
        text = _tail(path, lines)
        if text in shown:  # often all ranks print the same
            print(f"==> {path}: same as above")
            continue
        shown.add(text)
        print(f"==> {path}\n{text}")


def _log_files(folder: GridFolder, run: RunFolder) -> list[Path]:
    """List the newest batch log, the output of other nodes, and the newest attempt's logs."""
    files = []
    for logs in _batch_logs(folder, run)[-1:]:
        files += logs + _other_nodes(logs[0])
    of_attempt = run.logs.glob(f"{newest_attempt(str(run.path))}-*.log")
    return files + sorted(of_attempt, key=lambda path: int(path.stem.partition("-")[2]))


def _find(folder: GridFolder, name: str) -> RunFolder:
    """Find a run by its name, or by a beginning that no other name has."""
    rows = [row for submission in submissions(folder) for row in submission.rows]
    known = dict.fromkeys(row.run_id for row in rows)
    if name in known:
        return folder.run(name)
    found = [run_id for run_id in known if run_id.startswith(name)]
    if not found:
        raise ConfigError(f"unknown run {name!r}; {nearest(name, known)}")
    if len(found) > 1:
        examples = ", ".join(found[:5])
        raise ConfigError(
            f"{len(found)} runs begin with {name!r}: give more of the name: {examples}"
        )
    return folder.run(found[0])


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


def _tail(path: Path, lines: int) -> str:
    return last_lines(path, lines).rstrip("\n")
