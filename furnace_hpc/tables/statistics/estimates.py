"""Statistics of a few seeds, as pure functions on lists of floats.

A value that cannot be computed is None.
"""

import math
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

LEVEL = 0.95  # of every interval in a table
POWER = 0.8  # of a test with `pairs_needed` pairs
MAX_SIGN_FLIP = 32  # pairs; 2^32 sign patterns are counted exactly from two halves of 2^16 sums
MAX_PAIRS = 1000  # `pairs_needed` stops there
# A spread of differences below this share of the largest value is rounding. Trackers write
# values in fp32, whose differences are wrong by up to 1.2e-7 of the larger value.
SAME = 3e-7
ROUNDING = 1e-12  # a constant difference below this share of the largest value is zero

Interval = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, with its t interval and its tests.

    Interval, tests and effect are None for one pair. They are None too if all pairs have the same
    difference and the metric has no resolution.
    """

    mean: float
    interval: Interval | None
    n: int  # pairs
    t_p: float | None = None  # paired t test, two-sided
    sign_flip_p: float | None = None  # paired permutation test, exact, two-sided
    holm_p: float | None = None  # t_p, corrected for the number of comparisons in the table
    effect: float | None = None  # Cohen's d_z: mean over standard deviation of the differences
    # interval corrected for the number of comparisons in the table, so that all hold together
    simultaneous: Interval | None = None
    family: int = 0  # comparisons of the table that are corrected together; 0 without a correction
    equivalence_p: float | None = None  # two one-sided tests against the smallest effect, corrected
    # whether the pairs share samples, so that more of them would not add independent ones
    shares_samples: bool = False

    @property
    def shown(self) -> Interval | None:
        """The interval in the table: the simultaneous one, if the table has a family."""
        return self.simultaneous or self.interval

    @property
    def standard_error(self) -> float | None:
        """Standard error of the mean, from the interval. So all intervals have one source."""
        if self.interval is None:
            return None
        return (self.interval[1] - self.interval[0]) / 2 / _quantile(self.n - 1, LEVEL)

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the differences that the interval assumes."""
        if self.standard_error is None:
            return None
        return self.standard_error * math.sqrt(self.n)

    def interval_at(self, level: float) -> Interval | None:
        """The t interval of another level than LEVEL."""
        if self.standard_error is None:
            return None
        half = _quantile(self.n - 1, level) * self.standard_error
        return self.mean - half, self.mean + half

    @property
    def is_constant(self) -> bool:
        """Whether several pairs all have the same difference. A test needs variation."""
        return self.interval is None and self.n > 1


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean. None without values."""
    if not values:
        return None
    return statistics.fmean(values)


def median(values: Sequence[float]) -> float | None:
    """Middle value, or mean of the two middle values. None without values."""
    if not values:
        return None
    return statistics.median(values)


def sample_deviation(values: Sequence[float]) -> float | None:
    """Standard deviation with n-1. None for fewer than two values."""
    if len(values) < 2:
        return None
    return _stdev(values)


def pooled_deviation(groups: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation within groups, each around its own mean.

    None if no group has two values.
    """
    pooled = pool([(len(group), _stdev(group)) for group in groups if len(group) > 1])
    if pooled is None:
        return None
    return pooled[0]


def pool(deviations: Sequence[tuple[int, float]]) -> tuple[float, int] | None:
    """Pooled standard deviation of groups, and its degrees of freedom.

    Args:
        deviations: number of values and standard deviation of each group.

    Returns:
        None if no group has two values.
    """
    several = [(n, deviation) for n, deviation in deviations if n > 1]
    if not several:
        return None
    degrees = sum(n - 1 for n, _ in several)
    if len(several) == 1:
        return several[0][1], degrees
    return math.sqrt(sum((n - 1) * deviation**2 for n, deviation in several) / degrees), degrees


def t_interval(values: Sequence[float], least_deviation: float = 0.0) -> Interval | None:
    """Two-sided Student t interval of the mean, at LEVEL. None for fewer than two values."""
    if len(values) < 2:
        return None
    deviation = max(_stdev(values), least_deviation)
    half = _quantile(len(values) - 1, LEVEL) * deviation / math.sqrt(len(values))
    center = statistics.fmean(values)
    return center - half, center + half


