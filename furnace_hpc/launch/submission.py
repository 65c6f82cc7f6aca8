"""What every submission writes before anything runs: the code, its rows, the runs' specs; and the lock on a grid."""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from furnace_hpc.config.errors import ConfigError, UnavailableError
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.parsing import strict_yaml
from furnace_hpc.host import lifecycle
from furnace_hpc.host.regular_file import read_regular, read_regular_text
from furnace_hpc.launch.plan import Action, Plan, PlannedRun
from furnace_hpc.runs.adopted import link
from furnace_hpc.runs.folder import GridFolder, write_atomically
from furnace_hpc.runs.journal import Submission, submissions
from furnace_hpc.runs.snapshot import take_snapshot
from furnace_hpc.runs.state import close_open_attempt, read_status
from furnace_hpc.runs.trust import check_place, check_trusted
from furnace_hpc.slurm.client import find_job, queue
from furnace_hpc.slurm.job_states import Phase, meaning

IN_FLIGHT_S = 3  # grace period for a request that left before its sbatch was killed


@contextmanager
def grid_lock(
    folder: GridFolder, what: str = "submission", patience_s: float = 0
) -> Iterator[None]:
    """Hold the grid's lock. A folder that was made for it, and got nothing else, is gone afterwards.

    Args:
        folder: the grid.
        what: `submission`, or `queue` for one that runs on this machine.
        patience_s: how long to wait for another holder.

    Raises:
        ConfigError: another live submission holds it.
    """
    deadline_s = time.monotonic() + patience_s
    made = [path for path in (folder.path, folder.path.parent) if not path.exists()]
    folder.path.mkdir(parents=True, exist_ok=True)
    mine = json.dumps(lifecycle.holder() | {"job_id": _own_job(), "what": what})
    while not _taken(folder.lock, mine):
        who = read_holder(folder)
        if _is_alive(who) is not False:
            if time.monotonic() < deadline_s:
                time.sleep(1)
                continue
            raise ConfigError(
                f"grid {folder.path.name!r} is being submitted or run by {lifecycle.describe(who)}: wait for it to "
                f"end, or remove {folder.lock} if that process is gone"
            )
        _remove_stale(folder)
    try:
        yield
    finally:
        folder.lock.unlink(missing_ok=True)
        with suppress(OSError):  # not empty
            for path in made:
                path.rmdir()


def read_holder(folder: GridFolder) -> dict[str, Any] | None:
    """Who holds the grid's lock; None: nobody, or it cannot be read."""
    try:
        content = json.loads(read_regular(folder.lock))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def recover_pending_submissions(folder: GridFolder) -> None:
    """Ask Slurm for every job of which the journals do not know whether it was submitted, and print what was found.

    The grid's lock is held by the caller: an intent without an outcome is nobody's work in progress.

    Raises:
        UnavailableError: Slurm does not answer, so that nobody knows.
    """
    for submission in submissions(folder):
        for sent in submission.sent():
            if sent.outcome != "doubtful":
                continue
            time.sleep(max(0.0, sent.unix_s + IN_FLIGHT_S - time.time()))
            try:
                job_id = find_job(sent.name)
            except UnavailableError as error:
                raise UnavailableError(
                    f"a submission of grid {folder.path.name!r} was cut off before Slurm's answer, and whether its job "
                    f"{sent.name} exists cannot be asked now: {error}"
                ) from None
            if job_id:
                submission.note("submitted", name=sent.name, job_id=job_id, found=True)
                print(
                    f"found job {job_id}, whose submission was cut off: it is not submitted again",
                    flush=True,
                )
            else:
                submission.note("absent", name=sent.name)
                print(
                    f"job {sent.name}, whose submission was cut off, never reached Slurm",
                    flush=True,
                )


