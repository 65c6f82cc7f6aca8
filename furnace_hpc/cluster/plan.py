"""The plan: what a submission will do with each run, and why. Pure: reads run folders, changes nothing."""

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from furnace_hpc.cluster.profile import ClusterProfile
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.ledger import read_attempts
from furnace_hpc.runs.records import read_result
from furnace_hpc.runs.state import ENDED, RunState, RunStatus, read_status
from furnace_hpc.spec.config import RunSpec, accumulation_steps, identity
from furnace_hpc.spec.errors import ConfigError, nearest
from furnace_hpc.spec.grid import Grid
from furnace_hpc.spec.problems import told_once


class Action(StrEnum):
    """What a submission does with one run."""

    START = "start"
    RESUME = "resume"
    RETRY = "retry"
    RESTART = "restart"  # other code, --code new: what is there is put aside
    SKIP = "skip"
    LEAVE = "leave"
    REFUSE = "refuse"  # begun by other code: the whole submission is refused


@dataclass(frozen=True)
class PlannedRun:
    """One run, its state, and what will be done with it."""

    spec: RunSpec
    folder: RunFolder
    status: RunStatus
    action: Action
    why: str
    nodes: int
    processes_per_node: int
    facts: dict[str, Any]

    @property
    def world_size(self) -> int:
        """Ranks of the run."""
        return self.nodes * self.processes_per_node

    @property
    def to_do(self) -> bool:
        """Whether the submission starts it."""
        return self.action in (Action.START, Action.RESUME, Action.RETRY, Action.RESTART)


@dataclass(frozen=True)
class Plan:
    """A whole submission, before anything is done."""

    grid: Grid
    profile: ClusterProfile
    folder: GridFolder
    runs: tuple[PlannedRun, ...]

    @property
    def to_do(self) -> list[PlannedRun]:
        """The runs that will be started."""
        return [run for run in self.runs if run.to_do]

    @property
    def counts(self) -> Counter[str]:
        """Number of runs per action."""
        return Counter(run.action.value for run in self.runs)

    @property
    def gpu_hours_limit(self) -> float:
        """Most GPU-hours that one attempt of each run can take: GPUs asked for x time limit."""
        per_node = self.profile.gpus_per_node
        return sum(
            run.nodes * (run.processes_per_node if per_node is None else per_node) * run.spec.resources.timeout_min / 60
            for run in self.to_do
        )

    @property
    def shapes(self) -> dict[tuple[int, int, int, str | None], list[int]]:
        """(nodes, processes per node, minutes, partition) -> indices of its runs: one array each."""
        shapes: dict[tuple[int, int, int, str | None], list[int]] = {}
        for index, run in enumerate(self.runs):
            if run.to_do:
                wish = run.spec.resources
                key = (run.nodes, run.processes_per_node, wish.timeout_min, wish.partition)
                shapes.setdefault(key, []).append(index)
        return shapes


@dataclass(frozen=True)
class Choices:
    """What the user asked of this submission, beside the grid."""

    code_hash: str
    data_root: Path
    retry: frozenset[str] = frozenset()
    new_code: bool = False


def make_plan(grid: Grid, specs: list[RunSpec], profile: ClusterProfile, folder: GridFolder, choices: Choices) -> Plan:
    """Decide for every run.

    Raises:
        ConfigError: all problems at once: batch arithmetic, damaged spec files, runs begun by other code.
    """
    check_retry(choices.retry)
    planned, problems = [], list[tuple[str, str]]()
    for spec in specs:
        try:
            run = _plan_run(spec, profile, folder.run(spec.run_id), choices)
        except ConfigError as error:
            problems.append((spec.variant, str(error)))
            continue
        planned.append(run)
    other_code = [run.spec.run_id for run in planned if run.action is Action.REFUSE]
    lines = told_once(problems)
    if other_code:
        lines.append(
            f"{len(other_code)} unfinished runs of grid {grid.name!r} were begun by another version of the code "
            f"({', '.join(other_code[:3])}{', ...' if len(other_code) > 3 else ''}), and a run never changes code "
            f"half-way: go back to that code, or submit with --code new to start them again at step 0"
        )
    if lines:
        raise ConfigError("\n".join(lines))
    return Plan(grid, profile, folder, tuple(planned))


def check_retry(words: frozenset[str]) -> None:
    """Raise ConfigError for a word that `--retry` does not know."""
    if unknown := sorted(words - retry_words()):
        raise ConfigError(f"--retry got {unknown[0]!r}; {nearest(unknown[0], retry_words())}")


