"""Compare methods over several data sets: ranks, Friedman test, critical difference (Demsar 2006).

The unit is the data set. Each has one score per method, the mean over its runs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from furnace_hpc.tables.statistics.significance import ALPHA

# With fewer data sets the chi-square approximation of the Friedman test is poor. Two methods need
# no ranks.
LEAST_DATA_SETS, LEAST_METHODS = 5, 3


@dataclass(frozen=True)
class Ranks:
    """Ranks of methods over data sets."""

    data_sets: tuple[str, ...]
    scores: dict[str, tuple[float, ...]]  # method -> score on each data set
    ranks: dict[str, tuple[float, ...]]  # method -> rank on each data set; 1 is best, ties share
    friedman_p: float | None = None  # None without a test
    critical_difference: float | None = None  # of two mean ranks (Nemenyi, 5 %)
    why_no_test: str = ""
    left_out: tuple[str, ...] = ()  # sanity rows, with what each lacks

    @property
    def mean_ranks(self) -> dict[str, float]:
        """Method -> mean rank."""
        return {name: math.fsum(ranks) / len(ranks) for name, ranks in self.ranks.items()}

    @property
    def shown_difference(self) -> float | None:
        """The critical difference, if pairs may be compared.

        None if the Friedman test shows no difference: then Demsar makes no post-hoc test.
        """
        if self.friedman_p is None or self.friedman_p >= ALPHA:
            return None
        return self.critical_difference

    @property
    def groups(self) -> list[tuple[str, ...]]:
        """Methods that are joined by a bar. Empty if pairs may not be compared."""
        if self.shown_difference is None:
            return []
        return joined_groups(self.mean_ranks, self.shown_difference)


def rank_methods(
    scores: Mapping[str, Sequence[float]], data_sets: Sequence[str], higher_is_better: bool
) -> Ranks:
    """The ranks of each method, and the test if there are enough data sets and methods.

    Scores that differ by rounding alone share a rank.
    """
    import numpy as np
    from scipy.stats import friedmanchisquare, rankdata

    names = list(scores)
    # M methods, D data sets
    values_MD = np.array([[float(f"{value:.12g}") for value in scores[name]] for name in names])
    signed_MD = -values_MD if higher_is_better else values_MD
    ranks_MD = rankdata(signed_MD, axis=0)
    p, difference, why = None, None, _too_few(len(data_sets), len(names))
    if not why and bool((ranks_MD == ranks_MD[0]).all()):
        why = "all rows have the same ranks"
    if not why:
        p = float(friedmanchisquare(*signed_MD).pvalue)
        difference = critical_difference(len(names), len(data_sets))
    return Ranks(
        tuple(data_sets),
        {name: tuple(map(float, scores[name])) for name in names},
        dict(zip(names, (tuple(line) for line in ranks_MD.tolist()), strict=True)),
        p,
        difference,
        why,
    )


def critical_difference(num_methods: int, num_data_sets: int) -> float:
    """Least difference of two mean ranks that Nemenyi's test shows at 5 %, for all pairs."""
    from scipy.stats import studentized_range

    quantile = float(studentized_range.ppf(1 - ALPHA, num_methods, math.inf)) / math.sqrt(2)
    return quantile * math.sqrt(num_methods * (num_methods + 1) / (6 * num_data_sets))


def joined_groups(mean_ranks: Mapping[str, float], difference: float) -> list[tuple[str, ...]]:
    """The largest groups in which no two mean ranks differ by more than `difference`.

    The groups and their methods are in the order of the mean ranks. Two methods that share no group
    differ. A method that is in no group differs from all others.
    """
    best_first = sorted(mean_ranks, key=lambda name: mean_ranks[name])
    found, end = list[tuple[str, ...]](), 0
    for start, first in enumerate(best_first):
        close = [n for n in best_first[start:] if mean_ranks[n] - mean_ranks[first] <= difference]
        if len(close) > 1 and start + len(close) > end:  # else it is a part of the group before
            found.append(tuple(close))
            end = start + len(close)
    return found


def _too_few(num_data_sets: int, num_methods: int) -> str:
    """Why there is no test. Empty if there is one."""
    if num_data_sets < LEAST_DATA_SETS:
        return f"{num_data_sets} data sets are too few, {LEAST_DATA_SETS} are needed"
    if num_methods < LEAST_METHODS:
        return f"{num_methods} rows are too few, {LEAST_METHODS} are needed"
    return ""
