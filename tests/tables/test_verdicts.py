"""Verdicts, simultaneous intervals, marks and the smallest effect of interest."""

import csv
import io
import math
import random
import re
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tables_study import accuracy_of, complete, finish, notes, row, study

from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.tables.collect import collect
from furnace_hpc.tables.output.captions import caption
from furnace_hpc.tables.output.cells import all_cells
from furnace_hpc.tables.output.latex import to_latex
from furnace_hpc.tables.output.render import to_csv, to_markdown, to_terminal
from furnace_hpc.tables.output.report import to_html
from furnace_hpc.tables.output.verdict import verdict, verdict_sentences
from furnace_hpc.tables.statistics import estimates
from furnace_hpc.tables.statistics.significance import format_p
from furnace_hpc.tables.statistics.verdicts import (
    Verdict,
    judge,
    pairs_to_resolve,
    with_family,
)
from furnace_hpc.tables.table import Ablation

GAINS = [0.021, 0.013, 0.018, 0.009, 0.016]  # mean .0154, deviation .0046


def difference(values: list[float], family: int = 1, sesoi: float | None = None):
    (found,) = with_family(
        [estimates.paired_difference(values, [0.0] * len(values))], family, sesoi
    )
    return found


def made(path, gains: dict[str, list[float]], **changes) -> Ablation:
    """A study whose rows differ from the reference by these gains, one per seed."""
    grid, runs = study(**changes)
    folder = GridFolder(path / "study")
    for spec in runs:
        base = 0.8 + 0.003 * spec.config.seed
        gain = gains.get(spec.variant, [0.0] * 5)[spec.config.seed]
        finish(spec, folder, accuracy=base + gain)
    return collect(grid, runs, folder)


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (0.0306, ".031"),
        (0.0494, ".049"),
        (0.0496, ".0496"),
        (0.04996, ".04996"),
        (0.05, ".050"),
        (0.0504, ".050"),
        (0.00099, "< .001"),
        (1.0, "1.000"),
        (None, ""),
    ],
)
def test_p_below_the_level_is_shown_below_it(p, text):
    assert format_p(p) == text


# Simultaneous intervals


@pytest.mark.parametrize("family", [1, 3, 60])
def test_simultaneous_interval_agrees_with_scipy(family):
    found = difference(GAINS, family)
    oracle = scipy.stats.ttest_1samp(GAINS, 0).confidence_interval(1 - 0.05 / family)
    assert found.simultaneous == pytest.approx((oracle.low, oracle.high), rel=1e-9)
    assert found.interval_at(0.95) == pytest.approx(found.interval)
    assert found.deviation == pytest.approx(estimates.sample_deviation(GAINS))


def test_wrong_verdicts_of_a_family():
    """At most 5 % of tables without a difference have a mark. Uncorrected intervals mark 13 %."""
    generator = random.Random(0)
    marked, uncorrected = 0, 0
    for _ in range(1000):
        reference, *others = [[generator.gauss(0.8, 0.02) for _ in range(5)] for _ in range(4)]
        found = [estimates.paired_difference(other, reference) for other in others]
        uncorrected += any(one.interval[0] > 0 or one.interval[1] < 0 for one in found)
        verdicts = [judge(one, True) for one in with_family(found, 3)]
        marked += any(word is not Verdict.UNDECIDED for word in verdicts)
    assert marked <= 65
    assert uncorrected >= 90


@given(
    st.lists(st.floats(-0.1, 0.1), min_size=2, max_size=8),
    st.integers(1, 20),
    st.booleans(),
)
def test_a_mark_means_an_interval_without_zero(values, family, higher_is_better):
    found = difference(values, family, sesoi=0.01)
    word = judge(found, higher_is_better)
    is_marked = word in (Verdict.BETTER, Verdict.WORSE)
    assert is_marked == (found.shown is not None and not found.shown[0] <= 0 <= found.shown[1])
    if is_marked:
        assert (word is Verdict.BETTER) == ((found.mean > 0) == higher_is_better)


# Equivalence


@pytest.mark.parametrize("sesoi", [0.003, 0.01, 0.02])
def test_equivalence_agrees_with_scipy(sesoi):
    values = [0.001, -0.002, 0.0015, 0.0, -0.001]
    above = scipy.stats.ttest_1samp(values, -sesoi, alternative="greater").pvalue
    below = scipy.stats.ttest_1samp(values, sesoi, alternative="less").pvalue
    assert difference(values, 1, sesoi).equivalence_p == pytest.approx(max(above, below))
    assert difference(values, 3, sesoi).equivalence_p == pytest.approx(
        min(1, 3 * max(above, below))
    )


