"""Tests, corrections and effect sizes of a few seeds, against scipy and hand-worked numbers."""

import itertools
import math
import random

import pytest
import scipy.stats

from furnace_hpc.tables.statistics import estimates
from furnace_hpc.tables.statistics.estimates import Difference


def pairs(n: int, shift: float = 0.01) -> tuple[list[float], list[float]]:
    generator = random.Random(n)
    reference = [generator.gauss(0.8, 0.01) for _ in range(n)]
    return [value + generator.gauss(shift, 0.01) for value in reference], reference


def minus(ours: list[float], theirs: list[float]) -> list[float]:
    return [value - other for value, other in zip(ours, theirs, strict=True)]


@pytest.mark.parametrize("n", [2, 3, 5, 10, 30])
def test_t_test_agrees_with_scipy(n):
    ours, theirs = pairs(n)
    assert estimates.t_test(minus(ours, theirs)) == pytest.approx(
        scipy.stats.ttest_rel(ours, theirs).pvalue, rel=1e-9
    )
    assert estimates.paired_difference(ours, theirs).t_p == estimates.t_test(minus(ours, theirs))


def test_t_test_of_equal_differences():
    assert estimates.t_test([0.25, 0.25, 0.25]) is None
    assert estimates.t_test([0.0, 0.0]) is None
    assert estimates.t_test([0.1]) is None


@pytest.mark.parametrize("n", [2, 3, 5, 8, 11])
@pytest.mark.parametrize("shift", [0.0, 0.004, 0.05])
def test_sign_flip_agrees_with_scipy(n, shift):
    differences = minus(*pairs(n, shift))
    oracle = scipy.stats.permutation_test(
        (differences,), sum, permutation_type="samples", n_resamples=10_000
    )
    assert estimates.sign_flip_test(differences) == pytest.approx(oracle.pvalue, abs=1e-12)


def test_sign_flip_counts_every_pattern_with_its_ties():
    # sums of (+-1 +-1 +-2): 4 2 2 0 0 -2 -2 -4; at least as far from zero as 1 - 1 + 2 = 2: six of
    # eight
    assert estimates.sign_flip_test([1.0, -1.0, 2.0]) == 6 / 8
    # 0.1 + 0.2 is not 0.3: the tie counts all the same
    assert estimates.sign_flip_test([0.1, 0.2, 0.3]) == 2 / 8
    tied = [0.1, 0.2, -0.3]
    assert estimates.sign_flip_test(tied) == 1.0
    values = [0.1, 0.3, 0.2, -0.1, 0.3, -0.2, 0.1]
    total = abs(sum(round(10 * value) for value in values))
    flips = [
        abs(sum(s * round(10 * value) for s, value in zip(signs, values, strict=True)))
        for signs in itertools.product((1, -1), repeat=7)
    ]
    assert estimates.sign_flip_test(values) == sum(flip >= total for flip in flips) / 2**7


@pytest.mark.parametrize("n", [2, 5, 10, 20, 32])
def test_sign_flip_floor(n):
    assert estimates.sign_flip_test(
        [1.0 + number / 100 for number in range(n)]
    ) == estimates.sign_flip_floor(n)
    assert estimates.sign_flip_floor(5) == 0.0625


def test_sign_flip_of_too_few_or_too_many_pairs():
    assert estimates.sign_flip_test([1.0]) is None
    assert estimates.sign_flip_test([1.0] * 33) is None


def test_holm_worked_by_hand():
    # sorted .005 .01 .03 .04 times 4 3 2 1: .02 .03 .06 .04, and none below the one before it
    assert estimates.holm([0.01, 0.04, 0.03, 0.005], 4) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert estimates.holm([0.9, 0.6], 2) == [1.0, 1.0]
    assert estimates.holm([0.02], 1) == [0.02]
    assert estimates.holm([], 0) == []
    assert estimates.holm([0.01, 0.02], 3) == pytest.approx([0.03, 0.04])  # times 3 2


def test_holm_counts_rows_with_a_test():
    rows = [
        None,
        Difference(0.1, (0, 1), 5, t_p=0.01),
        Difference(0.1, None, 1),
        Difference(0.1, (0, 1), 5, t_p=0.04),
    ]
    corrected = estimates.with_holm(rows, 2)
    assert [row and row.holm_p for row in corrected] == [None, 0.02, None, 0.04]


def test_effect_size_worked_by_hand():
    assert estimates.effect_size([1, 2, 3, 4, 5]) == pytest.approx(3 / math.sqrt(2.5))
    assert estimates.effect_size([0.5, 0.5]) is None
    assert estimates.effect_size([1.0]) is None


