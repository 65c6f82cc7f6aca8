"""The order of samples: a function of (seed, epoch) alone, so samples consumed is all a resume needs."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def step_indices(num_samples: int, seed: int, step: int, global_batch_size: int) -> NDArray[np.int64]:
    """Indices [global_batch_size] of optimizer step `step` (from 0), over all ranks; epochs follow without a gap."""
    first = step * global_batch_size
    positions = np.arange(first, first + global_batch_size)
    epochs = positions // num_samples
    parts = [
        epoch_order(num_samples, seed, int(epoch))[positions[epochs == epoch] % num_samples]
        for epoch in np.unique(epochs)
    ]
    return np.concatenate(parts)


def rank_indices(
    indices: NDArray[np.int64], rank: int, world_size: int, micro_batch_size: int, micro_step: int
) -> NDArray[np.int64]:
    """The part [micro_batch_size] of a step's indices that one rank takes in one micro-step."""
    first = (micro_step * world_size + rank) * micro_batch_size
    return indices[first : first + micro_batch_size]


@lru_cache(maxsize=2)
def epoch_order(num_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation [num_samples], the same on every machine for the same (seed, epoch)."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(num_samples)
