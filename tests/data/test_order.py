"""The order of samples depends on (seed, epoch), and ranks share a step's samples exactly once."""

import numpy as np
import pytest

from furnace_hpc.data.loading.sampler import Weights, rank_indices, step_indices


def test_every_epoch_has_every_sample_once():
    """A step may contain samples of two epochs."""
    n, batch = 50, 8
    # 200 = 4 epochs
    taken = np.concatenate([step_indices(n, 3, step, batch) for step in range(25)])
    for epoch in range(4):
        assert sorted(taken[epoch * n : (epoch + 1) * n]) == list(range(n))
    assert not np.array_equal(taken[:n], taken[n : 2 * n])


def test_the_order_depends_on_the_seed_only():
    """Earlier calls do not matter."""
    a = step_indices(100, 1, 17, 16)
    step_indices(100, 1, 3, 16)
    assert np.array_equal(a, step_indices(100, 1, 17, 16))
    assert not np.array_equal(a, step_indices(100, 2, 17, 16))


def test_a_batch_larger_than_the_data():
    taken = step_indices(10, 0, 0, 35)
    assert len(taken) == 35
    assert all((np.bincount(taken, minlength=10) >= 3) & (np.bincount(taken, minlength=10) <= 4))


def test_ranks_and_micro_steps_share_a_step():
    """Every sample is used exactly once at any world size."""
    whole = step_indices(500, 0, 4, 24)
    for world_size, micro in [(1, 24), (1, 8), (2, 4), (3, 8), (4, 2), (4, 6)]:
        steps = 24 // (world_size * micro)
        parts = [
            rank_indices(whole, r, world_size, micro, k)
            for k in range(steps)
            for r in range(world_size)
        ]
        assert np.array_equal(np.concatenate(parts), whole)


def test_weighted_draws_follow_the_weights():
    weights = Weights(np.array([0, 1, 1, 2, 4], np.float32).repeat(200))
    # 4 epochs
    taken = np.concatenate([step_indices(1000, 3, step, 50, weights) for step in range(80)])
    shares = np.bincount(taken // 200, minlength=5) / len(taken)
    assert shares[0] == 0
    # 3.7 deviations of a share of 1/2
    assert shares == pytest.approx([0, 1 / 8, 1 / 8, 2 / 8, 4 / 8], abs=0.03)
    same = Weights(weights.values.copy())
    assert np.array_equal(step_indices(1000, 3, 70, 50, same), taken[70 * 50 : 71 * 50])
    assert not np.array_equal(taken[:1000], taken[1000:2000])
    assert not np.array_equal(step_indices(1000, 4, 70, 50, weights), taken[70 * 50 : 71 * 50])
