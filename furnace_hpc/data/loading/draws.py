"""Random numbers that depend on the training seed, the epoch and the sample, and on nothing else.

The generator is Philox (Salmon et al. 2011). Its key is (seed, epoch), and its counter begins at
(0, stream, sample, 0). So a resumed run, another number of processes or another micro-batch draws
the same numbers for a sample.
"""

from collections.abc import Iterator
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


class Stream(IntEnum):
    """What numbers are drawn for. Streams are independent."""

    IMAGE = 1
    MASKS = 2
    GAIN = 3
    NOISE = 4
    TOKENS = 5
    MIXUP = 6


def generators(
    seed: int, epochs: Rows, rows: Rows, stream: Stream
) -> Iterator[np.random.Generator]:
    """Yield a generator for each sample. It is valid until the next one is taken."""
    bits = np.random.Philox(0)
    generator, state = np.random.Generator(bits), bits.state
    # To set the state is ten times as fast as a new generator.
    for epoch, row in zip(epochs.tolist(), rows.tolist(), strict=True):
        state["state"]["key"] = np.array([seed, epoch], np.uint64)
        state["state"]["counter"] = np.array([0, stream, row, 0], np.uint64)
        bits.state = state
        yield generator


def uniform(seed: int, epochs: Rows, rows: Rows, stream: Stream, count: int) -> NDArray[np.float64]:
    """Draw numbers [B, count] from 0 up to 1."""
    drawn = [made.random(count) for made in generators(seed, epochs, rows, stream)]
    return np.array(drawn).reshape(len(rows), count)
