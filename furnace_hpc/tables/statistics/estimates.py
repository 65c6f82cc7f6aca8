"""Statistics of a few seeds: pure functions on lists of floats. What cannot be computed is None."""

import math
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

LEVEL = 0.95  # of every interval in a table
POWER = 0.8  # chance that the seeds asked for show a difference as large as the one seen
MAX_SIGN_FLIP = 32  # pairs; 2^32 sign patterns are counted exactly from two halves of 2^16 sums
MAX_SEEDS = 1000  # a difference that needs more is not looked for with seeds
# spread of differences, relative to the largest value, that is float rounding and not variation
SAME = 1e-9

Interval = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, with its t interval and its tests.

    Interval, tests and effect are None for one pair, and for pairs that all have the same difference.
    """

    mean: float
    interval: Interval | None
    n: int
    t_p: float | None = None  # paired t test, two-sided
    sign_flip_p: float | None = None  # paired permutation test, exact, two-sided
    holm_p: float | None = None  # t_p corrected for the number of rows that were compared
    effect: float | None = None  # Cohen's d_z: mean over standard deviation of the differences
    # pairs to add where the interval holds zero; None: enough, or no number would do
    more_seeds: int | None = None

    @property
    def too_few(self) -> bool:
        """Whether the interval is missing or holds zero: these seeds do not show which row is better."""
        return self.interval is None or self.interval[0] <= 0 <= self.interval[1]

    @property
    def is_constant(self) -> bool:
        """Whether several pairs all have the same difference. They show no variation to test it against."""
        return self.interval is None and self.n > 1


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean; None of nothing."""
    return statistics.fmean(values) if values else None


def sample_deviation(values: Sequence[float]) -> float | None:
    """Standard deviation with n-1; None of fewer than two values."""
    return _stdev(values) if len(values) > 1 else None


def pooled_deviation(groups: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation within groups, each about its own mean; None where no group has two values."""
    several = [group for group in groups if len(group) > 1]
    if len(several) < 2:
        return _stdev(several[0]) if several else None
    degrees = sum(len(group) - 1 for group in several)
    return math.sqrt(sum((len(group) - 1) * _stdev(group) ** 2 for group in several) / degrees)


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval | None:
    """Two-sided Student t interval of the mean; None of fewer than two values."""
    if len(values) < 2:
        return None
    half = _quantile(len(values) - 1, level) * _stdev(values) / math.sqrt(len(values))
    center = statistics.fmean(values)
    return center - half, center + half


@lru_cache(maxsize=1000)
def _quantile(degrees: int, level: float) -> float:
    # a third of the import time of scipy.stats, the same quantile
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + level) / 2))


def _stdev(values: Sequence[float]) -> float:
    return _stdev_of(tuple(values))


@lru_cache(maxsize=1000)  # exact, and so slow; asked for again and again for the same few values
def _stdev_of(values: tuple[float, ...]) -> float:
    return statistics.stdev(values)


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> Difference | None:
    """`values` minus `reference`, pair by pair; None without pairs.

    Differences that are equal up to rounding get no interval and no test: a t test would divide by zero, or by
    rounding errors, and report certainty.

    Raises:
        ValueError: the lists are not of one length.
    """
    differences = [value - other for value, other in zip(values, reference, strict=True)]
    if not differences:
        return None
    largest = max(map(abs, [*values, *reference]))
    if max(differences) - min(differences) <= SAME * largest:  # one pair too
        return Difference(statistics.fmean(differences), None, len(differences))
    result = Difference(statistics.fmean(differences), t_interval(differences), len(differences))
    effect = effect_size(differences)
    return replace(
        result,
        t_p=t_test(differences),
        sign_flip_p=sign_flip_test(differences),
        effect=effect,
        more_seeds=more_pairs(effect, len(differences)) if result.too_few and effect else None,
    )


def effect_size(differences: Sequence[float]) -> float | None:
    """Cohen's d_z, mean over sample standard deviation; None of fewer than two values or where they do not differ."""
    deviation = sample_deviation(differences)
    return statistics.fmean(differences) / deviation if deviation else None


def t_test(differences: Sequence[float]) -> float | None:
    """Two-sided p of "their mean is zero", were they drawn from a normal distribution.

    None of fewer than two differences, and where they are all the same.
    """
    deviation = sample_deviation(differences)
    if not deviation:
        return None
    center = statistics.fmean(differences)
    from scipy.special import stdtr

    return float(
        2 * stdtr(len(differences) - 1, -abs(center) / (deviation / math.sqrt(len(differences))))
    )


def sign_flip_test(differences: Sequence[float]) -> float | None:
    """Two-sided p of "each difference could as well have had the other sign": it assumes no distribution.

    The share of all 2^n sign patterns whose sum is at least as far from zero. Its floor is `sign_flip_floor(n)`.
    None of fewer than two differences, and of more than MAX_SIGN_FLIP.
    """
    if not 2 <= len(differences) <= MAX_SIGN_FLIP:
        return None
    half = len(differences) // 2
    some, others = _signed_sums(differences[:half]), sorted(_signed_sums(differences[half:]))
    # ties count, rounding or not
    bound = abs(math.fsum(differences)) - 1e-12 * math.fsum(map(abs, differences))
    if bound <= 0:
        return 1.0
    extreme = sum(
        len(others) - bisect_left(others, bound - s) + bisect_right(others, -bound - s)
        for s in some
    )
    return extreme / 2.0 ** len(differences)


def sign_flip_floor(n: int) -> float:
    """Smallest p that a two-sided sign-flip test of n pairs can give."""
    return 2.0 ** (1 - n)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, in their order (Holm 1979, step down; the family-wise error is held)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, number in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[number]))
        corrected[number] = largest
    return corrected


def with_holm(differences: Sequence[Difference | None]) -> list[Difference | None]:
    """The differences of a table's rows, each t_p corrected for the number of rows that have one."""
    corrected = iter(holm([d.t_p for d in differences if d and d.t_p is not None]))
    return [
        replace(d, holm_p=next(corrected)) if d and d.t_p is not None else d for d in differences
    ]


def more_pairs(effect: float, n: int, level: float = LEVEL, power: float = POWER) -> int | None:
    """Pairs to add to n until a t test finds a true effect of this size with this power; None beyond MAX_SEEDS."""
    if power_of(effect, MAX_SEEDS, level) < power:
        return None
    low, high = max(n, 1), MAX_SEEDS  # too few, enough: the power rises with the number
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(effect, middle, level) >= power else (middle, high)
    return high - n


def power_of(effect: float, n: int, level: float = LEVEL) -> float:
    """Chance that a paired two-sided t test of n pairs is below 1 - level, where Cohen's d_z is really `effect`."""
    from scipy.special import nctdtr, stdtrit

    bound, shift = float(stdtrit(n - 1, (1 + level) / 2)), abs(effect) * math.sqrt(n)
    # the other tail is less than a thousandth where it matters
    return float(1 - nctdtr(n - 1, shift, bound))


def _signed_sums(values: Sequence[float]) -> list[float]:
    sums = [0.0]
    for value in values:
        sums = [total + sign * value for total in sums for sign in (1, -1)]
    return sums
