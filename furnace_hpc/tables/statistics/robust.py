"""Interquartile mean with a stratified bootstrap interval (Agarwal et al. 2021, rliable)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from furnace_hpc.tables.statistics.estimates import LEVEL, Interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEAST_RUNS = 10  # with fewer, a quarter at each end is one or two runs
TRIMMED = 0.25  # of the runs at each end
RESAMPLES = 9_999


def interquartile_mean(strata: Sequence[Sequence[float]]) -> tuple[float, Interval | None] | None:
    """Mean of the middle half of all runs, and its interval. None for fewer than LEAST_RUNS runs.

    The bootstrap draws runs inside each stratum (a pack), as rliable does inside each task. Its
    percentile interval is None if a stratum has one run. The draws are the same in each call.

    Args:
        strata: the values of each pack. One list without packs.
    """
    values = [value for stratum in strata for value in stratum]
    if len(values) < LEAST_RUNS:
        return None
    import numpy as np
    from scipy.stats import bootstrap, trim_mean

    def of_resample(*drawn: "NDArray[np.float64]", axis: int = -1) -> "NDArray[np.float64]":
        return np.asarray(trim_mean(np.concatenate(drawn, axis=axis), TRIMMED, axis=axis))

    center = float(trim_mean(values, TRIMMED))
    if min(map(len, strata)) < 2:
        return center, None
    found = bootstrap(
        [np.asarray(stratum) for stratum in strata],
        of_resample,
        n_resamples=RESAMPLES,
        vectorized=True,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    interval = found.confidence_interval
    return center, (float(interval.low), float(interval.high))
