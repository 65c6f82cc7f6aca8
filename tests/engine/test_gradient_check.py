"""zero2 checks the norm of the gradient, not each tensor: fewer calls, the same bits and errors."""

import rank_work
from forked_ranks import run_on_ranks


def test_norm_replaces_the_check_of_each_tensor(tmp_path):
    [answers] = run_on_ranks(rank_work.gradient_checks, 1, tmp_path)
    default, file = answers["default"], answers["file"]
    assert default["sha256"] == file["sha256"]
    assert file["calls"] < default["calls"] - 5 * answers["tensors"], answers
    for answer in (default, file):
        assert answer["error"].startswith("the gradient is not finite")
