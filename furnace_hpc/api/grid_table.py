"""Make the table of a submitted grid, with the states of its runs."""

from dataclasses import replace
from typing import TYPE_CHECKING

from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.runs.folder import GridFolder

if TYPE_CHECKING:
    from furnace_hpc.config.train_config import RunSpec
    from furnace_hpc.runs.folder import RunFolder
    from furnace_hpc.runs.state import RunStatus
    from furnace_hpc.tables.collect import GetStatus
    from furnace_hpc.tables.table import Ablation
    from furnace_hpc.tables.tuning.tuned_rows import Tuning
    from furnace_hpc.tables.view import View


def _with_described_settings(grid: Grid) -> Grid:
    """The grid with its settings in the description."""
    if not grid.settings:
        return grid
    settings = ", ".join(f"{key}={value}" for key, value in grid.settings.items())
    description = f"{grid.description} With {settings}.".strip()
    return grid.model_copy(update={"description": description})


def make_table(
    grid: Grid, folder: GridFolder, view: "View", samples: bool = False, given_name: str = ""
) -> "Ablation":
    """The table of a submitted grid.

    Args:
        grid: the grid with its settings.
        folder: folder of the grid's runs.
        view: another way to show the runs.
        samples: whether to compare accuracies over test samples too.
        given_name: name or path of the grid in the user's command, for errors.

    Raises:
        ConfigError: the grid has no runs, no result has its metric, or no run has a key of the
            view.
    """
    given_view = view
    view = replace(view, by=view.by or grid.by)
    ablation = _make_table(_with_described_settings(grid), folder, view, given_name)
    return _with_more_notes(replace(ablation, suffix=given_view.suffix), samples)


def _make_table(grid: Grid, folder: GridFolder, view: "View", given_name: str) -> "Ablation":
    from furnace_hpc.monitor.run_status import observe_when_asked
    from furnace_hpc.tables.collect import collect
    from furnace_hpc.tables.declared_plan import read_history, with_declared_plan
    from furnace_hpc.tables.large.run_names import ids_of
    from furnace_hpc.tables.other_settings import check_submitted, runs_of_other_settings
    from furnace_hpc.tables.reading.cache import read_records
    from furnace_hpc.tables.reading.submitted import submitted_runs
    from furnace_hpc.tables.tuning.tuned_rows import read_tuning
    from furnace_hpc.tables.view import apply_view, why_no_verdict

    records = read_records(folder)
    submitted = submitted_runs(grid, folder, records, given_name)
    all_runs = submitted.runs
    all_ids = ids_of(all_runs)
    if grid.settings and records.by_run.keys().isdisjoint(all_ids):
        check_submitted(grid, all_ids, folder)
    shown_grid, runs = apply_view(grid, all_runs, view)
    kept = {id(spec) for spec in runs}
    excluded_ids = ids_of([spec for spec in all_runs if id(spec) not in kept])
    other_table_ids: set[str] = set()
    if records.by_run.keys() - all_ids:
        other_table_ids = runs_of_other_settings(grid, folder)
    get_status = observe_when_asked(folder)
    tuning = read_tuning(grid, submitted.trials, submitted.choices, records)
    if tuning:
        other_table_ids |= tuning.run_ids
        get_status = _with_waiting_runs(get_status, tuning, all_runs, folder)
    history = read_history(grid, all_runs, folder)
    ablation = collect(
        shown_grid,
        runs,
        folder,
        get_status,
        view.by,
        excluded_ids,
        records,
        other_table_ids,
        why_no_verdict(grid, all_runs, view),
        len(history.removed) if history else 0,
    )
    if tuning:
        ablation = _with_tuning(ablation, tuning)
    return with_declared_plan(ablation, history)


def _with_tuning(ablation: "Ablation", tuning: "Tuning") -> "Ablation":
    """The table with the trials behind its rows, and notes on them."""
    from furnace_hpc.tables.table import Note
    from furnace_hpc.tables.tuning.words import tuning_notes

    shown = {row.variant for row in ablation.rows}
    notes = [Note(text, (name,) if name in shown else ()) for name, text in tuning_notes(tuning)]
    return replace(ablation, tuning=tuning, notes=(*notes, *ablation.notes))


def _with_waiting_runs(
    get_status: "GetStatus", tuning: "Tuning", runs: "list[RunSpec]", folder: GridFolder
) -> "GetStatus":
    """Like `get_status`. A run whose values are not chosen yet waits, with the reason."""
    from furnace_hpc.config.grids.trials import NOT_CHOSEN, Tuned
    from furnace_hpc.monitor.tuning import choose
    from furnace_hpc.runs.state import RunState, RunStatus

    reasons = {}
    for trials in tuning.undecided:
        found = choose(trials, folder, get_status)
        reasons[trials.tuned] = "all trials have ended: submit again to choose values"
        if isinstance(found, str):
            reasons[trials.tuned] = found
    waiting = {
        run.run_id: reasons[Tuned(run.variant, run.config.data.name)]
        for run in runs
        if run.data_fingerprint == NOT_CHOSEN
    }

    def status(run: "RunFolder") -> "RunStatus":
        if run.run_id in waiting:
            return RunStatus(RunState.NEW, 0, 0, waiting[run.run_id])
        return get_status(run)

    return status


def _with_more_notes(ablation: "Ablation", samples: bool) -> "Ablation":
    """The table with notes from Slurm's accounting, and on samples if wanted."""
    from furnace_hpc.slurm.accounting import describe_hours
    from furnace_hpc.tables.table import Note

    notes = list(ablation.notes)
    if text := describe_hours(
        [attempt for run in ablation.runs for attempt in run.record.ledger()]
    ):
        notes.append(Note(text))
    if samples:
        from furnace_hpc.tables.notes import sample_notes
        from furnace_hpc.tables.reading.samples import compare_samples

        notes += sample_notes(ablation, compare_samples(ablation))
    return replace(ablation, notes=tuple(notes))