def test_equivalence_agrees_with_statsmodels():
    weights = pytest.importorskip("statsmodels.stats.weightstats")
    ours, zeros = [0.011, -0.012, 0.005, 0.0, -0.001], [0.0] * 5
    p, *_ = weights.ttost_paired(np.array(ours), np.array(zeros), -0.02, 0.02)
    assert difference(ours, 1, 0.02).equivalence_p == pytest.approx(p)


def test_corrections_agree_with_statsmodels():
    weights = pytest.importorskip("statsmodels.stats.weightstats")
    corrected = pytest.importorskip("statsmodels.stats.multitest").multipletests
    rows = [GAINS, [0.001, -0.002, 0.0015, 0.0, -0.001], [value - 0.015 for value in GAINS]]
    found = with_family([estimates.paired_difference(row, [0.0] * 5) for row in rows], 3)
    holm_p = corrected([one.t_p for one in found], method="holm")[1]
    assert [one.holm_p for one in found] == pytest.approx(list(holm_p))
    for one, values in zip(found, rows, strict=True):
        interval = weights.DescrStatsW(values).tconfint_mean(0.05 / 3)
        assert one.simultaneous == pytest.approx(interval)


def test_verdicts_worked_by_hand():
    small = [0.001, -0.002, 0.0015, 0.0, -0.001]
    assert judge(difference(GAINS), True) is Verdict.BETTER
    assert judge(difference(GAINS), False) is Verdict.WORSE
    assert judge(difference(small), True) is Verdict.UNDECIDED  # without sesoi
    assert judge(difference(small, 3, 0.01), True) is Verdict.EQUIVALENT
    assert judge(difference(small, 3, 0.001), True) is Verdict.UNDECIDED
    assert judge(difference([0.1]), True) is Verdict.UNDECIDED
    assert judge(None, True) is Verdict.UNDECIDED


# The smallest effect of interest


def test_pairs_that_resolve_an_effect():
    """The number follows from the spread alone, with the correction."""
    rows = [difference(GAINS), difference([value - 0.5 for value in GAINS]), None]
    number, deviation = pairs_to_resolve(rows, 3, 0.005)
    assert deviation == pytest.approx(estimates.sample_deviation(GAINS))
    effect = 0.005 / deviation
    assert estimates.power_of(effect, number, 1 - 0.05 / 3) >= 0.8
    assert estimates.power_of(effect, number - 1, 1 - 0.05 / 3) < 0.8
    assert pairs_to_resolve(rows, 1, 0.005)[0] < number
    assert pairs_to_resolve(rows, 3, 1e-6)[0] is None
    assert pairs_to_resolve([None, difference([0.1])], 2, 0.01) is None
    assert pairs_to_resolve([replace(rows[0], shares_samples=True)], 3, 0.005) is None


def test_deviation_is_pooled_over_rows():
    # deviations 1 and 3 with 2 and 2 degrees of freedom: sqrt((2 + 18) / 4)
    rows = [difference([1.0, 2.0, 3.0]), difference([1.0, 4.0, 7.0])]
    assert pairs_to_resolve(rows, 2, 1.0)[1] == pytest.approx(math.sqrt(5))


def test_seeds_are_advised_only_with_sesoi(tmp_path):
    wide = {"full": [0.03, -0.02, 0.05, -0.01, 0.02]}
    assert "seed" not in notes(made(tmp_path / "a", wide)).replace("the same for every seed", "")
    ablation = made(tmp_path / "b", wide, sesoi=1.0)
    found = re.search(r"about (\d+) seeds resolve 1 point: paired t test at 5 %", notes(ablation))
    assert int(found[1]) == pairs_to_resolve([row(ablation, "full").difference], 6, 0.01)[0]
    assert "more than 1,000 seeds" in notes(made(tmp_path / "c", wide, sesoi=0.001))


@pytest.mark.parametrize("sesoi", [0, -1, math.nan, "1", True])
def test_sesoi_must_be_a_positive_number(sesoi):
    with pytest.raises(ValidationError, match="sesoi"):
        study(sesoi=sesoi)


def test_sesoi_changes_no_run():
    assert [run.run_id for run in study(sesoi=1.0)[1]] == [run.run_id for run in study()[1]]


