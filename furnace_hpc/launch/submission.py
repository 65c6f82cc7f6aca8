"""Lock a grid, recover submissions that were cut off, and write what a submission needs."""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from furnace_hpc.config.errors import ConfigError, UnavailableError
from furnace_hpc.config.grids.expansion import expand_rows
from furnace_hpc.config.grids.grid import Grid, read_grid
from furnace_hpc.config.parsing import strict_yaml
from furnace_hpc.config.parsing.text_safety import printable
from furnace_hpc.host import lifecycle
from furnace_hpc.host.json_lines import read_json
from furnace_hpc.host.regular_file import read_regular_text
from furnace_hpc.launch.grids.messages import show_message
from furnace_hpc.launch.planning.plan import Action, Plan, PlannedRun, Scope
from furnace_hpc.monitor.forecast.recorded import FORECAST, as_json
from furnace_hpc.monitor.local_queue import read_holder
from furnace_hpc.runs.adopted import link
from furnace_hpc.runs.folder import GridFolder, write_atomically, write_json
from furnace_hpc.runs.journal import SCOPE, SbatchCall, Submission, submissions
from furnace_hpc.runs.own_code import own_code_to_copy
from furnace_hpc.runs.records import declaration
from furnace_hpc.runs.snapshot import CodeCopy, copy_code
from furnace_hpc.runs.state import RunState, close_open_attempt, read_status
from furnace_hpc.runs.submitted import SubmissionRow
from furnace_hpc.runs.trust import check_place, check_trusted
from furnace_hpc.slurm.client import find_job, queue
from furnace_hpc.slurm.job_states import Phase, meaning

IN_FLIGHT_S = 3  # grace period for a request that left before its sbatch was killed


