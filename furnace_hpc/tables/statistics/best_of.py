"""The expected best result of k random trials (Dodge et al. 2019, Show Your Work)."""

from collections.abc import Sequence

from furnace_hpc.config.metrics import Direction


def expected_best(values: Sequence[float], k: int, direction: Direction) -> float:
    """Expected best of k independent draws from the empirical distribution of the values.

    The best of k draws is the i-th of n sorted values, the worst first, with probability
    (i/n)^k - ((i-1)/n)^k.
    """
    n = len(values)
    worst_first = sorted(values, reverse=direction == "min")
    return sum(
        value * ((i / n) ** k - ((i - 1) / n) ** k) for i, value in enumerate(worst_first, 1)
    )
