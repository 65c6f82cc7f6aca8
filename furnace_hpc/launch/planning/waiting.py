"""Hold back runs until the runs that they take their first weights from are done."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from furnace_hpc.launch.planning.plan import Action, PlannedRun
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.state import RunState, RunStatus

GetStatus = Callable[[RunFolder], RunStatus]


def hold_back(
    planned: Sequence[PlannedRun], folder: GridFolder, get_status: GetStatus
) -> list[PlannedRun]:
    """The planned runs, where those whose sources are not done wait.

    A run that has begun has its weights, so it does not wait.
    """
    known = {run.folder.run_id: run for run in planned}
    found = []
    for run in planned:
        if run.action in (Action.START, Action.RESTART):
            reasons = [
                reason
                for source in run.spec.config.init_from
                if source.run_id
                and (reason := _reason(source.run_id, known.get(source.run_id), folder, get_status))
            ]
            if reasons:
                run = replace(run, action=Action.WAIT, why="; ".join(reasons))
        found.append(run)
    return found


def _reason(
    run_id: str, source: PlannedRun | None, folder: GridFolder, get_status: GetStatus
) -> str:
    """Why a run must wait for its source. Empty if the source is done."""
    if source is None:
        status = get_status(folder.run(run_id))
        if status.state is RunState.DONE:
            return ""
        return f"needs the weights of {run_id}, which is not done. Choose its row too"
    if source.action is Action.SKIP or source.adopts:
        return ""
    if source.status.state is RunState.FAILED and not source.to_do:
        return f"needs the weights of {run_id}, which failed: {source.status.reason}"
    return f"needs the weights of {run_id}, which is trained first"
