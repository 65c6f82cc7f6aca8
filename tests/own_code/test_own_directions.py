"""Metrics of own code: nothing is chosen or compared before their better direction is given."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from own_code_study import PACKAGE, write_grid, write_package

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import expand, expand_rows
from furnace_hpc.config.grids.grid import Grid, read_grid
from furnace_hpc.tables.view import View, apply_view

OWN = {"evaluation.extra": {f"{PACKAGE}.losses:error_rate": {}}}
TABLE, SELECTION = "test/digit/error_rate", "val/digit/error_rate"
TUNE = {"space": {"optimizer.lr": {"log": [1e-4, 1e-2]}}, "trials": 2, "seeds": [9]}


def study(folder: Path, row: dict[str, Any] = OWN, **changes: Any) -> Grid:
    write_package(folder)
    return read_grid(write_grid(folder, {"own": row}, **changes))


@pytest.mark.parametrize(
    ("row", "changes", "words"),
    [
        ({}, {"metric": TABLE}, "Add direction: max or direction: min to the grid"),
        ({"evaluation.metric": SELECTION}, {}, "Add evaluation.direction: max or min"),
        ({"evaluation.direction": "min"}, {}, "evaluation.direction min contradicts metric"),
        ({}, {"tune": TUNE | {"metric": SELECTION}}, "Tune with the same metric or a built-in"),
    ],
    ids=["table", "selection", "built-in", "tuning"],
)
def test_own_metrics_need_a_direction(tmp_path, row, changes, words):
    with pytest.raises(ConfigError) as error:
        expand_rows(study(tmp_path, OWN | row, **changes))
    assert words in str(error.value)


def test_steps_are_selected_by_the_direction(tmp_path):
    row = OWN | {"evaluation.metric": SELECTION, "evaluation.direction": "min"}
    assert expand_rows(study(tmp_path, row))[0].config.selection_direction == "min"


def test_trials_are_chosen_by_the_direction(tmp_path):
    grid = study(tmp_path, metric=TABLE, direction="min", tune=TUNE)
    expand_rows(grid)
    assert (grid.tuning_metric, grid.tuning_direction) == (SELECTION, "min")
    copy = Grid.model_validate(grid.model_dump(mode="json"))
    assert copy.tuning_direction == "min"


def test_a_view_by_an_own_metric_needs_a_direction(tmp_path):
    grid = study(tmp_path)
    runs, view = expand(grid, {"tridigits": "f" * 16}), View(metric=TABLE)
    with pytest.raises(ConfigError, match="Add --direction max or --direction min"):
        apply_view(grid, runs, view)
    shown, _ = apply_view(grid, runs, replace(view, direction="min"))
    assert shown.direction == "min"
