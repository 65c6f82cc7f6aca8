"""Find tables whose rows are all combinations of the levels of factors, and their effects.

If the rows are no full product, find its 2 x 2 parts: the reference, two rows, and the row that has
the changes of both.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from math import prod
from typing import NamedTuple

from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.tables.statistics import factorial
from furnace_hpc.tables.statistics.factorial import Factor, FactorEffects
from furnace_hpc.tables.statistics.interactions import CellValues
from furnace_hpc.tables.statistics.units import Draw, units_of
from furnace_hpc.tables.table import Row, test_per_train
from furnace_hpc.tables.text import format_value

SEVERAL = "several values"  # of a setting that differs between the runs of a row
DATA = "data.name"  # rows on different data are no factor
MAX_PARTS = 10  # 2 x 2 parts; with more, their correction would widen all intervals of the table

# levels of the two changes in the reference, in the two rows, and in the row with both
CORNERS: tuple[tuple[int, ...], ...] = ((0, 0), (1, 0), (0, 1), (1, 1))


class Part(NamedTuple):
    """A 2 x 2 part of a table, beside the reference."""

    first: Row
    second: Row
    both: Row

    @property
    def name(self) -> str:
        """The three rows: `full: alpha_only x beta_only`."""
        return f"{self.both.variant}: {self.first.variant} x {self.second.variant}"


def factor_effects(
    grid: Grid, rows: Sequence[Row], resolution: float = 0.0
) -> FactorEffects | None:
    """The effects of the factors, without verdicts.

    None if the rows are not a full product of two factors or more, and contain no 2 x 2 part.
    Sanity rows are no part of a product. The rows of a product need the same planned draws.

    Args:
        grid: the grid as the table shows it.
        rows: all rows of the table.
        resolution: smallest possible change of a value. 0 if unknown.
    """
    chosen = [row for row in rows if row.variant not in grid.sanity]
    chosen.sort(key=lambda row: row.variant != grid.reference)  # the reference is the first
    if not chosen or chosen[0].variant != grid.reference:
        return None
    draws = {run.draw for run in chosen[0].runs}
    ratio = test_per_train(chosen[0].runs)
    with_same_draws = [row for row in chosen if {run.draw for run in row.runs} == draws]
    found = None
    if len(with_same_draws) == len(chosen):
        found = _full_product(chosen)
    if found is None:
        return _effects_of_parts(with_same_draws, resolution, ratio)
    factors, combinations_of_rows = found
    common = _common_draws(chosen)
    cells = _cells(dict(zip(combinations_of_rows, chosen, strict=True)), common)
    return FactorEffects(
        tuple(factors),
        tuple(factorial.estimate(list(factorial.contrasts(factors, cells)), resolution, ratio)),
        len(cells[combinations_of_rows[0]]),
        _gaps(chosen),
        tuple(row.variant for row in rows if row.variant in grid.sanity),
        tuple(factorial.omnibus_tests(factors, cells, resolution, ratio)),
    )


def _effects_of_parts(rows: Sequence[Row], resolution: float, ratio: float) -> FactorEffects | None:
    """The interactions in the 2 x 2 parts. None without parts, or with more than MAX_PARTS."""
    parts = list(_parts(rows))
    if not parts or len(parts) > MAX_PARTS:
        return None
    reference = rows[0]
    used = list({row.variant: row for part in parts for row in (reference, *part)}.values())
    common, found = _common_draws(used), []
    for part in parts:
        rows_of_part = (reference, part.first, part.second, part.both)
        of_part = dict(zip(CORNERS, rows_of_part, strict=True))
        found.append(factorial.part_contrast(part.name, _cells(of_part, common)))
    effects = tuple(factorial.estimate(found, resolution, ratio))
    num_units = len(units_of({draw: reference.values[draw] for draw in common}))
    return FactorEffects((), effects, num_units, _gaps(used))


def _parts(rows: Sequence[Row]) -> Iterator[Part]:
    """The 2 x 2 parts that contain the reference, in the order of the rows."""
    changes = {row.variant: _change_texts(row) for row in rows[1:]}
    known = [row for row in rows[1:] if changes[row.variant]]
    by_changes = {frozenset(changes[row.variant].items()): row for row in known}
    for first, second in _pairs_without_common_keys(known, changes):
        one, other = changes[first.variant], changes[second.variant]
        both = by_changes.get(frozenset((one | other).items()))
        if both is not None:
            yield Part(first, second, both)


def _pairs_without_common_keys(
    rows: Sequence[Row], changes: Mapping[str, Mapping[str, str]]
) -> Iterator[tuple[Row, Row]]:
    """Pairs of rows that change different keys, in the order of the rows.

    Rows are grouped by their keys, so a sweep of one key takes no time for each pair of its rows.
    """
    groups: dict[frozenset[str], list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(frozenset(changes[row.variant]), []).append(number)
    disjoint = {
        keys: [group for other, group in groups.items() if not keys & other] for keys in groups
    }
    for number, row in enumerate(rows):
        others = chain(*disjoint[frozenset(changes[row.variant])])
        for other in sorted(later for later in others if later > number):
            yield row, rows[other]


def _change_texts(row: Row) -> dict[str, str]:
    """Key -> value of what the row changes. Empty if it cannot be in a part."""
    texts = {change.key: format_value(change.value) for change in row.changes}
    sides = [side for change in row.changes for side in (change.reference, change.value)]
    if DATA in texts or SEVERAL in map(format_value, sides):
        return {}
    return texts


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
    combinations_of_rows = list(zip(*by_levels, strict=True))
    num_combinations = prod(max(levels) + 1 for levels in by_levels)
    num_different = len(set(combinations_of_rows))
    if len(by_levels) < 2 or not len(rows) == num_different == num_combinations:
        return None
    factors = [
        Factor(tuple(keys), tuple(zip(*(texts[key] for key in keys), strict=True)))
        for keys in by_levels.values()
    ]
    return factors, combinations_of_rows


def _value(row: Row, key: str, reference: object) -> str:
    """The row's value of a key, as text. Different values have different texts."""
    changed = {change.key: change.value for change in row.changes}
    return format_value(changed.get(key, reference))


def _common_draws(rows: Sequence[Row]) -> list[Draw]:
    """The draws for which all rows have a value."""
    return [draw for draw in rows[0].values if all(draw in row.values for row in rows)]


def _cells(rows: Mapping[tuple[int, ...], Row], draws: Sequence[Draw]) -> CellValues:
    """The values of each combination over these draws."""
    return {
        levels: units_of({draw: row.values[draw] for draw in draws}) for levels, row in rows.items()
    }


def _gaps(rows: Sequence[Row]) -> str:
    """The runs without a value."""
    return Row("", tuple(run for row in rows for run in row.runs), (), None).gaps
