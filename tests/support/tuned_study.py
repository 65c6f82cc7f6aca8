"""A tuned study for tests: run folders of trials with invented results."""

from pathlib import Path
from typing import Any

from tables_study import FINGERPRINT, GRID, fail, finish

from furnace_hpc.config.grids.expansion import expand_rows
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.grids.row import GridRow
from furnace_hpc.config.grids.trials import Trials, expand_trials
from furnace_hpc.runs.folder import GridFolder

TUNE: dict[str, Any] = {
    "space": {"optimizer.lr": {"log": [3e-4, 3e-2]}},
    "trials": 3,
    "seeds": [100, 101],
    "metric": "val/digit/accuracy",
}
ROWS = {"base": {}, "full": {"loss.alpha": 0.5}}
PRINTS = {"tridigits": FINGERPRINT}
FAILS = None  # instead of a result


def tuned_grid(tune: dict[str, Any] | None = None, **changes: Any) -> Grid:
    content = GRID | {"seeds": [0, 1, 2], "variants": ROWS, "tune": TUNE | (tune or {})}
    return Grid.model_validate(content | changes)


def trials_of(grid: Grid, *rows: str) -> list[Trials]:
    found = [row for row in expand_rows(grid) if not rows or row.name in rows]
    return expand_trials(grid, found, {**PRINTS, "a": "a" * 16, "b": "b" * 16})


def rows_of(grid: Grid) -> list[GridRow]:
    return expand_rows(grid)


def end_trials(trials: Trials, folder: GridFolder, *results: Any, **changes: Any) -> None:
    """End the runs of the first trials: a value for all seeds of one, or a list of values."""
    for trial, of_trial in zip(trials.trials, results, strict=False):
        values = of_trial if isinstance(of_trial, list) else [of_trial] * len(trial.runs)
        for run, value in zip(trial.runs, values, strict=True):
            if value is FAILS:
                fail(run, folder, "FloatingPointError: the loss is nan")
            else:
                finish(run, folder, metrics={"val/digit/accuracy": value}, **changes)


def folder_at(path: Path) -> GridFolder:
    return GridFolder(path / "study")
