"""Choose the rows to submit after a wave: new ones, and interrupted ones to retry."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.grids.expansion import expand, expand_rows
from furnace_hpc.config.grids.grid import Grid, read_grid
from furnace_hpc.config.grids.trials import row_of
from furnace_hpc.config.parsing.run_names import TRIAL
from furnace_hpc.host import gpu_check, lifecycle
from furnace_hpc.host.regular_file import read_regular
from furnace_hpc.launch.measured.limits import site_longest_min
from furnace_hpc.launch.planning.plan import Choices, Plan, PlannedRun, Scope, Shape
from furnace_hpc.launch.planning.planner import make_plan
from furnace_hpc.launch.submission import read_scope
from furnace_hpc.monitor.run_status import CANARY, CANCELLED, StatusResolver
from furnace_hpc.monitor.tuning import next_stage
from furnace_hpc.runs.code import code_hash
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.journal import Submission, submissions
from furnace_hpc.runs.own_code import own_code_to_copy
from furnace_hpc.runs.snapshot import source
from furnace_hpc.runs.state import RunState, RunStatus, close_open_attempt
from furnace_hpc.runs.submitted import SubmissionRow
from furnace_hpc.runs.trust import check_trusted

STOPPED = ("time_limit", "preempted")


def remaining_rows(
    submission: Submission, folder: GridFolder, retries: int, resolver: StatusResolver
) -> dict[Shape, list[int]]:
    """Return, by shape, the rows that were never submitted, and interrupted ones to retry.

    It leaves out runs that failed by themselves, were cancelled, or are in a later submission. Runs
    that Slurm stopped do not count as retries: they come here if the site does not requeue jobs.
    Nothing remains if a run found that its GPUs cannot be used.
    """
    if gpu_check.stop_reason(str(submission.path)):
        return {}
    submitted = [call for call in submission.sbatch_calls() if call.outcome == "submitted"]
    times = Counter(row for call in submitted for row in call.rows)
    cancelled = submission.cancelled()
    shapes: dict[Shape, list[int]] = {}
    for row in submission.rows:
        if not row.to_do or row.run_id in cancelled or _is_in_later(row, submission, resolver):
            continue
        run = folder.run(row.run_id)
        status, count = resolver.now(run), times[row.row]
        is_new = not count and status.state in (RunState.NEW, RunState.QUEUED)
        is_retry = _is_retryable(status) and (count <= retries or _was_stopped(run, status))
        limits = row.attempt.record()
        if (is_new or is_retry) and not lifecycle.exhausted_budget(str(run.path), limits):
            shapes.setdefault(Shape.read(row.shape), []).append(row.row)
    return shapes


def plan_next_stage(
    submission: Submission, folder: GridFolder, resolver: StatusResolver
) -> Plan | None:
    """Plan the runs that follow those of a submission.

    These are the table's runs after trials, and runs that start from the weights of others. A later
    submission of the same grid may have left runs to this one. So its scope counts too. None if no
    runs follow, or if the grid was changed since. Rows with a cancelled run are left out.
    """
    if read_scope(submission) is None or gpu_check.stop_reason(str(submission.path)):
        return None
    grid = read_grid(submission.path / "grid.yaml")
    if read_grid(folder.grid) != grid.model_copy(update={"settings": {}}):
        print("the grid was changed after these runs were submitted: submit it again to continue")
        return None
    scopes = list(_scopes_from(submission, folder, grid))
    wanted = {pair for found, scope in scopes for pair in _wanted(found, scope)}
    rows = [row for row in expand_rows(grid) if any(row.name == name for name, _ in wanted)]
    if not rows:
        return None
    newest = scopes[-1][1]
    profile = read_profile(submission)
    choices = _choices(newest, grid, resolver, profile)
    # Of all submissions: a row's source may be on data that only an earlier one has used.
    fingerprints = dict(row.data for found in submissions(folder) for row in found.rows)
    # `remaining_rows` has decided about those that these submissions started.
    begun = {row.run_id for found, _ in scopes for row in found.rows if row.to_do}
    if grid.tune is None:
        runs = expand(grid, fingerprints, rows)
        held = [run for run in runs if newest.canary or run.config.init_from]
        specs = [run for run in held if (run.variant, str(run.config.seed)) in wanted]
        plan = _undecided(make_plan(grid, specs, profile, folder, choices), begun)
        return replace(plan, scope=newest if plan.num_later else None)
    stage = next_stage(
        grid,
        rows,
        fingerprints,
        folder,
        resolver,
        write=True,
        code_hash=choices.code_hash if newest.new_code else "",
        adopt=newest.adopt,
    )
    num_later = sum(name == tuned.row for tuned in stage.waiting for name, _ in wanted)
    print(*stage.lines(num_later), sep="\n", flush=True)
    # This job retries no trial: `remaining_rows` has left them. But trials follow their canaries.
    specs = [
        spec
        for spec in stage.runs
        if (spec.variant, str(spec.config.seed)) in wanted
        or (newest.canary and TRIAL in spec.variant)
    ]
    if not specs:
        return None
    plan = make_plan(grid, specs, profile, folder, choices)
    if not newest.canary:
        return plan
    plan = replace(_undecided(plan, begun), num_waiting=len(stage.waiting))
    return replace(plan, scope=newest if plan.num_later else None)


def _choices(
    scope: Scope, grid: Grid, resolver: StatusResolver, profile: ClusterProfile
) -> Choices:
    """The user's choices, as the scope of a submission has kept them."""
    return Choices(
        code_hash=code_hash(),
        snapshot=source(own_code_to_copy(grid)).snapshot_hash,
        data_root=Path(scope.data_root),
        get_status=resolver,
        adopt=scope.adopt,
        new_code=scope.new_code,
        retry=frozenset(scope.retry),
        resume_with=scope.resume_with,
        canary=scope.canary,
        longest_min=site_longest_min(profile),
    )