@lru_cache(maxsize=1000)  # few rows have a share of their own
def exact_interval(share: float, n: int) -> Interval:
    """The interval of Clopper and Pearson for a share of n, which holds in at least 95 %.

    A half, from ties, is rounded away from the middle of the interval.
    """
    from scipy.special import betaincinv

    count, tail = round(2 * share * n) / 2, (1 - LEVEL) / 2
    fewest, most = math.floor(count), math.ceil(count)
    low = float(betaincinv(fewest, n - fewest + 1, tail)) if fewest else 0.0
    high = float(betaincinv(most + 1, n - most, 1 - tail)) if most < n else 1.0
    return low, high


@lru_cache(maxsize=1000)
def _quantile(degrees: int, level: float) -> float:
    # scipy.special imports in a third of the time of scipy.stats and has the same quantile
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + level) / 2))


def _stdev(values: Sequence[float]) -> float:
    return _stdev_of(tuple(values))


@lru_cache(maxsize=1000)  # statistics.stdev is exact and slow, and the same values come often
def _stdev_of(values: tuple[float, ...]) -> float:
    return statistics.stdev(values)


def paired_difference(
    values: Sequence[float], reference: Sequence[float], resolution: float = 0.0
) -> Difference | None:
    """`values` minus `reference`, pair by pair. None without pairs.

    `resolution` is the smallest possible change of a value, such as one sample of a test split. The
    standard deviation of the differences is at least that, so few equal differences are no proof.

    Without it, differences that are equal up to rounding have no interval and no test. A t test
    would divide by zero or by rounding errors, and would report certainty.

    Raises:
        ValueError: the lists have different lengths.
    """
    differences = [value - other for value, other in zip(values, reference, strict=True)]
    if not differences:
        return None
    largest = max(map(abs, [*values, *reference]))
    is_constant = max(differences) - min(differences) <= SAME * largest  # true for one pair
    if len(differences) < 2 or (is_constant and not resolution):
        center = statistics.fmean(differences)
        if abs(center) <= ROUNDING * largest:
            center = 0.0  # such as 0.1 + 0.2 and 0.3
        return Difference(center, None, len(differences))
    return Difference(
        statistics.fmean(differences),
        t_interval(differences, least_deviation=resolution),
        len(differences),
        t_p=t_test(differences, resolution),
        sign_flip_p=sign_flip_test(differences),
        effect=effect_size(differences, resolution),
    )


def effect_size(differences: Sequence[float], least_deviation: float = 0.0) -> float | None:
    """Cohen's d_z: mean over sample standard deviation, which is at least `least_deviation`.

    None for fewer than two values, or equal values.
    """
    deviation = _deviation(differences, least_deviation)
    if not deviation:
        return None
    return statistics.fmean(differences) / deviation


def t_test(differences: Sequence[float], least_deviation: float = 0.0) -> float | None:
    """Two-sided p of a paired t test. It assumes that the differences are normal.

    Their standard deviation is at least `least_deviation`. None for fewer than two differences, or
    equal ones.
    """
    deviation = _deviation(differences, least_deviation)
    if not deviation:
        return None
    center = statistics.fmean(differences)
    from scipy.special import stdtr

    return float(
        2 * stdtr(len(differences) - 1, -abs(center) / (deviation / math.sqrt(len(differences))))
    )


def sign_flip_test(differences: Sequence[float]) -> float | None:
    """Two-sided p of a sign-flip test: both signs of each difference are equally likely.

    It assumes no distribution. The p is the share of all 2^n sign patterns whose sum is at least as
    far from zero. Its smallest possible value is `sign_flip_floor(n)`. None for fewer than two
    differences, or for more than MAX_SIGN_FLIP.
    """
    if not 2 <= len(differences) <= MAX_SIGN_FLIP:
        return None
    half = len(differences) // 2
    some, others = _signed_sums(differences[:half]), sorted(_signed_sums(differences[half:]))
    # ties count, in spite of rounding
    bound = abs(math.fsum(differences)) - 1e-12 * math.fsum(map(abs, differences))
    if bound <= 0:
        return 1.0
    extreme = sum(
        len(others) - bisect_left(others, bound - s) + bisect_right(others, -bound - s)
        for s in some
    )
    return extreme / 2.0 ** len(differences)


