"""Decide what a submission does with each run, and why. It only reads run folders and manifests."""

import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from furnace_hpc.config.cluster import ClusterProfile, check_portable
from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.flatten import flatten
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.identity import identity
from furnace_hpc.config.parsing.format_number import check_not_newer
from furnace_hpc.config.parsing.plural import counted, has_have
from furnace_hpc.config.parsing.sbatch_flags import merged
from furnace_hpc.config.parsing.validation import group_by_row
from furnace_hpc.config.sections.resources import Resources
from furnace_hpc.config.train_config import RunSpec, accumulation_steps, run_ids
from furnace_hpc.host import lifecycle
from furnace_hpc.host.attempt_spec import AttemptSpec
from furnace_hpc.host.regular_file import IrregularFile, read_regular
from furnace_hpc.launch.container import check_container
from furnace_hpc.launch.measured.limits import default_limit, measured_plan
from furnace_hpc.launch.planning.dataset_checks import with_steps_of_epochs
from furnace_hpc.launch.planning.found_run import Code, Found, damaged, find, run_to_link
from furnace_hpc.launch.planning.node_exclusion import excluded_nodes
from furnace_hpc.launch.planning.plan import Action, Choices, Plan, PlannedRun, Shape
from furnace_hpc.launch.planning.shared_nodes import gpus_of_run, runs_per_gpu, runs_per_node
from furnace_hpc.launch.planning.waiting import hold_back
from furnace_hpc.runs.adopted import RunMatcher
from furnace_hpc.runs.file_cache import once_per_look, one_look
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.lead_time import slowest_save_s, too_short
from furnace_hpc.runs.resume_overrides import KEYS, describe, next_overrides, overridden
from furnace_hpc.runs.state import END_REASONS, RunState

MAX_NAMES = 3  # run ids in an error message
REPLACES_IT = "--code new trains it again"


class Decision(NamedTuple):
    """What is done with a run."""

    action: Action
    why: str


@one_look()
def make_plan(
    grid: Grid, specs: list[RunSpec], profile: ClusterProfile, folder: GridFolder, choices: Choices
) -> Plan:
    """Decide for every run.

    Raises:
        ConfigError: all problems at once: batch sizes, damaged spec files, runs of other code. Or
            the profile's container cannot start.
    """
    check_retry(choices.retry)
    check_container(profile, (folder.path, choices.data_root))
    planned, problems, matcher = [], list[tuple[str, str]](), RunMatcher(folder)
    specs = with_steps_of_epochs(specs, choices.data_root)
    choices = replace(choices, get_status=cache(choices.get_status))
    for spec, run_id in zip(specs, run_ids(specs), strict=True):
        try:
            run = folder.run(run_id)
            planned.append(_plan_run(spec, run, profile, folder, choices, matcher))
        except ConfigError as error:
            problems.append((spec.variant, str(error)))
    lines = group_by_row(problems)
    other_code = [run.folder.run_id for run in planned if run.action is Action.REFUSE]
    if other_code:
        lines.append(_other_code_error(grid.name, other_code))
    if lines:
        raise ConfigError("\n".join(lines))
    planned = hold_back(planned, folder, choices.get_status, choices.new_code)
    exclude = excluded_nodes([run.history for run in planned], profile)
    plan = Plan(grid, profile, folder, tuple(planned), choices.snapshot, exclude)
    return measured_plan(plan, choices)


def check_retry(words: frozenset[str]) -> None:
    """Raise ConfigError if `--retry` does not accept one of these words."""
    if unknown := sorted(words - retry_words()):
        raise ConfigError(f"--retry got {unknown[0]!r}; {nearest(unknown[0], retry_words())}")


def retry_words() -> set[str]:
    """Return the words that `--retry` accepts.

    `failed` means every reason. `lost` means runs whose holder is not visible from this host.
    """
    reasons = {name for name, end in END_REASONS.items() if end.state is not RunState.DONE}
    return {"failed", "lost"} | reasons - {"canary"}  # which always resumes


def _plan_run(
    spec: RunSpec,
    folder: RunFolder,
    profile: ClusterProfile,
    grid: GridFolder,
    choices: Choices,
    matcher: RunMatcher,
) -> PlannedRun:
    shape = _shape(spec.resources, profile)
    _check_time_limit(spec, profile)
    check_portable(profile, spec.config, spec.resources)
    found = find(spec, folder, grid, choices, matcher)
    decision = _within_budget(_decide(found, choices), spec, found)
    overrides = _overrides(spec, found, decision.action, choices)
    if decision.action.is_start:
        samples = _compared_samples(spec, overrides, shape.world_size)
        if decision.action.resumes:
            _check_compared(spec, found, samples)
    attempt = AttemptSpec(
        **_code(found, decision.action, choices)._asdict(),
        **_sizes(shape, profile),
        **_limits(spec),
        attempts_before=_attempts_before(grid, found.folder, decision.action),
        data_dir=_data_dir(choices.data_root, spec.config.data.name),
        overrides=overrides,
        known_attempts=_newest_number(found),
        weights_fingerprints=dict(found.weights),
    )
    return PlannedRun(
        spec,
        found.folder,
        found.status,
        found.files,
        decision.action,
        _with_notes(decision, found, overrides, profile),
        shape,
        attempt,
        found.history,
        adopts=run_to_link(found),
        unfinished=found.matches.unfinished if decision.action is Action.START else None,
    )


