"""Packs that share samples: the corrected resampled t test (Nadeau and Bengio, 2003).

The means of n packs that draw from one collection are correlated. So the variance of their mean is
not S^2 / n but about S^2 (1 / n + n_test / n_train), where S is the deviation over packs.

Packs that share no sample need no correction. With it their intervals would be too wide.
"""

import math
from collections.abc import Collection
from dataclasses import replace
from itertools import combinations

from furnace_hpc.config.manifest import PackOrigin
from furnace_hpc.tables.statistics.estimates import LEVEL, Difference, Interval


def test_per_train(origins: Collection[PackOrigin | None]) -> float:
    """n_test / n_train of packs, one origin per pack. 0 if no two packs are known to share samples.

    None is the origin of a pack that does not name its collection. It counts as independent.
    """
    known = [origin for origin in origins if origin is not None]
    if any(_share(one, other) for one, other in combinations(known, 2)):
        return max(origin.test_per_train for origin in known)
    return 0.0


def _share(one: PackOrigin, other: PackOrigin) -> bool:
    """Whether two packs draw from the same samples. Different parts of K have none in common."""
    if one.pool != other.pool:
        return False
    (_, _, of_one), (_, _, of_other) = one.part.partition("/"), other.part.partition("/")
    is_disjoint = of_one and of_one == of_other and one.part != other.part
    return not is_disjoint


def error_factor(n: int, ratio: float) -> float:
    """Factor of the standard error of a mean over n packs, for this n_test / n_train."""
    return math.sqrt(1 + n * ratio)


def corrected_interval(interval: Interval | None, n: int, ratio: float) -> Interval | None:
    """The t interval of a mean over n packs, widened for shared samples."""
    if interval is None or not ratio:
        return interval
    center, half = sum(interval) / 2, (interval[1] - interval[0]) / 2 * error_factor(n, ratio)
    return center - half, center + half


def corrected(difference: Difference | None, ratio: float) -> Difference | None:
    """A paired difference with interval and t test corrected for shared samples.

    The sign-flip test has no correction and is left out. More packs of the same collection would
    not add independent samples, so no number of packs is advised.
    """
    if difference is None or difference.interval is None or not ratio:
        return difference
    from scipy.special import stdtr, stdtrit

    interval = corrected_interval(difference.interval, difference.n, ratio)
    assert interval is not None
    degrees = difference.n - 1
    error = (interval[1] - interval[0]) / 2 / float(stdtrit(degrees, (1 + LEVEL) / 2))
    return replace(
        difference,
        interval=interval,
        t_p=float(2 * stdtr(degrees, -abs(difference.mean) / error)),
        sign_flip_p=None,
        shares_samples=True,
    )
