"""Interquartile mean (Agarwal et al. 2021) with the t interval of a trimmed mean."""

import math
from collections.abc import Sequence
from statistics import fmean, variance

from furnace_hpc.tables.statistics.estimates import LEVEL, SAME, Interval

LEAST_RUNS = 10  # with fewer, a quarter at each end is one or two runs
TRIMMED = 0.25  # of the runs at each end


def interquartile_mean(strata: Sequence[Sequence[float]]) -> tuple[float, Interval | None] | None:
    """Mean of the middle half of all runs, and its interval. None for fewer than LEAST_RUNS runs.

    The interval is that of Tukey and McLaughlin (1963): values beyond the middle half are set to
    its limits, and their deviation inside each stratum (a pack) gives the standard error. So it
    holds for these packs. The interval is None if a stratum has fewer than LEAST_RUNS runs, or if
    runs are equal.

    Args:
        strata: the values of each pack. One list without packs.
    """
    ordered = sorted(value for stratum in strata for value in stratum)
    n = len(ordered)
    if n < LEAST_RUNS:
        return None
    trimmed = int(TRIMMED * n)
    middle = ordered[trimmed : n - trimmed]
    center = fmean(middle)
    if min(map(len, strata)) < LEAST_RUNS:
        return center, None
    limited = [[min(max(value, middle[0]), middle[-1]) for value in one] for one in strata]
    squares = sum(len(values) * variance(values) for values in limited)
    error = math.sqrt(squares) / (n * (1 - 2 * TRIMMED))
    if error <= SAME * max(map(abs, ordered)):
        return center, None
    from scipy.special import stdtrit

    half = float(stdtrit(len(middle) - len(strata), (1 + LEVEL) / 2)) * error
    return center, (center - half, center + half)
