"""Choose one run of each kind as a canary, and hold the others back until it was measured."""

from collections.abc import Sequence
from dataclasses import replace

from furnace_hpc.launch.measured.history import History
from furnace_hpc.launch.planning.plan import Action, Choices, Plan, PlannedRun
from furnace_hpc.runs.records.attempts import Attempt
from furnace_hpc.runs.state import RunState

STEPS = 20  # that a canary trains
RECORDS = 5  # of them in its metrics
MINUTES = 30  # time limit of a canary, unless the grid's is shorter
BUSY = (RunState.QUEUED, RunState.RUNNING, RunState.UNKNOWN)


def with_canaries(plan: Plan, history: History, choices: Choices) -> Plan:
    """The plan in which unmeasured kinds start only their canaries, and its other runs wait.

    A kind has one canary, or as many as share a node. A kind with no more runs needs none. After a
    failed canary all runs of its kind wait, until one of them is done or the failed run is started
    again.
    """
    runs = list(plan.runs)
    for kind, indices in history.kinds.items():
        members = [runs[index] for index in indices]
        to_do = [index for index in indices if runs[index].to_do]
        if failed := failed_canary(members):
            why = f"held back, because the canary {failed.folder.run_id} failed: "
            why += failed.status.reason
        elif not to_do or history.cost(kind):
            continue
        elif busy := _busy(members):
            why = f"waits for the canary {busy.folder.run_id}"
        elif len(to_do) <= runs[to_do[0]].shape.runs_per_node:
            continue
        else:  # runs that share a node are measured beside each other
            shape = runs[to_do[0]].shape
            first, to_do = to_do[: shape.runs_per_node], to_do[shape.runs_per_node :]
            longest_min = choices.longest_min(shape.partition or plan.profile.partition)
            for index in first:
                runs[index] = as_canary(runs[index], plan.profile.signal_delay_s, longest_min)
            why = f"waits for the canary {runs[first[0]].folder.run_id}"
        for index in to_do:
            runs[index] = replace(runs[index], action=Action.WAIT, why=why)
    return replace(plan, runs=tuple(runs))


def as_canary(run: PlannedRun, signal_delay_s: int, longest_min: int | None) -> PlannedRun:
    """The run as a canary: it stops after some steps, with several records and a short limit."""
    minutes = min(run.shape.timeout_min, max(MINUTES, -(-2 * signal_delay_s // 60)))
    if longest_min is not None:
        minutes = min(minutes, longest_min)
    log_every = max(1, min(run.spec.config.log_every, STEPS // RECORDS))
    overrides = dict(run.attempt.overrides)
    if log_every != run.spec.config.log_every:
        overrides["log_every"] = log_every
    limit_s = run.attempt.time_limit_s
    attempt = run.attempt._replace(
        stop_after_steps=STEPS,
        overrides=overrides,
        time_limit_s=None if limit_s is None else 60 * minutes,
    )
    return replace(
        run,
        why="; ".join(filter(None, (run.why, f"canary: stops after {STEPS} steps"))),
        shape=run.shape._replace(timeout_min=minutes),
        attempt=attempt,
    )


def is_canary(run: PlannedRun) -> bool:
    """Whether the submission starts the run as a canary."""
    return run.to_do and run.attempt.stop_after_steps is not None


def failed_canary(members: Sequence[PlannedRun]) -> PlannedRun | None:
    """The failed canary of a kind. None if there is none, or a run of the kind is done since."""
    if any(run.status.state is RunState.DONE for run in members):
        return None
    for run in members:
        if run.status.state is RunState.FAILED and not run.to_do and _was_canary(run):
            return run
    return None


def fitting_micro_batch(members: Sequence[PlannedRun]) -> int | None:
    """The halved micro-batch of a canary that ran out of memory at first. None if none did."""
    for run in members:
        for attempt in run.history.attempts:
            size = attempt.overrides.get("micro_batch_size")
            if attempt.reason == "canary" and isinstance(size, int) and _was_halved(run):
                return size
    return None


def _was_halved(run: PlannedRun) -> bool:
    return any(attempt.reason == "oom_halved" for attempt in run.history.attempts)


def _busy(members: Sequence[PlannedRun]) -> PlannedRun | None:
    """A run of the kind that has a job."""
    for run in members:
        if run.action is Action.LEAVE and run.status.state in BUSY:
            return run
    return None


def _was_canary(run: PlannedRun) -> bool:
    newest: Attempt | None = run.history.newest
    return newest is not None and newest.stop_after_steps is not None
