"""Performance profiles: shares, bands, which rows have one, and the figures."""

import random
import re
from statistics import fmean

import numpy as np
import pytest
from scipy import stats
from tables_study import finish, study

from furnace_hpc.config.grids.expansion import expand
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.tables.collect import collect
from furnace_hpc.tables.output.figures import draw_figures
from furnace_hpc.tables.output.page.profiles_section import round_numbers
from furnace_hpc.tables.output.profiles import profile_panels, profile_sentences
from furnace_hpc.tables.output.report import to_html
from furnace_hpc.tables.statistics.profiles import profile
from furnace_hpc.tables.table import Ablation

ROWS = {"variants": {"base": {}, "full": {"loss.alpha": 0.5}, "other": {"loss.beta": 0.3}}}


def table(path, seeds: int = 10, without=(), **changes) -> Ablation:
    grid, runs = study(**{**ROWS, "seeds": [*range(seeds)], **changes})
    folder = GridFolder(path / "study")
    for spec in runs:
        if (spec.variant, spec.config.seed) not in without:
            noise = random.Random(f"{spec.variant} {spec.config.seed}").gauss(0, 0.01)
            finish(spec, folder, accuracy=0.8 + 0.02 * (spec.variant == "full") + noise)
    return collect(grid, runs, folder)


def test_shares_counted_by_hand():
    """Of ten runs, 0.9 is reached by three and exceeded by one."""
    values = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.9, 0.9, 1.0]
    steps = profile(values, higher_is_better=True)
    assert [(step.threshold, step.share) for step in steps[-3:]] == [(0.7, 0.3), (0.9, 0.1), (1, 0)]
    assert steps[0].share == 0.9
    lower = profile(values, higher_is_better=False)
    assert [(step.threshold, step.share) for step in lower[:3]] == [
        (1.0, 0.9),
        (0.9, 0.7),
        (0.7, 0.6),
    ]
    assert lower[-1] == (0.1, 0.0, 0.0, pytest.approx(0.3085, abs=1e-4))
    assert profile(values[:9], higher_is_better=True) == []


def test_bands_agree_with_scipy():
    values = np.random.default_rng(0).normal(size=12).tolist()
    for step in profile(values, higher_is_better=True):
        count = sum(value > step.threshold for value in values)
        oracle = stats.binomtest(count, 12).proportion_ci(method="exact")
        assert (step.low, step.high) == pytest.approx((oracle.low, oracle.high))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_bands_hold_the_true_share(share):
    """Also over packs of different difficulty, whose shares have this mean."""
    generator, held = np.random.default_rng(1), []
    threshold = stats.norm.isf(share)
    for _ in range(1000):
        one = generator.normal(loc=[[-0.5], [0.5]], size=(2, 5))
        true = fmean(stats.norm.sf(threshold, loc=[-0.5, 0.5]))
        steps = profile(one.ravel().tolist(), higher_is_better=True)
        below = [step for step in steps if step.threshold <= threshold]
        low, high = (below[-1].low, below[-1].high) if below else (0.6915, 1.0)
        held.append(low <= true <= high)
    assert fmean(held) >= 0.94


def test_each_row_has_a_panel_with_the_reference(tmp_path):
    ablation = table(tmp_path)
    found = profile_panels(ablation)
    assert [[line.name for line in panel] for panel in found.panels] == [
        ["base", "full"],
        ["base", "other"],
    ]
    full = found.panels[0][1]
    values = list(ablation.rows[1].values.values())
    for threshold, share in zip(full.thresholds, full.shares, strict=True):
        above = sum(value > threshold for value in values)
        assert round(10 * share) in (above, above + 1)  # both ends of a step
    assert full.thresholds == sorted(full.thresholds)
    assert full.shares[0] == 1.0
    assert full.shares[-1] == 0.0
    assert len(full.low) == len(full.high) == len(full.shares) == len(full.thresholds)


def test_lower_values_are_better(tmp_path):
    ablation = table(tmp_path, metric="test/digit/loss")
    found = profile_panels(ablation)
    assert found.title == "share of runs with test/digit/loss < threshold"
    line = found.panels[0][0]
    assert (line.shares[0], line.shares[-1]) == (0.0, 1.0)
    assert line.thresholds == sorted(line.thresholds)


def test_rows_that_lack_runs_have_no_profile(tmp_path):
    """The runs that remain may be the better ones."""
    ablation = table(tmp_path, without={("other", 3)})
    assert [panel[-1].name for panel in profile_panels(ablation).panels] == ["full"]
    assert profile_sentences(ablation)[-1].endswith("have no profile: other.")
    only_rows = table(tmp_path / "b", without={("base", 3)})
    assert [len(panel) for panel in profile_panels(only_rows).panels] == [1, 1]
    assert profile_panels(table(tmp_path / "c", seeds=5)) is None


def test_runs_of_all_packs_count(tmp_path):
    prints = {name: name * 16 for name in "ab"}
    grid, _ = study(**ROWS, seeds=[*range(5)])
    grid = Grid.model_validate(grid.model_dump() | {"packs": [*prints]})
    runs, folder = expand(grid, prints), GridFolder(tmp_path / "study")
    for spec in runs:
        finish(spec, folder, accuracy=0.7 + 0.01 * spec.config.seed)
    ablation = collect(grid, runs, folder)
    assert len(profile_panels(ablation).panels) == 2
    assert "share of the runs of all packs of a row" in profile_sentences(ablation)[0]


def test_report_and_figures_have_the_profiles(tmp_path):
    ablation = table(tmp_path)
    text = to_html(ablation)
    section = text.partition('<h2 id="profiles-title">')[2].partition("</section>")[0]
    assert section.count("<svg") == 2
    assert section.count('class="band"') == 4
    assert "share of runs with test/digit/accuracy &gt; threshold (%)" in section
    for points in re.findall(r'points="([^"]+)"', section):
        corners = [tuple(map(float, corner.split(","))) for corner in points.split()]
        assert all(0 <= x <= 330 and 0 <= y <= 210 for x, y in corners)
    assert {"profiles.svg", "profiles.png"} <= draw_figures(ablation).keys()
    marks = re.findall(r'text-anchor="middle">([^<]+)<', section.partition("</svg>")[0])
    assert 2 <= len(marks) <= 5
    assert marks == sorted(marks)
    assert all(float(mark) * 10 % 5 == 0 for mark in marks)  # such as 79, 79.5 and 80
    few = table(tmp_path / "b", seeds=3)
    assert "profiles-title" not in to_html(few)
    assert "profiles.svg" not in draw_figures(few)


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        ((37.3, 81.0), [40, 50, 60, 70, 80]),
        ((0.12, 0.31), [0.15, 0.2, 0.25, 0.3]),
        ((-3.0, 1.0), [-3, -2, -1, 0, 1]),
        ((99.95, 100.05), [99.96, 99.98, 100, 100.02, 100.04]),
    ],
)
def test_axes_have_round_numbers(limits, wanted):
    assert round_numbers(*limits) == wanted
