"""Find tables whose rows are all combinations of the levels of factors, and their effects."""

from collections.abc import Sequence
from math import prod

from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.tables.metric import Metric
from furnace_hpc.tables.statistics import factorial
from furnace_hpc.tables.statistics.factorial import CellValues, Factor, FactorEffects
from furnace_hpc.tables.statistics.units import units_of
from furnace_hpc.tables.table import Row, test_per_train
from furnace_hpc.tables.text import format_value

SEVERAL = "several values"  # of a setting that differs between the runs of a row
DATA = "data.name"  # rows on different data are no factor


def factor_effects(
    grid: Grid, rows: Sequence[Row], resolution: float = 0.0, has_verdicts: bool = True
) -> FactorEffects | None:
    """The effects of the factors. None if the rows are not a full product of two factors or more.

    Sanity rows are no part of the product. All other rows need the same planned draws.

    Args:
        grid: the grid as the table shows it.
        rows: all rows of the table.
        resolution: smallest possible change of a value. 0 if unknown.
        has_verdicts: whether the effects have verdicts and simultaneous intervals.
    """
    chosen = [row for row in rows if row.variant not in grid.sanity]
    chosen.sort(key=lambda row: row.variant != grid.reference)  # the reference is the first
    if not chosen or chosen[0].variant != grid.reference:
        return None
    draws = {run.draw for run in chosen[0].runs}
    if any({run.draw for run in row.runs} != draws for row in chosen):
        return None
    found = _full_product(chosen)
    if found is None:
        return None
    factors, combinations = found
    cells, num_units = _values_of(chosen, combinations)
    effects = factorial.estimate(
        list(factorial.contrasts(factors, cells)), resolution, test_per_train(chosen[0].runs)
    )
    runs = tuple(run for row in chosen for run in row.runs)
    gaps = Row("", runs, (), None).gaps
    if has_verdicts:
        metric = Metric(grid.metric, grid.direction)
        sesoi = grid.sesoi and grid.sesoi / metric.scale.factor
        effects = factorial.judge_effects(effects, metric.direction == "max", sesoi, bool(gaps))
    left_out = tuple(row.variant for row in rows if row.variant in grid.sanity)
    return FactorEffects(tuple(factors), tuple(effects), num_units, gaps, left_out)


def _full_product(rows: Sequence[Row]) -> tuple[list[Factor], list[tuple[int, ...]]] | None:
    """The factors, and the levels of each row. None if combinations are missing or doubled.

    Keys that divide the rows in the same way are one factor, such as those of `zip`.
    """
    changes = {change.key: change for row in rows for change in row.changes}
    by_levels: dict[tuple[int, ...], list[str]] = {}
    texts: dict[str, list[str]] = {}
    for key in sorted(changes):
        values = [_value(row, key, changes[key].reference) for row in rows]
        if SEVERAL in values or key == DATA:
            return None
        texts[key] = list(dict.fromkeys(values))
        levels = tuple(texts[key].index(value) for value in values)
        by_levels.setdefault(levels, []).append(key)
    combinations = list(zip(*by_levels, strict=True))
    num_combinations = prod(max(levels) + 1 for levels in by_levels)
    if len(by_levels) < 2 or not len(rows) == len(set(combinations)) == num_combinations:
        return None
    factors = [
        Factor(tuple(keys), tuple(zip(*(texts[key] for key in keys), strict=True)))
        for keys in by_levels.values()
    ]
    return factors, combinations


def _value(row: Row, key: str, reference: object) -> str:
    """The row's value of a key, as text. Different values have different texts."""
    changed = {change.key: change.value for change in row.changes}
    return format_value(changed.get(key, reference))


def _values_of(
    rows: Sequence[Row], combinations: Sequence[tuple[int, ...]]
) -> tuple[CellValues, int]:
    """The values of each combination over the draws that all rows have, and their number."""
    draws = [draw for draw in rows[0].values if all(draw in row.values for row in rows)]
    cells = {
        levels: units_of({draw: row.values[draw] for draw in draws})
        for row, levels in zip(rows, combinations, strict=True)
    }
    return cells, len(cells[combinations[0]])
