"""Hedges' g, probability of improvement, correlation, interquartile mean and the exact test."""

import csv
import io
import math
import random
import re
from itertools import product
from statistics import fmean

import numpy as np
import pytest
from scipy import integrate, stats
from scipy.stats import mstats
from tables_study import finish, notes, row, study

from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.tables.collect import collect
from furnace_hpc.tables.large.paired import pair_statistics_of
from furnace_hpc.tables.output.captions import caption
from furnace_hpc.tables.output.cells import all_cells, headings
from furnace_hpc.tables.output.render import to_csv, to_markdown
from furnace_hpc.tables.output.report import to_html
from furnace_hpc.tables.statistics import estimates, pairs
from furnace_hpc.tables.statistics.estimates import exact_interval, paired_difference
from furnace_hpc.tables.statistics.resampling import corrected
from furnace_hpc.tables.statistics.robust import interquartile_mean
from furnace_hpc.tables.statistics.units import Pairs
from furnace_hpc.tables.table import Ablation

GAINS = [0.021, 0.013, 0.018, 0.009, 0.016]
EXTRA = ["difference", "hedges_g", "improvement", "correlation", "iqm"]


def difference(values: list[float]):
    return paired_difference(values, [0.0] * len(values))


def made(path, gains: list[float], **changes) -> Ablation:
    """Two rows that differ by these gains."""
    rows = {"variants": {"base": {}, "full": {"loss.alpha": 0.5}}, "seeds": [*range(len(gains))]}
    grid, runs = study(**{**rows, **changes})
    folder = GridFolder(path / "study")
    for spec in runs:
        gain = gains[spec.config.seed] if spec.variant != "base" else 0.0
        finish(spec, folder, accuracy=0.8 + 0.003 * (spec.config.seed % 4) + gain)
    return collect(grid, runs, folder)


# Hedges' g


def test_correction_of_hedges():
    """The exact factors that Hedges (1981) tabulates: .5642 with 2 degrees of freedom."""
    for n, factor in ((3, 0.5642), (4, 0.7236), (5, 0.7979), (11, 0.9228), (51, 0.9849)):
        found = difference([0.0] * (n - 1) + [1.0])
        g, _ = pairs.hedges_g(found)
        assert g / found.effect == pytest.approx(factor, abs=6e-5)


def test_mean_of_hedges_g_is_the_true_effect():
    """Cohen's d of 5 pairs is too large by a quarter."""
    draws = np.random.default_rng(0).normal(0.8, 1.0, (2000, 5))
    found = [pairs.hedges_g(difference(line.tolist())) for line in draws]
    assert fmean(g for g, _ in found) == pytest.approx(0.8, abs=0.04)
    holds = [interval[0] <= 0.7979 * 0.8 <= interval[1] for _, interval in found]
    assert fmean(holds) == pytest.approx(0.95, abs=0.016)  # the interval of d, times J


def test_interval_of_hedges_g_is_the_noncentral_t():
    """Integrate the density of scipy's noncentral t above and below the observed t."""
    found = difference(GAINS)
    g, (low, high) = pairs.hedges_g(found)
    factor, t = g / found.effect, found.effect * math.sqrt(5)
    for bound, tail in ((low, (t, np.inf)), (high, (-np.inf, t))):
        shift = bound / factor * math.sqrt(5)
        area, _ = integrate.quad(lambda x, s=shift: stats.nct.pdf(x, 4, s), *tail)
        assert area == pytest.approx(0.025, abs=1e-6)
    g, (low, high) = pairs.hedges_g(difference([-gain for gain in GAINS]))
    assert low < g / factor < high < 0


def test_when_there_is_no_hedges_g():
    assert pairs.hedges_g(difference([0.1, 0.2])) == (None, None)
    assert pairs.hedges_g(difference([0.1, 0.1, 0.1])) == (None, None)
    shared = corrected(difference(GAINS), 0.4)
    g, interval = pairs.hedges_g(shared)
    assert g == pytest.approx(pairs.hedges_g(difference(GAINS))[0])
    assert interval is None
    extreme = difference([1.0, 1.0, 1.0 + 1e-6])  # d is about a million
    g, interval = pairs.hedges_g(extreme)
    assert interval is None
    assert g > 1e5