def sign_flip_equivalence(differences: Sequence[float], bound: float) -> float | None:
    """P of two one-sided sign-flip tests: the mean difference is between -bound and bound.

    It assumes that differences are symmetric about their mean, and no distribution. None as in
    `sign_flip_test`.
    """
    if abs(statistics.fmean(differences)) >= bound:
        return 1.0
    found = [sign_flip_test([value + side for value in differences]) for side in (bound, -bound)]
    known = [p for p in found if p is not None]
    if len(known) < len(found):
        return None
    return max(known) / 2  # both tails of a symmetric distribution


def sign_flip_floor(n: int) -> float:
    """Smallest possible p of a two-sided sign-flip test of n pairs."""
    return 2.0 ** (1 - n)


def holm(p_values: Sequence[float], family: int) -> list[float]:
    """Correct p values for the number of tests (Holm 1979, step down).

    It controls the family-wise error. `family` is the number of planned tests. Some of them may
    have no p value.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, number in enumerate(order):
        largest = max(largest, min(1.0, (family - rank) * p_values[number]))
        corrected[number] = largest
    return corrected


def with_holm(
    differences: Sequence[Difference | None],
    family: int,
    other_p: Sequence[float] = (),
) -> list[Difference | None]:
    """The differences of a table, with t_p corrected for `family` planned tests.

    `other_p` are p values of the family that are no t tests.
    """
    t_p = [found.t_p for found in differences if found and found.t_p is not None]
    corrected = iter(holm([*t_p, *other_p], family))
    found: list[Difference | None] = []
    for difference in differences:
        if difference and difference.t_p is not None:
            difference = replace(difference, holm_p=next(corrected))
        found.append(difference)
    return found


def holm_of_others(
    differences: Sequence[Difference | None], family: int, other_p: Sequence[float]
) -> list[float]:
    """The corrected `other_p` of the family that `with_holm` corrects."""
    t_p = [found.t_p for found in differences if found and found.t_p is not None]
    return holm([*t_p, *other_p], family)[len(t_p) :]


def pairs_needed(effect: float, level: float) -> int | None:
    """Pairs with which a t test shows a true effect of this size (d_z) with power POWER.

    None if MAX_PAIRS are too few.
    """
    if power_of(effect, MAX_PAIRS, level) < POWER:
        return None
    low, high = 1, MAX_PAIRS  # too few, enough: the power rises with the number
    while high - low > 1:
        middle = (low + high) // 2
        if power_of(effect, middle, level) >= POWER:
            high = middle
        else:
            low = middle
    return high


def power_of(effect: float, n: int, level: float) -> float:
    """Power of a paired two-sided t test of n pairs at p < 1 - level, for this effect (d_z)."""
    from scipy.special import chdtr, nctdtr, stdtrit

    bound, shift = float(stdtrit(n - 1, (1 + level) / 2)), abs(effect) * math.sqrt(n)
    # the other tail is below a thousandth wherever the power is near POWER
    power = float(1 - nctdtr(n - 1, shift, bound))
    if math.isnan(power):  # of a shift above 36; there the deviation alone decides
        return float(chdtr(n - 1, (n - 1) * (shift / bound) ** 2))
    return power


def _deviation(differences: Sequence[float], least: float) -> float:
    """Sample standard deviation, at least `least`. 0 for fewer than two values."""
    if len(differences) < 2:
        return 0.0
    return max(_stdev(differences), least)


def _signed_sums(values: Sequence[float]) -> list[float]:
    sums = [0.0]
    for value in values:
        sums = [total + sign * value for total in sums for sign in (1, -1)]
    return sums