def write_submission(plan: Plan) -> Submission:
    """Write all that a submission needs, with the grid's lock held.

    That is: the code snapshot, grid.yaml (without settings); and in the submission's own folder grid.yaml (with
    settings), profile.json, specs.jsonl and rows.jsonl. A run's own folder is made when it begins: a thousand of them
    would take longer than everything else.

    Raises:
        ConfigError: a run, or the code, has changed since the plan was made; or others can change the code.
    """
    check_place(plan.folder.submissions, plan.folder.path.parent)
    for run in plan.to_do:
        # it leads to no finished run of this config, or is not wanted any more
        if run.folder.path.is_symlink():
            run.folder.path.unlink()
        if read_status(run.folder) != run.files:
            raise ConfigError(
                f"run {run.folder.run_id} has changed since the plan was made: give the command again"
            )
    if take_snapshot(plan.folder).name != plan.snapshot:
        raise ConfigError("the code was changed since the plan was made: give the command again")
    for snapshot in {run.facts["snapshot"] for run in plan.to_do} - {plan.snapshot}:
        # of runs that began with older code
        check_trusted(plan.folder.code / snapshot, plan.folder.path.parent)
    for run in plan.runs:
        if run.adopts:
            link(run.folder, run.adopts)
    write_atomically(plan.folder.grid, _as_submitted(plan))
    for run in plan.to_do:
        close_open_attempt(run.folder, run.status)
        if run.action is Action.RESTART:
            _put_aside(plan.folder, run)
    path = plan.folder.new_submission().resolve()
    write_atomically(path / "grid.yaml", _yaml(plan.grid))
    write_atomically(path / "code", f"{plan.folder.code.resolve() / plan.snapshot}\n")
    write_atomically(path / "profile.json", plan.profile.model_dump_json(indent=2) + "\n")
    specs = [run.spec.model_dump_json() + "\n" for run in plan.runs]
    write_atomically(path / "specs.jsonl", "".join(specs))
    write_atomically(
        path / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in _rows(plan, specs))
    )
    return Submission(path)


def record(plan: Plan) -> None:
    """Write a submission that starts nothing, where it takes runs of other names, or its grid file has changed.

    Other commands read the grid as it was last submitted.
    """
    before = read_regular_text(plan.folder.grid) if plan.folder.grid.exists() else ""
    if any(run.adopts for run in plan.runs) or before != _as_submitted(plan):
        write_submission(plan)


def write_specs(plan: Plan) -> None:
    """Make the folders of all runs that are to be done, for somebody who starts them by hand."""
    for run in plan.to_do:
        lifecycle.write_spec(str(run.folder.path), run.spec.model_dump_json())


def withdraw(plan: Plan, submission: Submission) -> None:
    """Take away what was written for a submission of which Slurm took nothing."""
    shutil.rmtree(submission.path)
    for run in plan.to_do:
        if run.action is Action.RESTART and not run.folder.path.exists():
            _last_put_aside(plan.folder, run).rename(run.folder.path)
    with suppress(OSError):  # there are others
        plan.folder.submissions.rmdir()


def _as_submitted(plan: Plan) -> str:
    return _yaml(plan.grid.model_copy(update={"settings": {}}))


def _yaml(grid: Grid) -> str:
    return strict_yaml.dump(grid.model_dump(mode="json"))


def _rows(plan: Plan, specs: list[str]) -> Iterator[dict[str, Any]]:
    grid, offset = plan.folder.path.resolve(), 0
    for index, (run, spec) in enumerate(zip(plan.runs, specs, strict=True)):
        length = len(spec.encode())
        yield {
            "row": index,
            "run_id": run.folder.run_id,
            "run_dir": str(grid / run.folder.run_id),
            "to_do": run.to_do,
            "shape": run.shape,
            "steps": run.spec.config.steps,
            "data": [run.spec.config.data.name, run.spec.data_fingerprint],
            "spec_at": [offset, length],  # of specs.jsonl, bytes
            "code": str(grid / "code" / run.facts["snapshot"]),
            "facts": run.facts,
        }
        offset += length


def _put_aside(folder: GridFolder, run: PlannedRun) -> None:
    """Move what older code has made out of the way; nothing is deleted."""
    folder.replaced.mkdir(exist_ok=True)
    number = 1
    while (target := folder.replaced / f"{run.folder.run_id}.{number}").exists():
        number += 1
    run.folder.path.rename(target)


def _last_put_aside(folder: GridFolder, run: PlannedRun) -> Path:
    paths = folder.replaced.glob(f"{run.folder.run_id}.*")
    return max(paths, key=lambda path: int(path.suffix[1:]))


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


def _remove_stale(folder: GridFolder) -> None:
    """Of several that found the lock stale, one removes it, and none removes its successor's."""
    lock = folder.lock
    with suppress(FileNotFoundError), lock.open("r+") as file:
        # a file system without flock; a stale lock is of this host, so flock is enough
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        same = os.path.samestat(os.fstat(file.fileno()), lock.stat())
        if same and _is_alive(read_holder(folder)) is False:
            lock.unlink()


def _own_job() -> str | None:
    """Id of the job that this process is part of, as squeue lists it."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return (
        f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"
        if array
        else os.environ.get("SLURM_JOB_ID")
    )


def _is_alive(who: dict[str, Any] | None) -> bool | None:
    """Of a process on another host Slurm knows, where it was part of a job, whether that job has ended."""
    alive = lifecycle.is_alive(who)
    if alive is None and who and who.get("job_id"):
        try:
            live = [job.job_id for job in queue() if meaning(job.word).phase is not Phase.ENDED]
        except UnavailableError:
            return None
        return True if who["job_id"] in live else None if "" in live else False
    return alive
