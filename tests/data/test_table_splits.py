"""Rows are drawn as scikit-learn draws them."""

import numpy as np
import pytest
from sklearn.model_selection import ShuffleSplit

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.table.splits import _drawn


@pytest.mark.parametrize("num_rows", [4, 10, 17, 12_345])
@pytest.mark.parametrize("share", [0.1, 0.1 / 0.9, 1 / 3, 0.7])
@pytest.mark.parametrize("seed", [0, 7])
def test_plain_draws_equal_those_of_scikit_learn(num_rows, share, seed):
    splitter = ShuffleSplit(1, test_size=share, random_state=seed)
    _, expected = next(splitter.split(np.zeros(num_rows)))
    found = _drawn(num_rows, share, None, None, seed)
    assert found.tolist() == sorted(expected.tolist())


def test_a_share_of_all_rows_is_an_error():
    with pytest.raises(ConfigError, match=r"89% of 2 rows, rounded up, leaves none"):
        _drawn(2, 0.8 / 0.9, None, None, 0)
