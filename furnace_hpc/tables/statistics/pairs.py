"""What the pairs of two rows say beside their mean difference."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from furnace_hpc.tables.statistics.estimates import (
    LEVEL,
    SAME,
    Difference,
    Interval,
    exact_interval,
)
from furnace_hpc.tables.statistics.units import Pairs

LEAST_PAIRS = 3  # of Hedges' g and of a correlation, which is 1 or -1 for two pairs
MAX_T = 100.0  # of an interval of g: nctdtrinc does not end for a t of a million


@dataclass(frozen=True)
class PairStatistics:
    """Statistics of the pairs of a row and the reference. None if they cannot be computed."""

    hedges_g: float | None
    hedges_g_interval: Interval | None
    improvement: float  # share of pairs in which the row is better, ties half
    improvement_interval: Interval | None  # None if the pairs share samples
    correlation: float | None


def pair_statistics(pairs: Pairs, difference: Difference, higher_is_better: bool) -> PairStatistics:
    """The statistics over the units that both rows have."""
    g, g_interval = hedges_g(difference)
    share = improvement(pairs, higher_is_better)
    interval = None
    if not difference.shares_samples:
        interval = exact_interval(share, difference.n)
    return PairStatistics(g, g_interval, share, interval, correlation(pairs.ours, pairs.theirs))


def hedges_g(difference: Difference) -> tuple[float | None, Interval | None]:
    """Hedges' g of paired differences, and its interval.

    It is d_z (mean over standard deviation of the differences) times the exact correction J for
    small samples (Hedges 1981). The interval is that of d_z from the noncentral t distribution
    (Cumming and Finch 2001), times J. It assumes normal and independent differences, so pairs that
    share samples have none.
    """
    n, effect = difference.n, difference.effect
    if effect is None or n < LEAST_PAIRS:
        return None, None
    from scipy.special import nctdtrinc

    degrees, correction = n - 1, _correction(n - 1)
    t, tail = effect * math.sqrt(n), (1 - LEVEL) / 2
    if difference.shares_samples or abs(t) > MAX_T:
        return correction * effect, None
    low, high = (float(nctdtrinc(degrees, p, t)) / math.sqrt(n) for p in (1 - tail, tail))
    return correction * effect, (correction * low, correction * high)


@cache
def _correction(degrees: int) -> float:
    """Hedges' J: the factor that removes the bias of d_z in small samples."""
    from scipy.special import gammaln

    logarithm = gammaln(degrees / 2) - gammaln((degrees - 1) / 2) - math.log(degrees / 2) / 2
    return math.exp(float(logarithm))


def improvement(pairs: Pairs, higher_is_better: bool) -> float:
    """Share of pairs in which ours is better. A tie counts half. Float rounding is a tie."""
    largest = max(map(abs, [*pairs.ours, *pairs.theirs]))
    score = 0.0
    for difference in pairs.differences:
        if abs(difference) <= SAME * largest:
            score += 0.5
        elif (difference > 0) == higher_is_better:
            score += 1.0
    return score / len(pairs.ours)


def correlation(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Pearson's correlation of the pairs. None for few pairs, or if a side is constant."""
    if len(ours) < LEAST_PAIRS:
        return None
    for side in (ours, theirs):
        if max(side) - min(side) <= SAME * max(map(abs, side)):
            return None
    return statistics.correlation(ours, theirs)
