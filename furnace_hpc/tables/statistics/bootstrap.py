"""A paired bootstrap over test samples. N samples, S pairs of networks."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from furnace_hpc.tables.statistics.estimates import LEVEL, Interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESAMPLES = 10_000


def bootstrap(
    pairs: Sequence[tuple["NDArray[np.bool_]", "NDArray[np.bool_]"]],
) -> tuple[float, Interval]:
    """Mean difference of S pairs of networks, and its 95 % percentile interval over samples.

    The difference of a sample is the mean over pairs of right (N,) minus right (N,) of the other.
    It has one of 2S + 1 values. So drawing N samples is a multinomial draw of how often each value
    occurs. The draws are the same in each call.
    """
    import numpy as np

    total_N = sum(one.astype(np.int64) - other.astype(np.int64) for one, other in pairs)
    counts = Counter(np.asarray(total_N).tolist())
    values = np.array(sorted(counts))
    shares = np.array([counts[value] for value in values.tolist()]) / counts.total()
    drawn = np.random.default_rng(0).multinomial(counts.total(), shares, size=RESAMPLES)
    means = drawn @ values / (counts.total() * len(pairs))
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    mean = sum(value * count for value, count in counts.items()) / (counts.total() * len(pairs))
    return mean, (low, high)