def retry_words() -> set[str]:
    """What `--retry` takes: `failed` for all, a reason, or `lost`: whose holder cannot be seen from here."""
    return {"failed", "lost"} | {reason for reason, state in ENDED.items() if state is RunState.FAILED}


def _plan_run(spec: RunSpec, profile: ClusterProfile, folder: RunFolder, choices: Choices) -> PlannedRun:
    nodes, per_node = profile.shape(spec.resources)
    accumulation_steps(spec.config, nodes * per_node)
    limit_s, lead_s = spec.resources.timeout_min * 60, profile.signal_delay_s
    if profile.executor == "slurm" and limit_s < 2 * lead_s:
        raise ConfigError(
            f"resources.timeout_min {spec.resources.timeout_min} leaves no time to train: cluster {profile.name!r} "
            f"tells ranks to stop {lead_s} s before the limit; give at least {-(-2 * lead_s // 60)} minutes"
        )
    status = read_status(folder)
    action, why = _decide(status, folder, choices)
    facts = {
        "code_hash": choices.code_hash,
        "nodes": nodes,
        "processes_per_node": per_node,
        "world_size": nodes * per_node,
        "data_dir": str((choices.data_root / spec.config.data.name).resolve()),
        "overrides": {} if action is Action.RESTART else _overrides(spec, folder),
        "take_over": status.state is RunState.UNKNOWN,
    }
    if action in (Action.RESUME, Action.RETRY):
        _check_world_size(folder, nodes * per_node)
    return PlannedRun(spec, folder, status, action, why, nodes, per_node, facts)


def _decide(status: RunStatus, folder: RunFolder, choices: Choices) -> tuple[Action, str]:
    code = _code_of(folder, status)
    other = code is not None and code != choices.code_hash
    match status.state:
        case RunState.NEW:
            return Action.START, ""
        case RunState.RUNNING:
            return Action.LEAVE, f"attempt {status.attempt} is running, step {status.step}"
        case RunState.UNKNOWN if "lost" not in choices.retry:
            return Action.LEAVE, status.reason
        case RunState.DONE if other:
            return (Action.RESTART, "new code") if choices.new_code else (Action.SKIP, f"done, stale: by code {code}")
        case RunState.DONE:
            return Action.SKIP, "done"
        case _ if other and choices.new_code:
            return Action.RESTART, "new code"
    wanted = status.state is not RunState.FAILED or choices.retry & {"failed", _reason(folder)}
    if wanted and other:
        return Action.REFUSE, f"begun by other code {code}"
    if status.state is not RunState.FAILED:
        return Action.RESUME, f"after step {status.step}: {status.reason}"
    if wanted:
        return Action.RETRY, f"failed: {status.reason}"
    return Action.LEAVE, f"failed: {status.reason} (--retry failed tries again)"


def _code_of(folder: RunFolder, status: RunStatus) -> str | None:
    """Code hash that the run's numbers come from; None when no attempt has begun."""
    try:
        if status.state is RunState.DONE and (result := read_result(folder)):
            return result.code_hash
    except (ValidationError, UnicodeDecodeError):
        raise ConfigError(f"{folder.result} is damaged: put the folder {folder.path} aside and submit again") from None
    attempts = read_attempts(folder)
    return attempts[0].code_hash or None if attempts else None


def _check_world_size(folder: RunFolder, world_size: int) -> None:
    """Raise ConfigError when the run's checkpoints are of another number of processes: they could not be loaded."""
    made_by = read_attempts(folder)[-1].world_size
    if made_by not in (None, world_size) and any(folder.checkpoints.glob("step-*")):
        raise ConfigError(
            f"{folder.run_id} has checkpoints of {made_by} processes, and would now get {world_size}: "
            f"submit it with the resources it was begun with"
        )


def _reason(folder: RunFolder) -> str:
    return read_attempts(folder)[-1].reason or ""


def _overrides(spec: RunSpec, folder: RunFolder) -> dict[str, Any]:
    """Fields that are no identity and differ from the run's immutable spec.json: they hold for the next attempts."""
    if not folder.spec.exists():
        return {}
    try:
        first = RunSpec.model_validate_json(folder.spec.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError):
        raise ConfigError(f"{folder.spec} is damaged: put the folder {folder.path} aside and submit again") from None
    if identity(first.config) != identity(spec.config) or first.data_fingerprint != spec.data_fingerprint:
        raise ConfigError(f"{folder.spec} does not say what its name says: put {folder.path} aside and submit again")
    old, new = _flat(first.config.model_dump(mode="json")), _flat(spec.config.model_dump(mode="json"))
    return {key: value for key, value in new.items() if old.get(key) != value}


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
