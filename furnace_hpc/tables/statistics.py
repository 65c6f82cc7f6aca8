"""Statistics of a few seeds: pure functions on lists of floats. What cannot be computed is None."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95  # of every interval in a table

Interval = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, with its t interval (None when there is one pair only)."""

    mean: float
    interval: Interval | None
    n: int


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean; None of nothing."""
    return statistics.fmean(values) if values else None


def sample_deviation(values: Sequence[float]) -> float | None:
    """Standard deviation with n-1; None of fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval | None:
    """Two-sided Student t interval of the mean; None of fewer than two values."""
    if len(values) < 2:
        return None
    from scipy.special import stdtrit  # a third of the import time of scipy.stats, the same quantile

    quantile = float(stdtrit(len(values) - 1, (1 + level) / 2))
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    center = statistics.fmean(values)
    return center - half, center + half


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> Difference | None:
    """`values` minus `reference`, pair by pair; None without pairs.

    Raises:
        ValueError: the lists are not of one length.
    """
    differences = [value - other for value, other in zip(values, reference, strict=True)]
    if not differences:
        return None
    return Difference(statistics.fmean(differences), t_interval(differences), len(differences))
