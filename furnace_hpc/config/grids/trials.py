"""The trials of a tuned grid, and the runs of its table with the chosen values."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import with_values
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.grids.row import GridRow, runs_on
from furnace_hpc.config.grids.tune import Values, draw_values
from furnace_hpc.config.parsing.run_names import TRIAL
from furnace_hpc.config.train_config import RunSpec, run_ids

NOT_CHOSEN = "values not chosen yet"  # instead of a fingerprint, so that no run has the id


class Tuned(NamedTuple):
    """What values are chosen for: a row on a pack. Each pack has its own trials and choice.

    A pack stands for another draw of the data. So its test samples must not take part in the choice
    that is made for it, not even through the validation samples of another pack.
    """

    row: str
    pack: str


@dataclass(frozen=True)
class Trial:
    """Values that are tried for a row on a pack, and the runs that measure them."""

    number: int  # from 1
    values: Values
    runs: tuple[RunSpec, ...]  # one per seed of `tune`


@dataclass(frozen=True)
class Trials:
    """All trials of a row on a pack."""

    tuned: Tuned
    grid: Grid
    trials: tuple[Trial, ...]

    @property
    def runs(self) -> list[RunSpec]:
        """The runs of all trials."""
        return [run for trial in self.trials for run in trial.runs]

    @cached_property
    def run_ids(self) -> list[list[str]]:
        """The ids of each trial's runs."""
        return [run_ids(trial.runs) for trial in self.trials]

    @cached_property
    def digest(self) -> str:
        """A hash of what decides the choice: metric, direction, and the identity of every run."""
        metric = self.grid.tuning_metric
        hashes = [[run_id.rsplit("-", 2)[1:] for run_id in ids] for ids in self.run_ids]
        content = json.dumps([metric, self.grid.tuning_direction, hashes])
        return hashlib.sha256(content.encode()).hexdigest()[:12]


def expand_trials(
    grid: Grid, rows: Sequence[GridRow], fingerprints: Mapping[str, str]
) -> list[Trials]:
    """The trials of every row and pack. Empty if the grid does not tune.

    Raises:
        ConfigError: a row is not valid with the values of a trial.
    """
    if grid.tune is None:
        return []
    drawn = draw_values(grid.tune)
    found = []
    for row in rows:
        changed = [_of_trial(grid, row, number, values) for number, values in enumerate(drawn, 1)]
        for pack in row.packs:
            trials = [
                Trial(
                    number,
                    values,
                    tuple(runs_on(grid, of_trial, pack, grid.tune.seeds, fingerprints[pack])),
                )
                for number, (values, of_trial) in enumerate(zip(drawn, changed, strict=True), 1)
            ]
            found.append(Trials(Tuned(row.name, pack), grid, tuple(trials)))
    return found


def _of_trial(grid: Grid, row: GridRow, number: int, values: Values) -> GridRow:
    try:
        changed = with_values(grid, row, row.name, values)
    except ConfigError as error:
        first = str(error).splitlines()[0]
        raise ConfigError(
            f"grid {grid.name!r}, row {row.name!r}, trial {number} ({as_text(values)}): {first}"
        ) from None
    return replace(changed, name=f"{row.name}{TRIAL}{number}")


def expand_chosen(
    grid: Grid,
    rows: Sequence[GridRow],
    fingerprints: Mapping[str, str],
    chosen: Mapping[Tuned, Values],
    all_rows: bool = False,
) -> list[RunSpec]:
    """The table's runs of every row and pack with chosen values.

    With `all_rows` it also has the runs that wait for a choice. Their ids are those of no run.
    """
    found = []
    for row in rows:
        for pack in row.packs:
            values = chosen.get(Tuned(row.name, pack))
            if values is not None:
                changed = with_values(grid, row, row.name, values)
                found += runs_on(grid, changed, pack, grid.seeds, fingerprints[pack])
            elif all_rows:
                found += runs_on(grid, row, pack, grid.seeds, NOT_CHOSEN)
    return found


def row_of(variant: str) -> str:
    """The row of a run: the variant, without the number of a trial."""
    return variant.partition(TRIAL)[0]


def as_text(values: Values) -> str:
    """`optimizer.lr 0.001, model.width 64`."""
    return ", ".join(f"{key} {value}" for key, value in values.items())
