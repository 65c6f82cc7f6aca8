"""Another look at the runs of a grid: another metric, some of the runs, rows by the values of a key."""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.metrics import checked_direction
from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.tables.collect import as_number, flat_config, row_name, word


@dataclass(frozen=True)
class View:
    """What `aggregate` was asked to show; empty: the table that the grid file describes."""

    metric: str | None = None
    direction: Literal["max", "min"] | None = None
    by: tuple[str, ...] = ()  # keys whose values make the rows
    # key=value; of one key several are alternatives, of several keys all must hold
    where: tuple[str, ...] = ()

    @property
    def suffix(self) -> str:
        """What the folder of its results is called by, so that a look spoils no table; empty for the grid's own."""
        parts = [
            self.metric or "",
            self.direction or "",
            *(f"by {key}" for key in self.by),
            *self.where,
        ]
        return re.sub(r"[^A-Za-z0-9._+-]+", "-", " ".join(part for part in parts if part)).strip(
            "-"
        )


def apply_view(grid: Grid, runs: list[RunSpec], view: View) -> tuple[Grid, list[RunSpec]]:
    """The grid and the runs as the view shows them.

    Raises:
        ConfigError: a key that no run has, a value that none has, or nothing left of the reference.
    """
    for key in view.by:
        _check_key(key, runs, "--by")
    kept = _kept(runs, view.where)
    references = [spec for spec in kept if spec.variant == grid.reference]
    if not references:
        raise ConfigError(
            f"--where {' '.join(view.where)} leaves no run of the reference {grid.reference!r}, which differences are "
            f"taken to: let it match those too{_with_reference(grid, view.where)}"
        )
    changes: dict[str, object] = {
        "seeds": tuple(seed for seed in grid.seeds if seed in {s.config.seed for s in kept})
    }
    if grid.packs:
        there = {spec.config.data.name for spec in kept}
        changes["packs"] = (
            () if "data.name" in view.by else tuple(pack for pack in grid.packs if pack in there)
        )
    # rows of several variants: what a sanity row is to be compared with is not a row any more
    if view.by:
        changes |= {"reference": row_name(references[0], view.by), "sanity": ()}
    else:
        changes["sanity"] = tuple(
            name for name in grid.sanity if name in {spec.variant for spec in kept}
        )
    if view.metric or view.direction:
        metric = view.metric or grid.metric
        asked = view.direction or (grid.direction if metric == grid.metric else None)
        changes |= {"metric": metric, "direction": checked_direction(metric, asked)}
    if view.where:
        changes["description"] = f"{grid.description} Where {', '.join(view.where)}.".strip()
    return grid.model_copy(update=changes), kept


def _with_reference(grid: Grid, where: tuple[str, ...]) -> str:
    """The option that adds the reference's runs to a choice of rows."""
    rows_only = all(condition.startswith("variant=") for condition in where)
    return f", by --where variant={grid.reference}" if rows_only else ""


def _kept(runs: list[RunSpec], where: tuple[str, ...]) -> list[RunSpec]:
    wanted: dict[str, list[str]] = {}
    for condition in where:
        key, equals, value = condition.partition("=")
        if not equals or not key:
            raise ConfigError(
                f"--where got {condition!r}, wanted key=value, for example --where loss.alpha=0.5"
            )
        wanted.setdefault(key, []).append(value)
    for key, values in wanted.items():
        _check_key(key, runs, "--where")
        there = {_text(spec, key) for spec in runs}
        for value in values:
            if not any(_matches(text, value) for text in there):
                raise ConfigError(f"--where {key}={value} matches no run; {nearest(value, there)}")
    return [
        spec
        for spec in runs
        if all(
            any(_matches(_text(spec, key), value) for value in values)
            for key, values in wanted.items()
        )
    ]


def _matches(text: str, wanted: str) -> bool:
    """Whether a value is the wanted one: as text (with * and ?), or as a number, so that 1e-3 is 0.001."""
    if text == wanted or fnmatchcase(text, wanted):
        return True
    number = as_number(wanted)
    return number is not None and number == as_number(text)


def _text(spec: RunSpec, key: str) -> str:
    values = flat_config(spec)
    return word(values[key]) if key in values else ""


def _check_key(key: str, runs: list[RunSpec], option: str) -> None:
    keys = {key for spec in runs for key in flat_config(spec)}
    if key not in keys:
        raise ConfigError(f"{option} {key}: no run has this key; {nearest(key, keys)}")
