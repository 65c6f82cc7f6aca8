"""The verdict on a difference: better, worse, equivalent or undecided.

Star, verdict and interval come from one simultaneous interval. Its level is corrected with
Bonferroni's method for the family: all rows that the grid compares, and all effects of factors. So
the chance that a table has any wrong `better` or `worse` is at most 5 %.
"""

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum

from furnace_hpc.tables.statistics import estimates
from furnace_hpc.tables.statistics.estimates import Difference
from furnace_hpc.tables.statistics.significance import ALPHA


class Verdict(StrEnum):
    """What the runs say about a row and the reference."""

    BETTER = "better"
    WORSE = "worse"
    EQUIVALENT = "equivalent"  # the difference is smaller than the smallest effect of interest
    UNDECIDED = "undecided"


def with_family(
    differences: Sequence[Difference | None],
    family: int,
    sesoi: float | None = None,
    other_p: Sequence[float] = (),
) -> list[Difference | None]:
    """The differences of a table, corrected for the number of its comparisons.

    Args:
        differences: of rows and effects.
        family: number of comparisons, also of those without a difference.
        sesoi: smallest effect of interest. Without it there are no tests of equivalence.
        other_p: p values of the family that are no t tests.
    """
    found: list[Difference | None] = []
    for difference in estimates.with_holm(differences, family, other_p):
        if difference and difference.interval:
            difference = replace(
                difference,
                family=family,
                simultaneous=difference.interval_at(1 - ALPHA / family),
                equivalence_p=_equivalence_p(difference, family, sesoi),
            )
        found.append(difference)
    return found


def judge(difference: Difference | None, higher_is_better: bool) -> Verdict:
    """The verdict on a row that lacks no run."""
    if difference is None or difference.simultaneous is None:
        return Verdict.UNDECIDED
    low, high = difference.simultaneous
    if low > 0 or high < 0:
        return Verdict.BETTER if (low > 0) == higher_is_better else Verdict.WORSE
    if difference.equivalence_p is not None and difference.equivalence_p < ALPHA:
        return Verdict.EQUIVALENT
    return Verdict.UNDECIDED


def pairs_to_resolve(
    differences: Sequence[Difference | None], family: int, sesoi: float
) -> tuple[int | None, float] | None:
    """Pairs that resolve an effect of size `sesoi`, and the deviation of differences behind it.

    The deviation is pooled over the rows, so the number does not depend on the observed effects.
    The number is None if `estimates.MAX_PAIRS` are too few. None if no row has a deviation, or if
    pairs share samples.
    """
    if any(found and found.shares_samples for found in differences):
        return None
    known = [(found.n, found.deviation) for found in differences if found]
    pooled = estimates.pool([(n, deviation) for n, deviation in known if deviation is not None])
    if pooled is None or pooled[0] == 0:
        return None
    return estimates.pairs_needed(sesoi / pooled[0], 1 - ALPHA / family), pooled[0]


def _equivalence_p(difference: Difference, family: int, sesoi: float | None) -> float | None:
    """P of two one-sided t tests against -sesoi and sesoi, corrected for the family."""
    if sesoi is None or not difference.standard_error:
        return None
    from scipy.special import stdtr

    nearest = sesoi - abs(difference.mean)  # distance to the nearer bound
    p = float(stdtr(difference.n - 1, -nearest / difference.standard_error))
    return min(1.0, family * p)