def _shape(resources: Resources, profile: ClusterProfile) -> Shape:
    """Return what a run's job asks for, from its grid or else from the profile."""
    return Shape(
        *profile.shape(resources),
        default_limit(resources, profile),
        resources.partition,
        sbatch=merged(profile.sbatch, resources.sbatch),
        runs_per_node=runs_per_node(profile, resources),
        runs_per_gpu=runs_per_gpu(profile, resources),
    )


def _check_time_limit(spec: RunSpec, profile: ClusterProfile) -> None:
    limit_min, lead_s = default_limit(spec.resources, profile), profile.signal_delay_s
    if profile.executor == "slurm" and limit_min * 60 < 2 * lead_s:
        raise ConfigError(
            f"resources.timeout_min {limit_min} leaves no time to train: cluster {profile.name!r} "
            f"signals ranks {lead_s} s before the limit. Use at least {-(-2 * lead_s // 60)} min"
        )


def _decide(found: Found, choices: Choices) -> Decision:
    status, began = found.status, found.began
    match status.state:
        case RunState.NEW:
            return Decision(Action.START, status.reason)
        case RunState.QUEUED if choices.new_code:
            fix = "cancel it first, to start it with the new code"
            return Decision(Action.LEAVE, f"{status.reason}; {fix}")
        case RunState.QUEUED:
            return Decision(Action.LEAVE, status.reason)
        case RunState.RUNNING:
            why = f"attempt {status.attempt} is running, step {status.step}"
            return Decision(Action.LEAVE, why)
        case RunState.UNKNOWN if "lost" not in choices.retry:
            return Decision(Action.LEAVE, status.reason)
    is_other_code = began is not None and began.code_hash != choices.code_hash
    other_weights = f"{_changed(found)} other weights now"
    if choices.new_code and status.attempt and (is_other_code or found.changed_weights):
        return Decision(Action.RESTART, "new code" if is_other_code else other_weights)
    if status.state is not RunState.DONE:
        return _decide_ended(found, choices, is_other_code)
    if began and is_other_code:
        return Decision(Action.SKIP, f"done, stale: by code {began.code_hash}")
    if found.changed_weights:
        return Decision(Action.SKIP, f"done, stale: {other_weights} ({REPLACES_IT})")
    return Decision(Action.SKIP, "done")


def _changed(found: Found) -> str:
    """`row a has`, or `row a, row b have`."""
    return f"{', '.join(found.changed_weights)} {has_have(len(found.changed_weights))}"


def _decide_ended(found: Found, choices: Choices, is_other_code: bool) -> Decision:
    """Decide for a run that ended without a result."""
    status, began = found.status, found.began
    if status.attempt == 0:
        return Decision(Action.START, status.reason)
    # `_within_budget` decides on failures of a budget
    failed = status.state is RunState.FAILED and not status.exhausted_budget
    if failed and not choices.retry & {"failed", status.end_reason}:
        why = f"failed: {status.reason} (--retry failed retries it)"
        return Decision(Action.LEAVE, why)
    if found.changed_weights:
        why = f"{_changed(found)} other weights than at its start: restore them ({REPLACES_IT})"
        return Decision(Action.LEAVE, why)
    with_code = ""
    if began and is_other_code:
        if not found.has_code:
            return Decision(Action.REFUSE, f"begun by other code {began.code_hash}")
        with_code = f", with the code it began with ({began.snapshot})"
    if failed:
        return Decision(Action.RETRY, f"failed: {status.reason}{with_code}")
    return Decision(Action.RESUME, f"after step {status.step}: {status.reason}{with_code}")


def _within_budget(decision: Decision, spec: RunSpec, found: Found) -> Decision:
    """Leave a run alone if its budget is exhausted."""
    if decision.action.resumes:
        exhausted_budget = lifecycle.exhausted_budget(str(found.folder.path), _limits(spec))
        if exhausted_budget:
            return Decision(Action.LEAVE, exhausted_budget)
    return decision


def _with_notes(
    decision: Decision, found: Found, overrides: dict[str, Any], profile: ClusterProfile
) -> str:
    """Return the reason, with notes on what a resumed run does differently or lacks."""
    notes = [decision.why]
    if decision.action.resumes:
        if changes := describe(overrides):
            notes.append(f"resumes with {changes}")
        if profile.executor == "slurm":
            notes.append(too_short(slowest_save_s(found.folder), profile.signal_delay_s))
    return "; ".join(filter(None, notes))


def _limits(spec: RunSpec) -> dict[str, Any]:
    budgets = {"max_attempts", "max_idle_attempts", "max_gpu_hours"}
    return spec.resources.model_dump(include=budgets)