# Probability of improvement and correlation


@pytest.mark.parametrize("n", [1, 5, 12])
def test_exact_interval_agrees_with_scipy(n):
    for wins in range(n + 1):
        oracle = stats.binomtest(wins, n).proportion_ci(method="exact")
        assert exact_interval(wins / n, n) == pytest.approx((oracle.low, oracle.high))


def test_halves_widen_the_exact_interval():
    """Two and a half of 5 has the lower bound of 2 and the upper bound of 3."""
    low, _ = exact_interval(2 / 5, 5)
    _, high = exact_interval(3 / 5, 5)
    assert exact_interval(2.5 / 5, 5) == (low, high)


@pytest.mark.parametrize("n", [3, 5, 10, 30])
def test_exact_interval_holds_every_share(n):
    """Sum the binomial probabilities of all counts whose interval holds the true share."""
    for share in np.linspace(0.005, 0.995, 100):
        held = [
            stats.binom.pmf(wins, n, share)
            for wins in range(n + 1)
            if exact_interval(wins / n, n)[0] <= share <= exact_interval(wins / n, n)[1]
        ]
        assert sum(held) >= 0.95


def test_share_of_pairs_that_improve():
    ours, theirs = [0.9, 0.8, 0.7, 0.6], [0.8, 0.8, 0.6, 0.7]
    assert (
        pairs.improvement(Pairs((), ours, theirs), True) == 2.5 / 4
    )  # a win, a tie, a win, a loss
    assert pairs.improvement(Pairs((), ours, theirs), False) == 1.5 / 4
    rounded = [0.1 + 0.2, 0.3]
    assert pairs.improvement(Pairs((), rounded, [0.3, 0.3]), True) == 0.5


def test_correlation_agrees_with_scipy():
    generator = random.Random(0)
    ours = [generator.random() for _ in range(6)]
    theirs = [value + generator.random() for value in ours]
    assert pairs.correlation(ours, theirs) == pytest.approx(stats.pearsonr(ours, theirs).statistic)
    assert pairs.correlation(ours[:2], theirs[:2]) is None
    assert pairs.correlation(ours, [0.5] * 6) is None


# Interquartile mean


def test_interquartile_mean_worked_by_hand():
    """Of 12 runs the 6 in the middle count. An outlier does not."""
    values = [float(number) for number in range(11)] + [1000.0]
    center, (low, high) = interquartile_mean([values])
    assert center == pytest.approx(fmean([3, 4, 5, 6, 7, 8]))
    assert low < center < high
    assert interquartile_mean([values]) == (center, (low, high))
    assert interquartile_mean([values[:9]]) is None
    assert interquartile_mean([[1.0]] * 10) == (1.0, None)


@pytest.mark.parametrize("n", [10, 11, 14, 33])
def test_interquartile_interval_agrees_with_scipy(n):
    values = np.random.default_rng(n).standard_t(3, n)
    _, interval = interquartile_mean([values.tolist()])
    assert interval == pytest.approx(mstats.trimmed_mean_ci(values, limits=(0.25, 0.25)))


def test_interquartile_mean_of_several_packs():
    """Differences between packs do not count. Packs need ten runs each for an interval."""
    draws = np.random.default_rng(2).normal(size=(3, 12))
    alike, apart = draws.tolist(), (draws + 9.0 * np.arange(3)[:, None]).tolist()
    center, (low, high) = interquartile_mean(alike)
    pooled = interquartile_mean([draws.ravel().tolist()])
    assert center == pooled[0]
    assert (low, high) == pytest.approx(pooled[1], abs=0.06)
    _, (low, high) = interquartile_mean(apart)
    assert high - low < 0.3 * np.diff(interquartile_mean([np.ravel(apart).tolist()])[1])[0]
    assert interquartile_mean([one[:9] for one in alike])[1] is None