# Every output


@pytest.fixture(scope="module")
def judged(tmp_path_factory) -> Ablation:
    small = [0.001, -0.002, 0.0015, 0.0, -0.001]
    harm = [-gain for gain in GAINS]
    gains = {"consistency_only": harm, "specific_only": small, "full": GAINS}
    return made(tmp_path_factory.mktemp("judged"), gains, sesoi=1.0)


def test_every_output_marks_better_and_worse_apart(judged):
    from rich.console import Console

    words = [cells.verdict for cells in all_cells(judged)]
    assert words == ["\u2013", "worse", "equivalent", "better"]
    marks = [re.sub(r"[^*\u2020]", "", cells.difference) for cells in all_cells(judged)]
    assert marks == ["", "\u2020", "", "*"]
    assert "]\u2020 | worse |" in to_markdown(judged)
    assert "]\\* | better |" in to_markdown(judged)
    latex = to_latex(judged).split("-effects", 1)[0]
    assert latex.count("]\u2020}") + latex.count("]\u2020 ") == 1
    assert latex.count("]*}") + latex.count("]* ") == 1
    assert "two one-sided t tests): specific\\_\\allowbreak{}only." in latex
    assert "]\u2020</td>" in to_html(judged)
    lines = list(csv.DictReader(io.StringIO(to_csv(judged))))
    assert [line["verdict"] for line in lines] == ["", "worse", "equivalent", "better"]
    text = io.StringIO()
    Console(file=text, width=160).print(to_terminal(judged, 160))
    assert "]\u2020" in text.getvalue()
    assert "equivalent" in text.getvalue()


def test_the_report_opens_with_a_sentence_per_row(judged):
    """Its numbers are those of the table."""
    cells = {found.variant: found.difference.rstrip("*\u2020") for found in all_cells(judged)}
    sentences = dict(verdict_sentences(judged))
    number, interval = cells["full"].split(" ", 1)
    assert sentences["better"] == f"full is better than base: {number} points {interval}."
    assert sentences["equivalent"].startswith("specific_only is equivalent to base: ")
    assert re.search(r"less than 1 point \(p [<.\d ]+\)\.$", sentences["equivalent"])
    page = to_html(judged)
    assert page.index(sentences["better"]) < page.index('<table id="table"')
    assert "How to read this table" in page
    assert verdict(judged).startswith(f"better than base: full ({number} points {interval}); worse")


def test_sentences_say_why_a_row_is_undecided(tmp_path):
    grid, runs = study()
    folder = GridFolder(tmp_path)
    for spec in runs[:-1]:
        noise = 0.01 * (-1) ** spec.config.seed * (spec.variant == "consistency_only")
        finish(spec, folder, accuracy=accuracy_of(spec) + noise)
    sentences = " ".join(text for _, text in verdict_sentences(collect(grid, runs, folder)))
    assert "full against base is undecided: +" in sentences
    assert "1 of 5 missing, and the rest may be the better runs." in sentences
    assert "the interval contains zero." in sentences


def test_direction_decides_what_is_better(tmp_path):
    grid, runs = study(metric="test/digit/loss")
    folder = GridFolder(tmp_path)
    for spec in runs:
        gain = GAINS[spec.config.seed] if spec.variant == "full" else 0.0
        finish(spec, folder, metrics={"test/digit/loss": 0.5 + gain})
    assert row(collect(grid, runs, folder), "full").verdict is Verdict.WORSE


def test_a_better_mean_alone_is_not_under_training(tmp_path):
    """A sanity row like the reference has the better mean in half of the studies."""
    noise = [0.02, -0.01, 0.005, -0.012, 0.004]
    same = made(tmp_path / "same", {"full": noise}, sanity=["full"])
    assert row(same, "full").mean > row(same, "base").mean
    assert same.stronger_sanity == ()
    assert "under-trained" not in to_markdown(same)
    better = made(tmp_path / "better", {"full": GAINS}, sanity=["full"])
    assert better.stronger_sanity == ("full",)
    assert "under-trained" in to_markdown(better)


def test_the_caption_names_the_family(tmp_path):
    text = " ".join(caption(complete(tmp_path), ("holm_p",)))
    assert "95 % for all together, Bonferroni, 3 rows" in text
    assert "* better, \u2020 worse: the interval excludes zero, and no run is missing." in text
    assert "Equivalent" not in text