@contextmanager
def grid_lock(
    folder: GridFolder, what: str = "submission", patience_s: float = 0
) -> Iterator[None]:
    """Hold the grid's lock. A folder that was made only for the lock is removed afterwards.

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
    content = json.dumps(lifecycle.holder() | {"job_id": _own_job(), "what": what})
    while not _acquire(folder.lock, content):
        holder = read_holder(folder)
        if _is_alive(holder) is False:
            _remove_stale(folder)
        elif time.monotonic() < deadline_s:
            time.sleep(1)
        else:
            raise ConfigError(
                f"grid {folder.path.name!r} is being submitted or run by "
                f"{lifecycle.describe(holder)}: wait for it to end, or remove {folder.lock} if "
                f"that process is gone"
            )
    try:
        yield
    finally:
        folder.lock.unlink(missing_ok=True)
        with suppress(OSError):  # not empty
            for path in made:
                path.rmdir()


def recover_pending_submissions(folder: GridFolder) -> None:
    """Look up the jobs of submissions that were cut off before Slurm's answer, and print them.

    The caller holds the grid's lock. So no other process works on an intent without an outcome.

    Raises:
        UnavailableError: Slurm does not answer.
    """
    for submission in submissions(folder):
        for call in submission.sbatch_calls():
            if call.outcome == "doubtful":
                _recover(submission, call, folder.path.name)


def _recover(submission: Submission, call: SbatchCall, grid: str) -> None:
    time.sleep(max(0.0, call.unix_s + IN_FLIGHT_S - time.time()))
    try:
        job_id = find_job(call.name)
    except UnavailableError as error:
        raise UnavailableError(
            f"a submission of grid {grid!r} was cut off before Slurm's answer, and it cannot be "
            f"checked now whether its job {call.name} exists: {error}"
        ) from None
    if job_id:
        submission.note("submitted", name=call.name, job_id=job_id, found=True)
        found = f"found job {job_id} of a submission that was cut off: it is not submitted again"
    else:
        submission.note("absent", name=call.name)
        found = f"job {call.name} of a submission that was cut off never reached Slurm"
    show_message(found)


@dataclass(frozen=True)
class Draft:
    """The content of a submission. Only the code is on the disk, under a temporary name."""

    code: CodeCopy
    grid: str  # grid.yaml of the grid, without settings
    own_grid: str  # that of the submission, with settings
    specs: str
    rows: str


def draft(plan: Plan) -> Draft:
    """Make the content of a submission. `write_submission` or `Draft.code.discard` must follow.

    Raises:
        ConfigError: others can change the code, or it is too large.
    """
    check_place(plan.folder.submissions, plan.folder.path.parent)
    code = copy_code(plan.folder, own_code_to_copy(plan.grid))
    try:
        text = _without_settings(plan)
        own_text = _yaml(plan.grid) if plan.grid.settings else text
        specs = [run.spec.model_dump_json() + "\n" for run in plan.runs]
        rows = "".join(row.line() for row in _rows(plan, specs))
    except BaseException:
        code.discard()
        raise
    return Draft(code, text, own_text, "".join(specs), rows)


def write_submission(plan: Plan, content: Draft | None = None) -> Submission:
    """Write everything that a submission needs. The caller holds the grid's lock.

    That is the declared plan, the code snapshot and grid.yaml without settings. In the
    submission's own folder it is grid.yaml with settings, profile.json, specs.jsonl and rows.jsonl.
    A submission of trials also has scope.json, because runs of the table follow. A run's folder is
    made when the run begins: to make a thousand of them would take longer than everything else.

    Args:
        plan: the runs.
        content: the result of `draft`. None: it is made now.

    Raises:
        ConfigError: a run or the code has changed since the plan was made, or others can change the
            code.
    """
    content = content or draft(plan)
    try:
        _check_unchanged(plan, content.code)
        content.code.complete()
    except BaseException:
        content.code.discard()
        raise
    declare_plan(plan)
    for run in plan.runs:
        if run.adopts:
            link(run.folder, run.adopts)
    write_atomically(plan.folder.grid, content.grid)
    for run in plan.to_do:
        close_open_attempt(run.folder, run.status)
        if run.action is Action.RESTART:
            _move_away(plan.folder, run)
    path = plan.folder.new_submission().resolve()
    write_atomically(path / "grid.yaml", content.own_grid)
    write_atomically(path / "code", f"{plan.folder.code.resolve() / plan.snapshot}\n")
    write_atomically(path / "profile.json", plan.profile.model_dump_json(indent=2) + "\n")
    write_atomically(path / "specs.jsonl", content.specs)
    if plan.scope:
        write_json(path / SCOPE, plan.scope._asdict())
    if plan.forecast:
        write_json(path / FORECAST, as_json(plan.forecast))
    write_atomically(path / "rows.jsonl", content.rows)
    return Submission(path)


def record(plan: Plan) -> None:
    """Write a submission that starts nothing, if other commands or jobs must know of it.

    It adopts runs, or the grid file has changed, or it wants other runs of the table after trials
    that are in the queue. The follow-up job of those trials reads the scope.
    """
    before = read_regular_text(plan.folder.grid) if plan.folder.grid.exists() else ""
    adopts = any(run.adopts for run in plan.runs)
    if adopts or before != _without_settings(plan) or _has_new_scope(plan):
        write_submission(plan)
    else:
        declare_plan(plan)


def _has_new_scope(plan: Plan) -> bool:
    """Whether the runs that follow trials on Slurm differ from those of the newest submission."""
    if plan.scope is None or plan.profile.executor != "slurm":
        return False
    for submission in reversed(submissions(plan.folder)):
        if scope := read_scope(submission):
            return scope != plan.scope or read_grid(submission.path / "grid.yaml") != plan.grid
    return True


def declare_plan(plan: Plan) -> None:
    """Record what the grid's table compares, before the first run starts. Print a late change.

    The caller holds the grid's lock.

    Raises:
        ConfigError: the record is damaged.
    """
    grid, before = plan.grid, declaration.read_declared(plan.folder, plan.grid)
    configs = {row.name: row.config for row in expand_rows(grid)}
    data = {run.spec.config.data.name: run.spec.data_fingerprint for run in plan.runs}
    done = [run.folder.run_id for run in plan.runs if run.status.state is RunState.DONE]
    # A run that resumes with the code it began with changes nothing.
    codes = [run.attempt.code_hash for run in plan.to_do if run.attempt.snapshot == plan.snapshot]
    adopted = [run.folder.run_id for run in plan.runs if run.adopts]
    planned = declaration.plan_of(grid, configs, data, "".join(codes[:1]), adopted)
    added = declaration.declare(plan.folder, grid, planned, done)
    if before and added and added.runs_with_results:
        changes = declaration.changes(before[-1].plan, added.plan)
        when = declaration.describe_results(added.runs_with_results)
        if changes:
            text = printable("; ".join(changes))
            show_message(f"the declared plan changes {when}: {text}. A footnote names this")


def read_scope(submission: Submission) -> Scope | None:
    """What follows the trials of a submission. None if it has none."""
    path = submission.path / SCOPE
    if not path.exists():
        return None
    check_trusted(path, submission.path.parent.parent.parent)
    try:
        return Scope(**read_json(path))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error}). Submit the grid again") from None


def write_specs(plan: Plan) -> None:
    """Make the folders of all runs to start, for a start by hand."""
    for run in plan.to_do:
        lifecycle.write_spec(str(run.folder.path), run.spec.model_dump_json())


def withdraw(plan: Plan, submission: Submission) -> None:
    """Remove the files of a submission if Slurm accepted none of its jobs."""
    shutil.rmtree(submission.path)
    for run in plan.to_do:
        if run.action is Action.RESTART and not run.folder.path.exists():
            _last_moved_away(plan.folder, run).rename(run.folder.path)
    with suppress(OSError):  # there are others
        plan.folder.submissions.rmdir()


def _check_unchanged(plan: Plan, code: CodeCopy) -> None:
    """Raise ConfigError if a run or the code has changed since the plan was made."""
    for run in plan.to_do:
        if run.folder.path.is_symlink():
            # It leads to no finished run of this config, or --no-adopt was given.
            run.folder.path.unlink()
        if read_status(run.folder) != run.files:
            raise ConfigError(
                f"run {run.folder.run_id} has changed since the plan was made: repeat the command"
            )
    if code.final.name != plan.snapshot:
        raise ConfigError("the code has changed since the plan was made: repeat the command")
    older = {run.attempt.snapshot for run in plan.to_do} - {plan.snapshot}
    for snapshot in older:
        check_trusted(plan.folder.code / snapshot, plan.folder.path.parent)


def _without_settings(plan: Plan) -> str:
    return _yaml(plan.grid.model_copy(update={"settings": {}}))


def _yaml(grid: Grid) -> str:
    return strict_yaml.dump(grid.model_dump(mode="json"))


def _rows(plan: Plan, specs: list[str]) -> Iterator[SubmissionRow]:
    grid, offset = plan.folder.path.resolve(), 0
    for index, (run, spec) in enumerate(zip(plan.runs, specs, strict=True)):
        length = len(spec.encode())
        config = run.spec.config
        yield SubmissionRow(
            run_id=run.folder.run_id,
            row=index,
            run_dir=str(grid / run.folder.run_id),
            to_do=run.to_do,
            shape=run.shape,
            steps=config.steps,
            epochs=config.epochs,
            data=(config.data.name, run.spec.data_fingerprint),
            spec_at=(offset, length),
            code=str(grid / "code" / run.attempt.snapshot),
            attempt=run.attempt,
        )
        offset += length


def _move_away(folder: GridFolder, run: PlannedRun) -> None:
    """Move the files of a run by older code to `replaced`. Nothing is deleted."""
    folder.replaced.mkdir(exist_ok=True)
    number = 1
    while (target := folder.replaced / f"{run.folder.run_id}.{number}").exists():
        number += 1
    run.folder.path.rename(target)


def _last_moved_away(folder: GridFolder, run: PlannedRun) -> Path:
    paths = folder.replaced.glob(f"{run.folder.run_id}.*")
    return max(paths, key=lambda path: int(path.suffix[1:]))


def _acquire(lock: Path, content: str) -> bool:
    """Make the lock's file. Return whether this process made it."""
    try:
        file = lock.open("x")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(content)
    except BaseException:  # disk full: an empty lock would never count as stale
        lock.unlink(missing_ok=True)
        raise
    return True


def _remove_stale(folder: GridFolder) -> None:
    """Remove a stale lock. If several processes try, one does, and none removes a newer lock."""
    lock = folder.lock
    with suppress(FileNotFoundError), lock.open("r+") as file:
        # Some file systems have no flock. A stale lock is of this host, so flock is enough.
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        same = os.path.samestat(os.fstat(file.fileno()), lock.stat())
        if same and _is_alive(read_holder(folder)) is False:
            lock.unlink()


def _own_job() -> str | None:
    """Return the id of the job of this process, as squeue lists it. None outside of jobs."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"
    return os.environ.get("SLURM_JOB_ID")


def _is_alive(holder: dict[str, Any] | None) -> bool | None:
    """Return whether a lock's holder lives. None if that cannot be found out.

    If the holder is a job on another host, it counts as alive until Slurm lists it as ended.
    """
    alive = lifecycle.is_alive(holder)
    if alive is not None or not holder or not holder.get("job_id"):
        return alive
    try:
        live = [job.job_id for job in queue() if meaning(job.word).phase is not Phase.ENDED]
    except UnavailableError:
        return None
    if holder["job_id"] in live:
        return True
    # An entry without an id may be this job.
    return None if "" in live else False
