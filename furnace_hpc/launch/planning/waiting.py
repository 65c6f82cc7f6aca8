"""Hold back runs until the runs that they take their first weights from are done."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from furnace_hpc.launch.planning.plan import Action, PlannedRun
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.state import RunState, RunStatus

GetStatus = Callable[[RunFolder], RunStatus]


def hold_back(
    planned: Sequence[PlannedRun], folder: GridFolder, get_status: GetStatus
) -> list[PlannedRun]:
    """The planned runs, where those whose sources are not done wait.

    So do those that would resume, because each attempt reads its sources.
    """
    known = {run.folder.run_id: run for run in planned}

    def state_of(run_id: str) -> str:
        if run_id in known:
            source = known[run_id]
            return (source.to_do and why_of(source)) or _planned_state(source)
        status = get_status(folder.run(run_id))
        match status.state:
            case RunState.DONE:
                return ""
            case RunState.FAILED:
                return f"failed: {status.reason}"
        return "not done. Choose its row too"

    def why_of(run: PlannedRun) -> str:
        names = [source.run_id for source in run.spec.config.init_from if source.run_id]
        return _reason({name: state for name in names if (state := state_of(name))})

    return [
        replace(run, action=Action.WAIT, why=why) if run.to_do and (why := why_of(run)) else run
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
