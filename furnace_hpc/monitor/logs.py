"""The logs of one run: what its ranks printed, and what the batch script printed before there were any."""

from collections import deque
from pathlib import Path

from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.host.lifecycle import newest_attempt
from furnace_hpc.host.regular_file import open_regular
from furnace_hpc.monitor.run_status import batch_log
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.journal import submissions


def print_logs(folder: GridFolder, name: str, lines: int) -> None:
    """Print the ends of the newest attempt's logs, and of the batch log of the run's newest job.

    Raises:
        ConfigError: no run, or several, have a name that begins so.
    """
    run = _find(folder, name)
    attempt = newest_attempt(str(run.path))
    files = _batch_logs(folder, run)[-1:]
    files += [path for log in files for path in _other_ranks(log)]
    files += sorted(
        run.logs.glob(f"{attempt}-*.log"), key=lambda path: int(path.stem.partition("-")[2])
    )
    shown: set[str] = set()
    for path in files:
        text = _tail(path, lines)
        if text in shown:  # ranks that have nothing of their own to say
            print(f"==> {path}: as above")
            continue
        shown.add(text)
        print(f"==> {path}\n{text}")
    if not files:
        print(f"run {run.run_id} has no logs yet: it never began")


def _find(folder: GridFolder, name: str) -> RunFolder:
    known = dict.fromkeys(
        row["run_id"] for submission in submissions(folder) for row in submission.rows
    )
    found = [run_id for run_id in known if run_id.startswith(name)]
    if name in known:
        found = [name]
    if not found:
        raise ConfigError(f"unknown run {name!r}; {nearest(name, known)}")
    if len(found) > 1:
        raise ConfigError(
            f"{len(found)} runs begin with {name!r}: give more of the name: {', '.join(found[:5])}"
        )
    return folder.run(found[0])


def _batch_logs(folder: GridFolder, run: RunFolder) -> list[Path]:
    """Logs of all array elements that were submitted for the run, oldest first."""
    paths = []
    for submission in submissions(folder):
        for sent in submission.sent():
            if sent.outcome == "submitted" and sent.kind == "array":
                ids = [
                    job
                    for row, job in sent.elements.items()
                    if submission.rows[row]["run_id"] == run.run_id
                ]
                paths += [batch_log(submission.path, job_id) for job_id in ids]
    return [path for path in paths if path.exists()]


def _other_ranks(batch_log: Path) -> list[Path]:
    """What other ranks printed before they wrote to logs of their own: a missing library, say."""
    found = batch_log.parent.glob(batch_log.name.replace("_0_log.out", "_[1-9]*_log.out"))
    return sorted(path for path in found if path.stat().st_size)


def _tail(path: Path, lines: int) -> str:
    with open_regular(path, "r", encoding="utf-8", errors="replace") as file:
        return "".join(deque(file, maxlen=lines)).rstrip("\n")
