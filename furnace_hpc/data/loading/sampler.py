"""Compute the order of samples from (seed, epoch) only.

So a resumed run needs only the number of samples that it has consumed.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Weights:
    """Relative sampling weights [num_samples]: none negative, not all zero."""

    values: NDArray[np.generic]


def step_indices(
    num_samples: int, seed: int, step: int, global_batch_size: int, weights: Weights | None = None
) -> NDArray[np.int64]:
    """Return the sample indices [global_batch_size] of a step (from 0), for all ranks.

    Epochs follow each other without a gap. Without weights an epoch has every sample once. With
    weights it has the same number of draws with replacement.
    """
    positions = _positions(step, global_batch_size)
    epochs = positions // num_samples
    parts = [
        epoch_order(num_samples, seed, int(epoch), weights)[
            positions[epochs == epoch] % num_samples
        ]
        for epoch in np.unique(epochs)
    ]
    return np.concatenate(parts)


def step_epochs(num_samples: int, step: int, global_batch_size: int) -> NDArray[np.int64]:
    """Return the epoch [global_batch_size] of each of `step_indices`."""
    return _positions(step, global_batch_size) // num_samples


def rank_indices(
    indices: NDArray[np.int64], rank: int, world_size: int, micro_batch_size: int, micro_step: int
) -> NDArray[np.int64]:
    """Return one rank's part [micro_batch_size] of a step's indices in one micro-step."""
    first = (micro_step * world_size + rank) * micro_batch_size
    return indices[first : first + micro_batch_size]


@lru_cache(maxsize=2)
def epoch_order(
    num_samples: int, seed: int, epoch: int, weights: Weights | None = None
) -> NDArray[np.int64]:
    """Return a permutation, or weighted draws, [num_samples]: the same on every machine."""
    generator = np.random.Generator(np.random.PCG64([seed, epoch]))
    if weights is None:
        return generator.permutation(num_samples)
    shares = weights.values.astype(np.float64)
    return generator.choice(num_samples, num_samples, p=shares / shares.sum())


def drawn_frames(
    num_frames: int, seed: int, epochs: NDArray[np.int64], indices: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the frame [B] of each sample, 0 to num_frames-1: a hash of (seed, epoch, sample)."""
    key = np.full(len(indices), seed, np.uint64)
    for part in (epochs, indices):
        key = _mixed(key + part.astype(np.uint64))
    return (key % np.uint64(num_frames)).astype(np.int64)


def _positions(step: int, global_batch_size: int) -> NDArray[np.int64]:
    first = step * global_batch_size
    return np.arange(first, first + global_batch_size)


def _mixed(key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Compute one step of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014). Overflow is intended."""
    key = key + np.uint64(0x9E3779B97F4A7C15)
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))
