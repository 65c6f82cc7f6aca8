"""Find a grid's runs that were submitted with other settings (`--set`) than those of the table."""

import json
from collections.abc import Collection
from pathlib import Path

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.ablate import Overrides
from furnace_hpc.config.grids.grid import Grid, read_grid
from furnace_hpc.config.parsing.plural import counted, is_are
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.submitted import grid_command, read_rows, set_options

MAX_SHOWN = 5


def check_submitted(grid: Grid, run_ids: Collection[str], folder: GridFolder) -> None:
    """Check that the grid was submitted with its settings.

    Args:
        grid: the grid with its settings.
        run_ids: the runs of its table.
        folder: folder of the grid's runs.

    Raises:
        ConfigError: only runs with other settings were submitted.
    """
    own, others = _runs_by_settings(grid, folder)
    # a tuned grid may have submitted trials alone, which are no runs of its table
    if own or not others or any(not ids.isdisjoint(run_ids) for _, ids in others):
        return
    given = " ".join(set_options(grid.settings))
    tables = [grid_command("aggregate", folder, *set_options(one)) for one, _ in others]
    listed = ", or ".join(f"`{command}`" for command in tables[:MAX_SHOWN])
    raise ConfigError(
        f"no run of grid {grid.name!r} was submitted with {given}. "
        f"Submitted runs have their table with {listed}"
    )


def other_settings(grid: Grid, folder: GridFolder) -> list[str]:
    """One line per other settings with finished runs: how many, and the command for their table."""
    found = []
    for settings, run_ids in _runs_by_settings(grid, folder)[1]:
        done = sum(folder.run(run_id).result.is_file() for run_id in run_ids)
        if done:
            command = grid_command("aggregate", folder, *set_options(settings))
            found.append(
                (-done, f"{done} of {counted(len(run_ids), 'run')} {is_are(done)} done: {command}")
            )
    found.sort()
    lines = [line for _, line in found[:MAX_SHOWN]]
    if len(found) > MAX_SHOWN:
        lines.append(f"and {len(found) - MAX_SHOWN} more settings")
    return lines


def runs_of_other_settings(grid: Grid, folder: GridFolder) -> set[str]:
    """Ids of runs that were submitted with other settings only. They have a table of their own."""
    own, others = _runs_by_settings(grid, folder)
    return {run_id for _, run_ids in others for run_id in run_ids} - own


def _runs_by_settings(
    grid: Grid, folder: GridFolder
) -> tuple[set[str], list[tuple[Overrides, set[str]]]]:
    """Ids of the runs submitted with the grid's settings, and with each of the other settings."""
    settings: dict[str, Overrides] = {}
    runs: dict[str, set[str]] = {}
    for submission in folder.all_submissions():
        content = _read_submission(submission)
        if content is None:
            continue
        of_submission, run_ids = content
        key = json.dumps(of_submission, sort_keys=True)
        settings[key] = of_submission
        runs.setdefault(key, set()).update(run_ids)
    own = json.dumps(_deciding(grid.settings), sort_keys=True)
    others = [(settings[key], runs[key]) for key in sorted(settings.keys() - {own})]
    return runs.get(own, set()), others


def _read_submission(path: Path) -> tuple[Overrides, set[str]] | None:
    """Settings and run ids of a submission. None if it is incomplete or damaged."""
    try:
        settings = _deciding(read_grid(path / "grid.yaml").settings)
        rows = read_rows(path / "rows.jsonl")
    except (ConfigError, OSError):
        return None
    return (settings, {row.run_id for row in rows}) if rows else None


def _deciding(settings: Overrides) -> Overrides:
    """The settings that can change a number."""
    return {key: value for key, value in settings.items() if not key.startswith("resources.")}