@pytest.mark.parametrize(("effect", "n"), [(0.5, 34), (0.8, 15), (1.0, 10), (-0.5, 34), (0.2, 199)])
def test_pairs_needed_agree_with_gpower(effect, n):
    # G*Power 3.1, difference between two dependent means, two-tailed, alpha .05, power .8
    assert estimates.pairs_needed(effect, estimates.LEVEL) == n


def test_power_agrees_with_scipys_noncentral_t():
    for effect, n in ((0.3, 8), (1.2, 5), (0.9, 20)):
        bound = scipy.stats.t.ppf(0.975, n - 1)
        oracle = scipy.stats.nct.sf(bound, n - 1, effect * math.sqrt(n))
        assert estimates.power_of(effect, n, 0.95) == pytest.approx(oracle, rel=1e-6)


def test_large_effects_need_few_pairs():
    """SciPy's noncentral t is NaN for some large shifts, so the search took 251 pairs for 2.5."""
    needed = [estimates.pairs_needed(effect / 10, 0.95) for effect in range(10, 200)]
    assert needed == sorted(needed, reverse=True)
    assert (needed[0], needed[15], needed[40]) == (10, 4, 3)


def test_power_of_large_effects_is_a_number():
    for level in (0.95, 1 - 0.05 / 60):
        for n in (2, 3, 5, 50, 500):
            powers = [estimates.power_of(effect / 4, n, level) for effect in range(1, 400)]
            assert all(0 <= power <= 1 for power in powers)
            assert all(later >= power - 2e-3 for power, later in itertools.pairwise(powers))


def test_too_small_effects_need_too_many_pairs():
    assert estimates.pairs_needed(0.01, estimates.LEVEL) is None


# Differences without variation


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([0.85, 0.85, 0.85], [0.80, 0.80, 0.80]),
        ([85.0, 85.0, 85.0], [80.0, 80.0, 80.0]),
        ([0.85, 0.90, 0.95], [0.80, 0.85, 0.90]),  # equal but for rounding
        ([0.85, 0.85 + 1e-15], [0.80, 0.80]),
        ([0.8, 0.8], [0.8, 0.8]),
        ([1e9 + 1, 2e9 + 1], [1e9, 2e9]),
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
    ],
)
def test_equal_differences_have_no_test(ours, theirs):
    difference = estimates.paired_difference(ours, theirs)
    assert difference.is_constant
    assert difference == Difference(difference.mean, None, len(ours))
    assert difference.mean == pytest.approx(ours[0] - theirs[0], abs=1e-9 * max(ours))


def test_small_but_real_variation_is_tested():
    difference = estimates.paired_difference([0.85, 0.850001], [0.80, 0.80])
    assert not difference.is_constant
    assert difference.t_p == pytest.approx(
        scipy.stats.ttest_rel([0.85, 0.850001], [0.80, 0.80]).pvalue, rel=1e-6
    )
    assert not estimates.paired_difference([0.9], [0.8]).is_constant


# Resolution: accuracies change in steps of one sample


def test_deviation_is_at_least_the_resolution():
    """Two equal gains of one sample of 1,000 are no proof."""
    one = estimates.paired_difference([0.801, 0.821], [0.8, 0.82], resolution=0.001)
    assert one.t_p == pytest.approx(0.3918, abs=1e-4)  # t = sqrt(2) with 1 degree of freedom
    half = 12.7062 * 0.001 / math.sqrt(2)
    assert one.interval == pytest.approx((0.001 - half, 0.001 + half), abs=1e-7)
    assert one.effect == pytest.approx(1)
    many = estimates.paired_difference([0.851, 0.871], [0.8, 0.82], resolution=0.001)
    assert many.t_p == pytest.approx(2 * scipy.stats.t.sf(51 * math.sqrt(2), 1))
    assert estimates.paired_difference([0.9], [0.8], resolution=0.001) == Difference(
        pytest.approx(0.1), None, 1
    )


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_small_resolution_changes_nothing(n):
    assert estimates.paired_difference(*pairs(n)) == estimates.paired_difference(
        *pairs(n), resolution=1e-9
    )


def test_gains_of_few_samples_are_not_significant():
    """Gains of 2, 2 and 3 samples: p = .02 without the resolution."""
    gains, zeros = [0.002, 0.002, 0.003], [0.0, 0.0, 0.0]
    assert estimates.paired_difference(gains, zeros).t_p == pytest.approx(0.0198, abs=1e-4)
    floored = estimates.paired_difference(gains, zeros, resolution=0.001)
    assert floored.t_p == pytest.approx(2 * scipy.stats.t.sf(7 / 3 * math.sqrt(3), 2))
    assert floored.t_p > 0.05