@pytest.mark.parametrize("packs", [1, 3])
def test_coverage_of_the_interquartile_mean(packs):
    """Of 2,000 studies 93 to 98 % hold the true value, with 10 runs on each pack."""
    generator, held = np.random.default_rng(5), 0
    for values in generator.normal(size=(2000, packs, 10)).tolist():
        _, (low, high) = interquartile_mean(values)
        held += low <= 0 <= high
    assert 0.93 <= held / 2000 <= 0.98


# In the table


def test_optional_columns_are_shown_if_named(tmp_path):
    usual = made(tmp_path / "a", GAINS)
    assert not {"hedges_g", "improvement", "correlation", "iqm"} & headings(usual).keys()
    ablation = made(tmp_path / "b", GAINS * 2, columns=EXTRA)
    titles = headings(ablation)
    assert list(titles) == ["variant", *EXTRA]
    base, full = all_cells(ablation)
    found = pair_statistics_of(ablation, row(ablation, "full"))
    low, high = found.hedges_g_interval
    assert full.hedges_g == f"{found.hedges_g:+.2f} [{low:.2f}, {high:.2f}]"
    assert full.improvement == "1.00 [0.69, 1.00]"  # 10 of 10
    ours, theirs = (list(row(ablation, name).values.values()) for name in ("full", "base"))
    assert full.correlation == f"{np.corrcoef(ours, theirs)[0, 1]:+.2f}"
    assert (base.hedges_g, base.improvement, base.correlation) == ("\u2013",) * 3
    assert float(full.iqm.split()[0]) == pytest.approx(100 * stats.trim_mean(ours, 0.25), abs=0.1)
    text = to_markdown(ablation)
    assert all(cell in text for cell in (full.hedges_g, full.improvement, full.iqm))
    about = " ".join(caption(ablation, titles))
    for words in ("Hedges 1981", "Clopper", "Pearson", "Agarwal et al. 2021"):
        assert words in about
        assert words not in " ".join(caption(usual, headings(usual)))


def test_nine_runs_have_no_interquartile_mean(tmp_path):
    ablation = made(tmp_path, GAINS, columns=["iqm"])
    assert [cells.iqm for cells in all_cells(ablation)] == ["\u2013"] * 2


def test_csv_and_report_have_the_statistics(tmp_path):
    ablation = made(tmp_path, GAINS)
    base, full = csv.DictReader(io.StringIO(to_csv(ablation)))
    found = pair_statistics_of(ablation, row(ablation, "full"))
    assert float(full["hedges_g"]) == found.hedges_g
    assert float(full["hedges_g_high"]) == found.hedges_g_interval[1]
    assert (float(full["improvement"]), full["improvement_high"]) == (1.0, "1.0")
    assert float(full["improvement_low"]) == pytest.approx(0.4782, abs=1e-4)
    assert float(full["correlation"]) == found.correlation
    assert (base["hedges_g"], base["improvement"], base["correlation"]) == ("",) * 3
    assert "iqm" not in full
    assert f'["P(improvement)","{1:.2f} [0.48, 1.00]"]' in to_html(ablation)


# The exact test


def test_exact_equivalence_counts_all_signs():
    """The larger p of two one-sided tests, each over all signs of the shifted differences."""
    for gains in ([0.1, -0.3, 0.2, 0.4, -0.1], [0.9, 0.7, -0.2, 0.1], [0.1, 0.2, 0.1]):
        found = []
        for bound in (1.0, -1.0):
            shifted = [gain + bound for gain in gains]
            signs = product((1, -1), repeat=len(gains))
            sums = [sum(a * b for a, b in zip(one, shifted, strict=True)) for one in signs]
            found.append(fmean(s * bound >= sum(shifted) * bound - 1e-9 for s in sums))
        assert estimates.sign_flip_equivalence(gains, 1.0) == max(found)
    assert estimates.sign_flip_equivalence([0.1, 0.2, 0.1], 1.0) == 1 / 8  # the smallest possible
    assert estimates.sign_flip_equivalence([0.1, 1.2], 0.5) == 1.0
    assert estimates.sign_flip_equivalence([0.1], 0.5) is None


