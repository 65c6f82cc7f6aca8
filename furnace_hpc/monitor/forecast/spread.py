"""A measured duration with its uncertainty: the median, and a low and a high value around it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import median

LOW, HIGH = 0.1, 0.9  # quantiles
# Other nodes and neighbours differ from the measured run by about this share. Further measured runs
# show it in their own spread, so the share shrinks with the square root of their number.
UNSEEN = 0.15


@dataclass(frozen=True)
class Spread:
    """A value that is expected between `low` and `high`, and about `mid`."""

    low: float = 0.0
    mid: float = 0.0
    high: float = 0.0

    def __add__(self, other: "Spread") -> "Spread":
        """Add two values. Both are low, or both are high, at the same time."""
        return Spread(self.low + other.low, self.mid + other.mid, self.high + other.high)

    def __mul__(self, factor: float) -> "Spread":
        """Scale the value."""
        return Spread(self.low * factor, self.mid * factor, self.high * factor)

    def as_tuple(self) -> tuple[float, float, float]:
        """Its JSON form."""
        return round(self.low, 3), round(self.mid, 3), round(self.high, 3)


def quantile(values: Sequence[float], share: float) -> float:
    """The quantile of some values, by linear interpolation between neighbours."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def spread_of(values: Sequence[float], num_runs: int) -> Spread:
    """The median of measured values, with their 10 % and 90 % quantiles.

    The range is at least `UNSEEN` / sqrt(num_runs) on each side of the median.

    Args:
        values: measured values. None gives zeros.
        num_runs: number of runs that they are from.
    """
    if not values:
        return Spread()
    mid = median(values)
    least = UNSEEN / sqrt(max(1, num_runs)) * mid
    low = min(quantile(values, LOW), mid - least)
    return Spread(max(0.0, low), mid, max(quantile(values, HIGH), mid + least))
