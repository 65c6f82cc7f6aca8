"""The plan: what a submission will do with each run, and why. Pure: reads run folders, changes nothing."""

from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.flatten import flatten
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.identity import identity
from furnace_hpc.config.parsing.validation import group_by_row
from furnace_hpc.config.train_config import RunSpec, accumulation_steps
from furnace_hpc.host import lifecycle
from furnace_hpc.host.regular_file import IrregularFile, read_regular
from furnace_hpc.launch.node_exclusion import excluded_nodes
from furnace_hpc.launch.plan import Action, Choices, Plan, PlannedRun
from furnace_hpc.runs.adopted import Same, SameRuns
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.lead_time import slowest_save_s, too_short
from furnace_hpc.runs.records.attempts import read_attempts
from furnace_hpc.runs.records.result import read_result
from furnace_hpc.runs.resume_overrides import KEYS, in_words, kept, overridden
from furnace_hpc.runs.state import END_REASONS, RunState, RunStatus, read_status

# what a rank runs; snapshots of an older layout lack it
ENTRY_POINT = "furnace_hpc/launch/rank_main.py"


class Code(NamedTuple):
    """The code of a run: what decides its numbers, and the snapshot that holds it."""

    code_hash: str
    snapshot: str


def make_plan(
    grid: Grid, specs: list[RunSpec], profile: ClusterProfile, folder: GridFolder, choices: Choices
) -> Plan:
    """Decide for every run.

    Raises:
        ConfigError: all problems at once: batch arithmetic, damaged spec files, runs begun by other code.
    """
    check_retry(choices.retry)
    planned, problems, same_runs = [], list[tuple[str, str]](), SameRuns(folder)
    for spec in specs:
        try:
            run = _plan_run(spec, profile, folder, choices, same_runs)
        except ConfigError as error:
            problems.append((spec.variant, str(error)))
            continue
        planned.append(run)
    other_code = [run.folder.run_id for run in planned if run.action is Action.REFUSE]
    lines = group_by_row(problems)
    if other_code:
        lines.append(
            f"{len(other_code)} unfinished runs of grid {grid.name!r} were begun by another version of the code, of "
            f"which there is no snapshot ({', '.join(other_code[:3])}{', ...' if len(other_code) > 3 else ''}), and a "
            f"run never changes code half-way: go back to that code, or submit with --code new to start them again at "
            f"step 0"
        )
    if lines:
        raise ConfigError("\n".join(lines))
    exclude = excluded_nodes([run.folder for run in planned], profile)
    return Plan(grid, profile, folder, tuple(planned), choices.snapshot, exclude)


def check_retry(words: frozenset[str]) -> None:
    """Raise ConfigError for a word that `--retry` does not know."""
    if unknown := sorted(words - retry_words()):
        raise ConfigError(f"--retry got {unknown[0]!r}; {nearest(unknown[0], retry_words())}")


def retry_words() -> set[str]:
    """What `--retry` takes: `failed` for all, a reason, or `lost`: whose holder cannot be seen from here."""
    return {"failed", "lost"} | {
        reason for reason, ended in END_REASONS.items() if ended.state is not RunState.DONE
    }