def _sizes(shape: Shape, profile: ClusterProfile) -> dict[str, Any]:
    on_slurm = profile.executor == "slurm"
    return {
        "nodes": shape.nodes,
        "processes_per_node": shape.processes_per_node,
        "world_size": shape.world_size,
        "gpus": gpus_of_run(profile, shape),
        "runs_per_node": shape.runs_per_node,
        "runs_per_gpu": shape.runs_per_gpu,
        "signal_delay_s": profile.signal_delay_s,
        "time_limit_s": shape.timeout_min * 60 if on_slurm else None,
        "partition": shape.partition or profile.partition,
    }


def _code(found: Found, action: Action, choices: Choices) -> Code:
    """Return the code of the next attempt. A resumed run keeps the code that it began with."""
    began = found.began
    if action.resumes and began and found.has_code and began.code_hash != choices.code_hash:
        return began
    return Code(choices.code_hash, choices.snapshot)


def _attempts_before(grid: GridFolder, folder: RunFolder, action: Action) -> int:
    """Return the number of the newest attempt of the same run by older code.

    One of its processes may still live somewhere. A higher number shows it that it was replaced.
    """
    older = [str(path) for path in _replaced_by_run(grid).get(folder.run_id, ())]
    if action is Action.RESTART:
        older.append(str(folder.path))
    return max(map(lifecycle.newest_attempt, older), default=0)


@once_per_look
def _data_dir(root: Path, name: str) -> str:
    return str((root / name).resolve())


@once_per_look
def _replaced_by_run(grid: GridFolder) -> dict[str, list[Path]]:
    """Run id -> its folders in `replaced`, which are named `<run id>.<number>`."""
    found: dict[str, list[Path]] = {}
    for path in grid.replaced.glob("*"):
        found.setdefault(path.name.rpartition(".")[0], []).append(path)
    return found


def _compared_samples(spec: RunSpec, overrides: dict[str, Any], world_size: int) -> int:
    """Return the samples of one micro-batch: over all processes if losses compare them.

    Raises:
        ConfigError: the batch sizes do not fit the number of processes.
    """
    micro_batch_size, _ = accumulation_steps(overridden(spec.config, overrides), world_size)
    return micro_batch_size * (world_size if spec.config.loss.compares_samples else 1)


def _check_compared(spec: RunSpec, found: Found, samples: int) -> None:
    """Raise ConfigError if a loss would compare another number of samples than at the start."""
    keys, first = spec.config.needs_micro_batch, found.history.first_trained
    if not keys or first is None or first.world_size is None:
        return
    began_with = {key: first.overrides[key] for key in KEYS if key in first.overrides}
    began = _compared_samples(spec, began_with, first.world_size)
    if began != samples:
        times = " times the number of processes" if spec.config.loss.compares_samples else ""
        raise ConfigError(
            f"{keys[0]} depends on the samples of one micro-batch{times}: {began} when run "
            f"{found.place.run_id} began, now {samples}. Choose micro_batch_size (--resume-with) "
            f"so that micro_batch_size{times} is {began}"
        )


def _overrides(spec: RunSpec, found: Found, action: Action, choices: Choices) -> dict[str, Any]:
    """Return the fields of the next attempts that differ from the run's spec.json.

    These are fields outside the identity, and those of `--resume-with`. The latter stay until
    others are given.
    """
    folder = found.place
    has_spec = os.path.exists(f"{folder.path}/spec.json")  # noqa: PTH110 (of thousands of runs)
    if action is Action.RESTART or not has_spec:
        return {}
    first = _read_spec(folder)
    if (identity(first.config), first.data_fingerprint) != (
        identity(spec.config),
        spec.data_fingerprint,
    ):
        raise ConfigError(
            f"{folder.spec} is the spec of another run: move the folder {folder.path} away and "
            f"submit again"
        )
    old, new = (
        flatten(first.config.model_dump(mode="json")),
        flatten(spec.config.model_dump(mode="json")),
    )
    changed = {key: value for key, value in new.items() if old.get(key) != value}
    newest = found.history.newest
    if newest is None:
        return changed
    given = choices.resume_with if action.resumes else {}
    before = newest.overrides | newest.next_overrides
    return changed | next_overrides(before, given, first.config)


def _newest_number(found: Found) -> int:
    """Number of the newest attempt. 0 if there is none."""
    newest = found.history.newest
    if newest is None:
        return 0
    return newest.attempt


def _read_spec(folder: RunFolder) -> RunSpec:
    try:
        return RunSpec.model_validate_json(read_regular(folder.spec))
    except (ValidationError, IrregularFile) as error:
        if isinstance(error, ValidationError):
            check_not_newer(folder.spec, error)
        raise ConfigError(damaged(folder.spec, folder)) from None


def _other_code_error(grid: str, run_ids: list[str]) -> str:
    names = ", ".join(run_ids[:MAX_NAMES])
    if len(run_ids) > MAX_NAMES:
        names += ", ..."
    return (
        f"{counted(len(run_ids), 'unfinished run')} of grid {grid!r} began with other code, which "
        f"has no snapshot ({names}). A run never changes its code: restore that code, or submit "
        f"with --code new to start again at step 0"
    )
