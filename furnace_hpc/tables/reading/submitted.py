"""Find the runs of a submitted grid: of its table, and the trials behind tuned rows."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import expand, expand_rows
from furnace_hpc.config.grids.grid import Grid, load_grid, read_grid
from furnace_hpc.config.grids.trials import Trials, Tuned, expand_chosen, expand_trials
from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.records.choice import Choice, read_choices, values_of
from furnace_hpc.runs.submitted import grid_name, how_to_submit, read_rows
from furnace_hpc.tables.reading.cache import Records, read_records


class SubmittedRuns(NamedTuple):
    """The runs of a grid's table, and the trials that choose the values of its rows."""

    runs: list[RunSpec]
    trials: tuple[Trials, ...] = ()  # empty if rows are not tuned
    choices: Mapping[Tuned, Choice] = {}


def submitted_grid(name_or_path: str, root: Path) -> tuple[Grid, GridFolder]:
    """The grid as it was last submitted below `root`, with its settings, or the grid file.

    Raises:
        ConfigError: there is neither, or the file has problems.
    """
    folder = GridFolder(root / grid_name(name_or_path))
    if folder.grid.exists():
        return read_grid(folder.grid), folder
    return load_grid(name_or_path), folder


def submitted_runs(
    grid: Grid, folder: GridFolder, records: Records | None = None, given_name: str = ""
) -> SubmittedRuns:
    """The grid's runs on the data that was last submitted. A row on other data has missing runs.

    Args:
        grid: the grid.
        folder: folder of the grid's runs.
        records: content of the run files, if it was read before.
        given_name: name or path of the grid in the user's command, for the error. If empty, its
            name.

    Raises:
        ConfigError: no run was ever submitted, the grid has problems, or the file of a choice is
            damaged.
    """
    if records is None:
        records = read_records(folder)
    known = dict(_submitted_data(folder, records))
    if not known:
        root = folder.path.parent
        fix = how_to_submit(given_name or grid.name, root)
        raise ConfigError(f"grid {grid.name!r} has no runs under {root}. {fix}")
    rows = expand_rows(grid)
    fingerprints = {name: "never submitted" for row in rows for name in row.packs} | known
    if grid.tune is None:
        return SubmittedRuns(_with_known_steps(expand(grid, fingerprints, rows), folder))
    trials = tuple(expand_trials(grid, rows, fingerprints))
    choices = read_choices(folder, trials)
    runs = expand_chosen(grid, rows, fingerprints, values_of(choices), all_rows=True)
    return SubmittedRuns(_with_known_steps(runs, folder), trials, choices)


def _with_known_steps(runs: list[RunSpec], folder: GridFolder) -> list[RunSpec]:
    """The runs with the steps of their epochs, which their submissions have computed."""
    if all(run.config.epochs is None for run in runs):
        return runs
    submitted = {
        row.run_id: row.steps
        for submission in folder.all_submissions()
        for row in read_rows(submission / "rows.jsonl")
        if row.epochs is not None
    }
    known = {_length_of(run): submitted.get(run.run_id) for run in runs}
    known |= {_length_of(run): submitted[run.run_id] for run in runs if run.run_id in submitted}
    return [_with_steps(run, known[_length_of(run)]) for run in runs]


def _length_of(run: RunSpec) -> tuple[float | None, int, str]:
    """Runs that are equal in this have the same number of steps, if they have epochs."""
    return run.config.epochs, run.config.global_batch_size, run.data_fingerprint


def _with_steps(run: RunSpec, steps: int | None) -> RunSpec:
    if run.config.epochs is None or steps is None:
        return run
    return run.model_copy(update={"config": run.config.model_copy(update={"steps": steps})})


def _submitted_data(folder: GridFolder, records: Records) -> Iterator[tuple[str, str]]:
    """(data set, fingerprint) of every run, and then of every submission, the newest last."""
    for record in records.by_run.values():
        if record.data is not None and record.fingerprint is not None:
            yield record.data, record.fingerprint
    for submission in folder.all_submissions():
        for row in read_rows(submission / "rows.jsonl"):
            name, fingerprint = row.data
            yield name, fingerprint