def _plan_run(
    spec: RunSpec, profile: ClusterProfile, grid: GridFolder, choices: Choices, same_runs: SameRuns
) -> PlannedRun:
    folder = grid.run(spec.run_id)
    nodes, per_node = profile.shape(spec.resources)
    limit_s, lead_s = spec.resources.timeout_min * 60, profile.signal_delay_s
    if profile.executor == "slurm" and limit_s < 2 * lead_s:
        raise ConfigError(
            f"resources.timeout_min {spec.resources.timeout_min} leaves no time to train: cluster {profile.name!r} "
            f"tells ranks to stop {lead_s} s before the limit; give at least {-(-2 * lead_s // 60)} minutes"
        )
    at, same = _where(spec, folder, choices, same_runs)
    files = read_status(at)
    status = choices.get_status(folder) if at is folder else files
    began = _code_of(at, status)
    code = (
        began
        if began and began.snapshot and (grid.code / began.snapshot / ENTRY_POINT).is_file()
        else None
    )
    action, why = _decide(status, choices, began, has_code=code is not None)
    goes_on = action in (Action.RESUME, Action.RETRY)
    overrides = (
        {} if action is Action.RESTART else _overrides(spec, at, choices if goes_on else None)
    )
    if action in (Action.START, Action.RESTART) or goes_on:
        micro_batch_size, _ = accumulation_steps(
            overridden(spec.config, overrides), nodes * per_node
        )
        _check_compared(spec, at, micro_batch_size * nodes * per_node)
    if goes_on and (otherwise := in_words(overrides)):
        why = f"{why}; goes on with {otherwise}"
    if (
        goes_on
        and profile.executor == "slurm"
        and (short := too_short(slowest_save_s(folder), lead_s))
    ):
        why = f"{why}; {short}"
    limits = spec.resources.model_dump(
        include={"max_attempts", "max_idle_attempts", "max_gpu_hours"}
    )
    if action in (Action.RESUME, Action.RETRY) and (
        used_up := lifecycle.exhausted_budget(str(folder.path), limits)
    ):
        action, why = Action.LEAVE, used_up
    if action not in (Action.RESUME, Action.RETRY) or (
        began and began.code_hash == choices.code_hash
    ):
        code = None  # the code as it is now: what decides the numbers is the same
    facts = {
        "code_hash": code.code_hash if code else choices.code_hash,
        "snapshot": code.snapshot if code else choices.snapshot,
        "nodes": nodes,
        "processes_per_node": per_node,
        "world_size": nodes * per_node,
        "gpus": profile.gpus(nodes, per_node),
        "signal_delay_s": lead_s,
        "time_limit_s": limit_s if profile.executor == "slurm" else None,
        "attempts_before": _attempts_before(grid, folder, action),
        **limits,
        "data_dir": str((choices.data_root / spec.config.data.name).resolve()),
        "overrides": overrides,
    }
    adopts = same.done if same.done and not _leads_to(folder, same.done) else None
    unfinished = same.unfinished if action is Action.START else None
    return PlannedRun(
        spec, folder, status, files, action, why, nodes, per_node, facts, adopts, unfinished
    )


def _where(
    spec: RunSpec, folder: RunFolder, choices: Choices, same_runs: SameRuns
) -> tuple[RunFolder, Same]:
    """The folder that holds the run: its own; else a finished one of another name, if there is one.

    A link that leads to no finished run of the same config counts as no folder.
    """
    is_link = folder.path.is_symlink()
    if folder.path.exists() and not is_link:
        return folder, Same(None, None)
    if not is_link and choices.get_status(folder).state in (
        RunState.QUEUED,
        RunState.RUNNING,
        RunState.UNKNOWN,
    ):
        return folder, Same(None, None)  # its job may be about to make the folder
    none_yet = RunFolder(folder.path.with_name(f".{folder.run_id}")) if is_link else folder
    if not choices.adopt:
        return none_yet, Same(None, None)
    same = same_runs.find(spec, choices.code_hash, any_code=not choices.new_code)
    return (RunFolder(same.done) if same.done else none_yet), same


def _leads_to(folder: RunFolder, target: Path) -> bool:
    return folder.path.is_symlink() and folder.path.resolve() == target.resolve()


