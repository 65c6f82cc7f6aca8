"""What every submission writes before anything runs: its rows, the runs' specs, the lock that makes it the only one."""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from furnace_hpc.cluster.plan import Action, Plan, PlannedRun
from furnace_hpc.runs import host
from furnace_hpc.runs.folder import GridFolder, write_atomically
from furnace_hpc.runs.state import read_status
from furnace_hpc.spec.errors import ConfigError
from furnace_hpc.spec.grid import Grid


@contextmanager
def only_submitter(folder: GridFolder) -> Iterator[None]:
    """Hold the grid's lock.

    Raises:
        ConfigError: another live submission holds it.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    mine = json.dumps(host.holder())
    while not _taken(folder.lock, mine):
        who = _read_holder(folder.lock)
        if host.is_alive(who) is not False:
            raise ConfigError(
                f"grid {folder.path.name!r} is being submitted or run by {host.describe(who)}: wait for it to end, "
                f"or remove {folder.lock} if that process is gone"
            )
        _remove_stale(folder.lock)
    try:
        yield
    finally:
        folder.lock.unlink(missing_ok=True)


def write_submission(plan: Plan) -> Path:
    """Write grid.yaml (without settings), each new run's spec.json, and rows.jsonl; return the submission's folder.

    Raises:
        ConfigError: a run has changed since the plan was made, which was before the lock was ours.
    """
    for run in plan.to_do:
        if read_status(run.folder) != run.status:
            raise ConfigError(f"run {run.spec.run_id} has changed since the plan was made: give the command again")
    write_atomically(plan.folder.grid, _yaml(plan.grid.model_copy(update={"settings": {}})))
    for run in plan.to_do:
        if run.action is Action.RESTART:
            _put_aside(plan.folder, run)
        if not run.folder.spec.exists():
            write_atomically(run.folder.spec, run.spec.model_dump_json(indent=2) + "\n")
    submission = plan.folder.new_submission()
    write_atomically(submission / "grid.yaml", _yaml(plan.grid))
    rows = [_row(index, run) for index, run in enumerate(plan.runs)]
    write_atomically(submission / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return submission


def journal(submission: Path, event: str, **facts: Any) -> None:
    """Append one durable line to the submission's journal."""
    with (submission / "journal.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"unix_s": time.time(), "event": event, **facts}) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _yaml(grid: Grid) -> str:
    return yaml.safe_dump(grid.model_dump(mode="json"), sort_keys=False)


def _row(index: int, run: PlannedRun) -> dict[str, Any]:
    return {
        "row": index,
        "run_id": run.spec.run_id,
        "run_dir": str(run.folder.path.resolve()),
        "to_do": run.to_do,
        "facts": run.facts,
    }


def _put_aside(folder: GridFolder, run: PlannedRun) -> None:
    """Move what older code has made out of the way; nothing is deleted."""
    folder.replaced.mkdir(exist_ok=True)
    number = 1
    while (target := folder.replaced / f"{run.spec.run_id}.{number}").exists():
        number += 1
    run.folder.path.rename(target)


def _taken(lock: Path, content: str) -> bool:
    try:
        file = lock.open("x")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(content)
    except BaseException:  # no space: an empty lock would be held by nobody for ever
        lock.unlink(missing_ok=True)
        raise
    return True


def _remove_stale(lock: Path) -> None:
    """Of several that found the lock stale, one removes it, and none removes its successor's."""
    with suppress(FileNotFoundError), lock.open("r+") as file:
        with suppress(OSError):  # a file system without flock; a stale lock is of this host, so flock is enough
            fcntl.flock(file, fcntl.LOCK_EX)
        same = os.path.samestat(os.fstat(file.fileno()), lock.stat())
        if same and host.is_alive(_read_holder(lock)) is False:
            lock.unlink()


def _read_holder(lock: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(lock.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return content if isinstance(content, dict) else None
