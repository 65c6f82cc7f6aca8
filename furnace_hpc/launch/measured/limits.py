"""Time limits of the runs of a plan, and their forecast, from measured runs of the same kind."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.plural import counted
from furnace_hpc.config.sections.resources import AUTO, Resources
from furnace_hpc.launch.measured.canary import (
    failed_canary,
    fitting_micro_batch,
    is_canary,
    with_canaries,
)
from furnace_hpc.launch.measured.history import History
from furnace_hpc.launch.planning.plan import Action, Choices, Plan, PlannedRun
from furnace_hpc.launch.planning.shared_nodes import local_runs_per_gpu
from furnace_hpc.monitor.forecast.cost import RunCost, TimeLimit, Work
from furnace_hpc.monitor.forecast.recorded import Forecast, RunForecast
from furnace_hpc.slurm.client import has_slurm, time_limit_min

MAX_LINES = 6  # kinds that are described


def site_longest_min(profile: ClusterProfile) -> Callable[[str | None], int | None]:
    """What returns the longest time limit of a partition: Slurm, if it is there."""
    if profile.executor == "slurm" and has_slurm():
        return lambda partition: time_limit_min(partition, profile.account, profile.qos)
    return lambda _: None


def default_limit(resources: Resources, profile: ClusterProfile) -> int:
    """The time limit of a run of which nothing was measured, in minutes."""
    if isinstance(resources.timeout_min, int):
        return resources.timeout_min
    return profile.timeout_min


@dataclass
class _Kinds:
    """What the lines about a plan need."""

    measured: dict[str, str] = field(default_factory=dict)  # limit -> what it follows from
    capped: dict[str, int] = field(default_factory=dict)  # sentence -> number of runs
    default: dict[int, int] = field(default_factory=dict)  # minutes -> number of runs


def measured_plan(plan: Plan, choices: Choices) -> Plan:
    """The plan with canaries, measured time limits and micro-batches, and a forecast.

    Args:
        plan: a plan whose limits are those of grid and profile.
        choices: whether canaries are wanted, and the longest limit of a partition.
    """
    is_auto = any(run.spec.resources.timeout_min == AUTO for run in plan.to_do)
    if not (is_auto or choices.canary or any(run.history.attempts for run in plan.runs)):
        return plan  # nothing was measured
    history = History(plan, with_earlier=is_auto or choices.canary)
    notes = list(_failed(plan, history, choices))
    if choices.canary:
        plan = with_canaries(plan, history, choices)
    runs, lines, limits = list(plan.runs), _Kinds(), dict[int, TimeLimit]()
    for kind, indices in history.kinds.items():
        to_do = [index for index in indices if runs[index].to_do]
        if not to_do:
            continue
        size = fitting_micro_batch([runs[index] for index in indices])
        for index in to_do:
            runs[index] = _with_micro_batch(runs[index], size)
            cost = history.cost(kind)
            if plan.profile.executor == "slurm" and _is_measured(runs[index], choices):
                limits[index] = _limit(runs[index], cost, plan.profile, choices, lines)
                runs[index] = _with_limit(runs[index], limits[index].minutes)
    forecast = _forecast(replace(plan, runs=tuple(runs)), history, limits)
    notes += _lines(lines, plan.profile)
    if forecast:
        notes.append(f"forecast: {forecast.describe()}")
    return replace(plan, runs=tuple(runs), forecast=forecast, notes=tuple(notes))


def _failed(plan: Plan, history: History, choices: Choices) -> Iterator[str]:
    """Yield a line for each failed canary."""
    for indices in history.kinds.values():
        members = [plan.runs[index] for index in indices]
        waiting = sum(run.to_do for run in members)
        if (failed := failed_canary(members)) and waiting:
            runs = counted(waiting, "run")
            then = f"{runs} of its kind start now, as --canary is not given"
            if choices.canary:
                then = f"{runs} of its kind are held back. Correct the cause, or start the canary "
                then += "again with --retry failed"
            yield f"the canary {failed.folder.run_id} failed: {failed.status.reason}. {then}"


def _is_measured(run: PlannedRun, choices: Choices) -> bool:
    """Whether the limit of a run follows from measurements."""
    is_wanted = choices.canary or run.spec.resources.timeout_min == AUTO
    return is_wanted and not is_canary(run)


def _with_micro_batch(run: PlannedRun, size: int | None) -> PlannedRun:
    """A new run of a kind whose canary fitted into memory with half of the micro-batch."""
    if size is None or run.action is not Action.START:
        return run
    if run.spec.config.needs_micro_batch or "micro_batch_size" in run.attempt.overrides:
        return run
    overrides = run.attempt.overrides | {"micro_batch_size": size}
    return replace(run, attempt=run.attempt._replace(overrides=overrides))


def _limit(
    run: PlannedRun,
    cost: RunCost | None,
    profile: ClusterProfile,
    choices: Choices,
    lines: _Kinds,
) -> TimeLimit:
    """The time limit of a run. A number in the grid is the most that it can be."""
    partition = run.shape.partition or profile.partition
    given, longest = run.spec.resources.timeout_min, choices.longest_min(partition)
    most = min((limit for limit in (given, longest) if isinstance(limit, int)), default=None)
    if cost is None:
        minutes = default_limit(run.spec.resources, profile)
        if most is not None:
            minutes = min(minutes, most)
        lines.default[minutes] = lines.default.get(minutes, 0) + 1
        return TimeLimit(minutes)
    work = Work.of_run(run.spec.config, _first_step(run))
    limit = cost.time_limit(work, profile.signal_delay_s, most)
    lines.measured.setdefault(f"{limit.minutes} min", cost.describe())
    if limit.attempts > 1:
        text = f"the limit is {limit.minutes} min, so about {limit.attempts} attempts are expected"
        if limit.minutes < limit.least_min:
            text += (
                f". A start and {counted(work.save_every, 'step')} up to a checkpoint need "
                f"{limit.least_min} min: lower checkpoint_every, or use another partition"
            )
        lines.capped[text] = lines.capped.get(text, 0) + 1
    return limit


def _first_step(run: PlannedRun) -> int:
    """The step that the next attempt begins after."""
    return run.status.step if run.action.resumes else 0


def _with_limit(run: PlannedRun, minutes: int) -> PlannedRun:
    attempt = run.attempt._replace(time_limit_s=60 * minutes)
    return replace(run, shape=run.shape._replace(timeout_min=minutes), attempt=attempt)


def _lines(lines: _Kinds, profile: ClusterProfile) -> Iterator[str]:
    """Yield what is printed about time limits."""
    for minutes, count in lines.default.items():
        yield (
            f"time limit of {counted(count, 'run')}: {minutes} min, as no run of that kind was "
            f"measured (timeout_min in the grid or in profile {profile.name})"
        )
    measured = list(lines.measured.items())
    for limit, basis in measured[:MAX_LINES]:
        yield f"time limit {limit}: {basis}"
    if len(measured) > MAX_LINES:
        yield f"... and {len(measured) - MAX_LINES} more time limits"
    for text, count in list(lines.capped.items())[:MAX_LINES]:
        yield f"{counted(count, 'run')}: {text}"


def _forecast(plan: Plan, history: History, limits: dict[int, TimeLimit]) -> Forecast | None:
    """The forecast of the runs to start, canaries left out. None if none of them is measured."""
    runs: dict[str, RunForecast] = {}
    unknown, measured, groups = 0, 0, list(plan.shapes)
    is_local = plan.profile.executor == "local"
    width, gpus = _slots(plan) if is_local and plan.to_do else (1, 0)
    num_first = width  # runs that wait for the first ranks of a local queue
    for kind, indices in history.kinds.items():
        to_do = [index for index in indices if plan.runs[index].to_do]
        cost = history.cost(kind) if to_do else None
        if cost is None:
            unknown += len(to_do)
            continue
        measured += cost.num_runs
        for index in to_do:
            run = plan.runs[index]
            work = Work.of_run(run.spec.config, _first_step(run))
            seconds = cost.time_of(work, is_launched=not is_local)
            if is_local and num_first:
                seconds, num_first = seconds + cost.first_launch, num_first - 1
            attempts = limits[index].attempts if index in limits else 1
            seconds += cost.start * (attempts - 1)
            runs[run.folder.run_id] = RunForecast(
                seconds=seconds.as_tuple(),
                step=_first_step(run),
                nodes=run.shape.nodes / run.shape.runs_per_node,
                gpus=gpus if is_local else run.attempt.gpus,
                group=0 if is_local else groups.index(run.shape),
            )
    if not runs:
        return None
    in_order = [run.folder.run_id for run in plan.runs if run.folder.run_id in runs]
    jobs = plan.profile.array_parallelism
    parallel = [min(jobs * shape.runs_per_node, len(plan.shapes[shape])) for shape in groups]
    return Forecast(
        made_unix_s=round(time.time(), 3),
        runs={name: runs[name] for name in in_order},
        parallel=(width,) if is_local else tuple(parallel),
        num_unknown=unknown,
        measured_runs=measured,
    )


def _slots(plan: Plan) -> tuple[int, int | float]:
    """How many runs the local queue starts at a time, and the GPUs of each."""
    from furnace_hpc.launch.local_queue import find_slots

    on_gpus = not all(run.spec.config.portable for run in plan.to_do)
    world_size = max(run.world_size for run in plan.to_do)
    try:
        slots = find_slots(world_size, on_gpus, local_runs_per_gpu(plan))
    except ConfigError:  # of CUDA_VISIBLE_DEVICES: the queue reports it
        return 1, 0
    return slots.width, slots.cost_of(0)