def _decide(
    status: RunStatus, choices: Choices, began: Code | None, has_code: bool
) -> tuple[Action, str]:
    other = began is not None and began.code_hash != choices.code_hash
    match status.state:
        case RunState.NEW:
            return Action.START, status.reason
        case RunState.QUEUED:
            first = "; cancel it first, to start it with the new code" if choices.new_code else ""
            return Action.LEAVE, f"{status.reason}{first}"
        case RunState.RUNNING:
            return Action.LEAVE, f"attempt {status.attempt} is running, step {status.step}"
        case RunState.UNKNOWN if "lost" not in choices.retry:
            return Action.LEAVE, status.reason
        case _ if other and choices.new_code and status.attempt:
            return Action.RESTART, "new code"
        case RunState.DONE:
            return (
                Action.SKIP,
                f"done, stale: by code {began.code_hash}" if other and began else "done",
            )
    # what its budget is now is seen later
    failed = status.state is RunState.FAILED and not status.used_up
    wanted = not failed or choices.retry & {"failed", status.ended}
    if wanted and other and not has_code:
        return Action.REFUSE, f"begun by other code {began.code_hash if began else ''}"
    with_code = f", with the code it began with ({began.snapshot})" if other and began else ""
    if status.attempt == 0:
        return Action.START, status.reason
    if not failed:
        return Action.RESUME, f"after step {status.step}: {status.reason}{with_code}"
    if wanted:
        return Action.RETRY, f"failed: {status.reason}{with_code}"
    return Action.LEAVE, f"failed: {status.reason} (--retry failed tries again)"


def _code_of(folder: RunFolder, status: RunStatus) -> Code | None:
    """The code that the run's numbers come from; None when no attempt has begun."""
    attempts = read_attempts(folder)
    snapshot = attempts[0].snapshot if attempts else ""
    try:
        if status.state is RunState.DONE and (result := read_result(folder)):
            return Code(result.code_hash, snapshot)
    except (ValidationError, IrregularFile):
        raise ConfigError(
            f"{folder.result} is damaged: put the folder {folder.path} aside and submit again"
        ) from None
    return Code(attempts[0].code_hash, snapshot) if attempts and attempts[0].code_hash else None


def _attempts_before(grid: GridFolder, folder: RunFolder, action: Action) -> int:
    """Number of the newest attempt of the same run by older code.

    A process of it may still live somewhere, and must see that it has been replaced.
    """
    aside = [str(path) for path in grid.replaced.glob(f"{folder.run_id}.*")]
    here = [str(folder.path)] if action is Action.RESTART else []
    return max((lifecycle.newest_attempt(path) for path in aside + here), default=0)


def _check_compared(spec: RunSpec, folder: RunFolder, samples: int) -> None:
    """Raise ConfigError where a loss would compare another number of samples with each other than it began with."""
    first = next((attempt for attempt in read_attempts(folder) if attempt.step), None)
    terms = spec.config.loss.compares_samples
    if not terms or first is None or first.world_size is None:
        return
    config = overridden(
        spec.config, {key: first.overrides[key] for key in KEYS if key in first.overrides}
    )
    began = accumulation_steps(config, first.world_size)[0] * first.world_size
    if began != samples:
        raise ConfigError(
            f"loss.{terms[0]} compares the samples of one micro-batch over all processes, {began} when run "
            f"{folder.run_id} began and now {samples}: give the micro_batch_size (--resume-with) and processes whose "
            f"product it is"
        )


def _overrides(spec: RunSpec, folder: RunFolder, choices: Choices | None) -> dict[str, Any]:
    """What differs from the run's immutable spec.json and holds for the next attempts.

    Fields that are no identity; and those of `--resume-with`, which stay until others are asked for. No choices: the
    run does not go on now.
    """
    if not folder.spec.exists():
        return {}
    try:
        first = RunSpec.model_validate_json(read_regular(folder.spec))
    except (ValidationError, IrregularFile):
        raise ConfigError(
            f"{folder.spec} is damaged: put the folder {folder.path} aside and submit again"
        ) from None
    if (
        identity(first.config) != identity(spec.config)
        or first.data_fingerprint != spec.data_fingerprint
    ):
        raise ConfigError(
            f"{folder.spec} does not say what its name says: put {folder.path} aside and submit again"
        )
    old, new = (
        flatten(first.config.model_dump(mode="json")),
        flatten(spec.config.model_dump(mode="json")),
    )
    before = read_attempts(folder)[-1:]
    asked = choices.resume_with if choices else {}
    otherwise = kept(before[0].overrides, asked, first.config) if before else {}
    return {key: value for key, value in new.items() if old.get(key) != value} | otherwise
