"""Hold back runs until the runs that they take their first weights from are done."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache

from furnace_hpc.launch.planning.plan import Action, PlannedRun
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.state import RunState, RunStatus

GetStatus = Callable[[RunFolder], RunStatus]


def hold_back(
    planned: Sequence[PlannedRun], folder: GridFolder, get_status: GetStatus, new_code: bool
) -> list[PlannedRun]:
    """The planned runs, where those whose sources are not done wait.

    So do those that would resume, because each attempt reads its sources. With `--code new` done
    runs wait too: a source that is trained again may have other weights, and then they are stale.
    """
    known = {run.folder.run_id: run for run in planned}

    def state_of(run_id: str) -> str:
        if run_id in known:
            return why_of(run_id) or _planned_state(known[run_id])
        status = get_status(folder.run(run_id))
        match status.state:
            case RunState.DONE:
                return ""
            case RunState.FAILED:
                return f"failed: {status.reason}"
        return "not done. Choose its row too"

    def is_deleted(run_id: str) -> bool:
        """Whether the user has deleted a source, after the runs that need it."""
        return run_id not in known and get_status(folder.run(run_id)).state is RunState.NEW

    @cache
    def why_of(run_id: str) -> str:
        """Why a run waits. Empty if it does not."""
        run = known[run_id]
        may_be_stale = new_code and run.action is Action.SKIP
        if not (run.to_do or may_be_stale):
            return ""
        names = [source.run_id for source in run.spec.config.init_from if source.run_id]
        if may_be_stale:
            names = [name for name in names if not is_deleted(name)]
        reason = _reason({name: state for name in names if (state := state_of(name))})
        if reason and may_be_stale:
            return f"done, and replaced if its source has other weights then: {reason}"
        return reason

    return [
        replace(run, action=Action.WAIT, why=why, adopts=None)
        if (why := why_of(run.folder.run_id))
        else run
        for run in planned
    ]


def _planned_state(source: PlannedRun) -> str:
    """What keeps a planned run from being a source. Empty if it is done."""
    if source.action is Action.SKIP or source.adopts:
        return ""
    if source.status.state is RunState.FAILED and not source.to_do:
        return f"failed: {source.status.reason}"
    return "trained first"


def _reason(states: Mapping[str, str]) -> str:
    """Why a run waits, from run id -> state of each source that is not done."""
    by_state: dict[str, list[str]] = {}
    for run_id, state in states.items():
        by_state.setdefault(state, []).append(run_id)
    parts = [(", ".join(run_ids), state) for state, run_ids in by_state.items()]
    return "; ".join(f"needs the weights of {names} ({state})" for names, state in parts)