def _undecided(plan: Plan, begun: set[str]) -> Plan:
    """The plan without runs about which `remaining_rows` has decided."""
    runs = tuple(run for run in plan.runs if not _is_decided(run, begun))
    return replace(plan, runs=runs)


def _is_decided(run: PlannedRun, begun: set[str]) -> bool:
    """Whether `remaining_rows` has decided about a run. A canary resumes with the others."""
    is_canary = run.status.end_reason == CANARY
    return run.action.resumes and run.folder.run_id in begun and not is_canary


def _scopes_from(
    first: Submission, folder: GridFolder, grid: Grid
) -> Iterator[tuple[Submission, Scope]]:
    """The scopes of a submission and of later ones of the same grid, oldest first."""
    known = submissions(folder)
    for submission in known[known.index(first) :]:
        scope = read_scope(submission)
        if scope and read_grid(submission.path / "grid.yaml") == grid:
            yield submission, scope


def _wanted(submission: Submission, scope: Scope) -> set[tuple[str, str]]:
    """Row and seed of each run in the scope. Rows with a cancelled run are left out."""
    cancelled = {row_of(run_id.rsplit("-", 2)[0]) for run_id in submission.cancelled()}
    return {(row, seed) for row in scope.variants for seed in scope.seeds if row not in cancelled}


def close_attempts(submission: Submission, folder: GridFolder, resolver: StatusResolver) -> None:
    """Record why attempts ended, if they did not, or if Slurm has a more specific reason."""
    for row in submission.rows:
        run, job = folder.run(row.run_id), resolver.places.get(row.run_id)
        if job and job.submission == submission.path and job.job_id:
            status = resolver.now(run)
            if status.state in (RunState.INTERRUPTED, RunState.FAILED):
                close_open_attempt(run, status)


def read_profile(submission: Submission) -> ClusterProfile:
    """Read the profile of a submission. Jobs execute its Python and its lines of setup.

    Raises:
        ConfigError: others could have changed it.
    """
    file = submission.path / "profile.json"
    check_trusted(file, submission.path.parent.parent.parent)
    return ClusterProfile.model_validate_json(read_regular(file))


def _is_in_later(row: SubmissionRow, submission: Submission, resolver: StatusResolver) -> bool:
    job = resolver.places.get(row.run_id)
    return job is not None and job.submission != submission.path


def _was_stopped(run: RunFolder, status: RunStatus) -> bool:
    """Return whether the newest job began an attempt, and ended at its limit or by a preemption.

    The budgets of attempts limit such runs.
    """
    attempt = lifecycle.read_attempt(str(run.path), lifecycle.newest_attempt(str(run.path)))
    is_newest = bool(status.job_id) and attempt.get("job_id") == status.job_id
    return is_newest and status.end_reason in STOPPED


def _is_retryable(status: RunStatus) -> bool:
    """Return whether a run was interrupted and not cancelled, or has exhausted its old budget.

    This submission may have a larger budget.
    """
    failed_by_budget = status.state is RunState.FAILED and bool(status.exhausted_budget)
    interrupted = status.state is RunState.INTERRUPTED or failed_by_budget
    is_canary = status.end_reason == CANARY  # `plan_next_stage` resumes it
    return interrupted and CANCELLED not in status.reason and not is_canary