def test_an_equivalence_rests_on_normality(tmp_path):
    """A t test with three seeds is certain where the exact test cannot be."""
    ablation = made(tmp_path / "few", [0.001, 0.0, -0.001], sesoi=2.0)
    assert row(ablation, "full").verdict == "equivalent"
    expected = "rests on normality: the exact sign-flip test of equivalence cannot go below p .125"
    assert expected in notes(ablation)
    many = made(tmp_path / "many", [0.001, 0.0, -0.001] * 3, sesoi=2.0)
    assert row(many, "full").verdict == "equivalent"
    assert "rests on normality" not in notes(many)


def test_uneven_deviations_are_named(tmp_path):
    """A number of seeds from one pooled deviation describes no row."""
    rows = {"base": {}, "calm": {"loss.alpha": 0.5}, "wild": {"loss.beta": 0.3}}
    grid, runs = study(variants=rows, seeds=[0, 1, 2, 3], sesoi=1.0)
    folder = GridFolder(tmp_path)
    for spec in runs:
        size = {"base": 0.0, "calm": 0.001, "wild": 0.02}[spec.variant]
        finish(spec, folder, accuracy=0.8 + size * GAINS[spec.config.seed] * 100)
    text = notes(collect(grid, runs, folder))
    found = re.search(r"own deviations are from ([0-9.]+) to ([0-9.]+), so a row", text)
    assert float(found[2]) / float(found[1]) == pytest.approx(20, rel=0.05)
    assert "own deviations" not in notes(made(tmp_path / "even", GAINS, sesoi=1.0))


def test_a_mark_rests_on_normality(tmp_path):
    """Five seeds allow no p below .0625. One note names all rows that it concerns."""
    ablation = made(tmp_path, GAINS)
    (note,) = [note for note in ablation.notes if note.text.startswith("rests on normality")]
    assert note.text == (
        "rests on normality: the exact sign-flip test cannot go below p .0625 with 5 seeds, and "
        "p below .05 is needed"
    )
    assert note.variants == ("full",)


def test_rows_of_one_note_are_merged(tmp_path):
    rows = {"base": {}, "a": {"loss.alpha": 0.5}, "b": {"loss.beta": 0.3}}
    ablation = made(tmp_path, [*GAINS, 0.017], variants=rows)
    (note,) = [note for note in ablation.notes if note.text.startswith("rests on normality")]
    assert note.variants == ("a", "b")
    assert note.text.endswith(
        "cannot go below p .03125 with 6 seeds, and p below .025 is needed for 2 rows"
    )


def test_the_needed_level_has_the_digits_of_exact_p(tmp_path):
    """With nine rows .05 / 9 was shown as .006, above the p .005859 that does not reach it."""
    names = {f"row{number}": {"loss.alpha": number / 10} for number in range(1, 10)}
    grid, runs = study(variants={"base": {}} | names, seeds=list(range(11)))
    gains = [0.02, 0.021, 0.019, 0.022, 0.018, 0.02, 0.021, 0.004, 0.0045, -0.002, -0.003]
    folder = GridFolder(tmp_path)
    for spec in runs:
        gain = 0.0 if spec.variant == "base" else gains[spec.config.seed]
        finish(spec, folder, accuracy=0.8 + gain)
    text = notes(collect(grid, runs, folder))
    found = re.search(r"gives p (\.\d+), and p below (\.\d+) is needed for 9 rows", text)
    assert float(found[2]) <= float(found[1]) < 0.006


def test_the_exact_test_confirms_or_does_not(tmp_path):
    assert "rests on normality" not in notes(made(tmp_path / "a", [*GAINS, 0.017, 0.02]))
    # one small difference has the other sign: the t test marks the row, the exact test has p .0625
    ablation = made(tmp_path / "b", [0.02, 0.021, 0.019, 0.022, 0.018, -0.001])
    assert row(ablation, "full").difference.t_p < 0.01
    assert row(ablation, "full").verdict == "better"
    assert "rests on normality: the exact sign-flip test gives p .0625" in notes(ablation)
