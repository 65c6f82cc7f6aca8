"""Compute the statistics of the pairs of each row once per table."""

from furnace_hpc.tables.large.once import once_per_table
from furnace_hpc.tables.statistics.pairs import PairStatistics, pair_statistics
from furnace_hpc.tables.statistics.units import pair_up
from furnace_hpc.tables.table import Ablation, Row


def pair_statistics_of(ablation: Ablation, row: Row) -> PairStatistics | None:
    """Statistics of the pairs of a row and the reference. None if there are none."""
    return _all_pair_statistics(ablation).get(row.variant)


@once_per_table
def _all_pair_statistics(ablation: Ablation) -> dict[str, PairStatistics]:
    """Variant -> statistics of its pairs. Table and report need them."""
    if ablation.reference is None:
        return {}
    theirs, higher_is_better = ablation.reference.values, ablation.metric.direction == "max"
    return {
        row.variant: pair_statistics(pair_up(row.values, theirs), row.difference, higher_is_better)
        for row in ablation.rows
        if row.difference is not None
    }
