"""Effects of factors: detection of full products, numbers, verdicts and the second table."""

import csv
import io
import random
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from factor_study import AXES, TWO_BY_TWO, noisy, table
from foreign_runs import table_of, write_csv
from rich.console import Console
from scipy import stats
from tables_study import GRID, finish, study

from furnace_hpc.config.grids.expansion import expand
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.manifest import PackOrigin
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.tables.collect import collect, compare_rows, judge_table
from furnace_hpc.tables.factors import factor_effects
from furnace_hpc.tables.output.latex import to_latex
from furnace_hpc.tables.output.render import to_effects_csv, to_markdown, to_terminal
from furnace_hpc.tables.output.report import to_html
from furnace_hpc.tables.output.results import write_results
from furnace_hpc.tables.statistics.factorial import Factor, contrasts, estimate
from furnace_hpc.tables.statistics.verdicts import Verdict
from furnace_hpc.tables.table import Ablation
from furnace_hpc.tables.view import View

# values of three seeds
CELLS = {
    (0, 0): [10.0, 12.0, 14.0],
    (0, 1): [13.0, 16.0, 16.0],
    (1, 0): [11.0, 11.0, 16.0],
    (1, 1): [18.0, 19.0, 22.0],
}


def names(ablation: Ablation) -> list[str]:
    return [effect.name for effect in ablation.effects.effects]


# Numbers


def test_effects_worked_by_hand():
    """Per seed, alpha: 3 1 4. Beta: 5 6 4. Interaction: 4 4 4."""
    alpha, beta, both = estimate(list(contrasts(TWO_BY_TWO, CELLS)), 0.0, 0.0)
    assert (alpha.name, beta.name, both.name) == ("alpha: 0 -> 1", "beta: 0 -> 1", "alpha x beta")
    assert alpha.difference.mean == pytest.approx(8 / 3)
    assert beta.difference.mean == pytest.approx(5)
    assert both.difference.mean == pytest.approx(4)
    assert both.difference.interval is None  # all seeds have the same interaction
    for effect, values in ((alpha, [3, 1, 4]), (beta, [5, 6, 4])):
        oracle = stats.ttest_1samp(values, 0)
        assert effect.difference.t_p == pytest.approx(oracle.pvalue)
        interval = oracle.confidence_interval()
        assert effect.difference.interval == pytest.approx((interval.low, interval.high))


def test_effects_agree_with_least_squares():
    """Regress the values of each seed on factors coded -1/2 and 1/2."""
    generator = random.Random(1)
    cells = {key: [generator.gauss(0, 1) for _ in range(6)] for key in product((0, 1), repeat=2)}
    found = estimate(list(contrasts(TWO_BY_TWO, cells)), 0.0, 0.0)
    design = np.array([[1, a - 0.5, b - 0.5, (a - 0.5) * (b - 0.5)] for a, b in cells])
    values = np.array(list(cells.values()))
    slopes = np.linalg.lstsq(design, values, rcond=None)[0][1:]
    for effect, of_seed in zip(found, slopes, strict=True):
        oracle = stats.ttest_1samp(of_seed, 0)
        assert effect.difference.mean == pytest.approx(of_seed.mean())
        assert effect.difference.t_p == pytest.approx(oracle.pvalue)


def test_main_effect_agrees_with_analysis_of_variance():
    """T squared is the F of a repeated-measures analysis of variance."""
    generator = random.Random(2)
    cells = {key: [generator.gauss(0, 1) for _ in range(5)] for key in product((0, 1), repeat=2)}
    alpha = estimate(list(contrasts(TWO_BY_TWO, cells)), 0.0, 0.0)[0].difference
    of_level = np.array([np.mean([cells[a, b] for b in (0, 1)], axis=0) for a in (0, 1)])
    grand, seeds = of_level.mean(), of_level.mean(axis=0)
    between = 5 * ((of_level.mean(axis=1) - grand) ** 2).sum()
    residual = of_level - of_level.mean(axis=1, keepdims=True) - seeds + grand
    f = between / ((residual**2).sum() / 4)
    assert alpha.t_p == pytest.approx(stats.f.sf(f, 1, 4))


def test_effects_of_the_published_demo():
    """Seeds with the means and intervals that an independent check of the demo found."""
    shape = np.array([[-2, -1, 0, 1, 2], [1, -2, 1, 1, -1], [1, 0, -2, 0, 1]])
    published = {"beta": (4.4, 2.8, 6.0), "alpha": (-2.3, -4.4, -0.2), "both": (3.45, -3.7, 10.6)}
    values = {}
    for line, (name, (mean, low, high)) in zip(shape, published.items(), strict=True):
        deviation = (high - low) / 2 / stats.t.ppf(0.975, 4) * 5**0.5
        values[name] = mean + (line - line.mean()) / line.std(ddof=1) * deviation
    cells = {}
    for a, b in product((0, 1), repeat=2):
        sign_a, sign_b = a - 0.5, b - 0.5
        of_cell = sign_a * values["alpha"] + sign_b * values["beta"]
        cells[a, b] = (80 + of_cell + sign_a * sign_b * values["both"]).tolist()
    alpha, beta, both = estimate(list(contrasts(TWO_BY_TWO, cells)), 0.0, 0.0)
    for effect, name in ((alpha, "alpha"), (beta, "beta"), (both, "both")):
        mean, low, high = published[name]
        assert effect.difference.mean == pytest.approx(mean)
        assert effect.difference.interval == pytest.approx((low, high), abs=0.051)
    assert round(beta.difference.t_p, 3) == 0.002
    assert alpha.difference.t_p == pytest.approx(0.036, abs=0.003)
    # the single rows: consistency only -4.0, specific only +2.7, both +2.1
    base = np.mean(cells[0, 0])
    rows = [np.mean(cells[key]) - base for key in ((1, 0), (0, 1), (1, 1))]
    assert rows == pytest.approx([-4.0, 2.7, 2.1], abs=0.051)


def test_rows_and_effects_are_one_family(tmp_path):
    """Intervals and Holm's correction count the three rows and the three effects."""
    ablation = table(tmp_path, noisy)
    values = {row.variant: np.array(list(row.values.values())) for row in ablation.rows}
    gain = values["full"] - values["base"]
    full = next(row for row in ablation.rows if row.variant == "full").difference
    beta = ablation.effects.effects[1].difference
    per_seed = gain + values["specific_only"] - values["consistency_only"]
    for difference, differences in ((full, gain), (beta, per_seed / 2)):
        oracle = stats.ttest_1samp(differences, 0).confidence_interval(1 - 0.05 / 6)
        assert difference.simultaneous == pytest.approx((oracle.low, oracle.high))
        assert difference.family == 6
    found = [row.difference for row in ablation.compared]
    found += [effect.difference for effect in ablation.effects.effects]
    smallest = min(found, key=lambda difference: difference.t_p)
    assert smallest.holm_p == pytest.approx(6 * smallest.t_p)
    largest = max(found, key=lambda difference: difference.t_p)
    assert largest.holm_p >= max(difference.holm_p for difference in found) - 1e-12
    text = to_markdown(ablation)
    assert text.count("95 % for all together, Bonferroni, 3 rows and 3 effects") == 3
    assert "Rows and effects are corrected together (3 rows and 3 effects)" in text
    grid = ablation.grid.model_copy(update={"direction": "min"})
    _, effects = judge_table(ablation.rows, grid, ablation.effects)
    assert effects.effects[0].verdict is Verdict.WORSE


@pytest.mark.parametrize("levels", [(2, 2), (3, 2), (3, 3)])
def test_wrong_marks_of_rows_and_effects(tmp_path, levels):
    """At most 5 % of tables without any difference have a mark on a row or an effect."""
    axes = {"loss.alpha": [0, 0.5, 0.7][: levels[0]], "loss.beta": [0, 0.3, 0.4][: levels[1]]}
    ablation = table(tmp_path, lambda spec: 0.8, **(AXES | {"axes": axes}))
    generator, marked, tested, count = np.random.default_rng(0), 0, 0, 200
    for _ in range(count):
        rows = {
            row.variant: [
                replace(run, value=float(generator.normal(0.8, 0.02))) for run in row.runs
            ]
            for row in ablation.rows
        }
        settings = {row.variant: row.changes for row in ablation.rows}
        compared = compare_rows(rows, ablation.grid.reference, (), lambda ours, theirs: ())
        compared = tuple(replace(row, changes=settings[row.variant]) for row in compared)
        effects = factor_effects(ablation.grid, compared)
        compared, effects = judge_table(compared, ablation.grid, effects)
        verdicts = [row.verdict for row in compared] + [one.verdict for one in effects.effects]
        marked += any(word in (Verdict.BETTER, Verdict.WORSE) for word in verdicts)
        tested += sum(test.p < 0.05 for test in effects.tests)
    assert marked <= 0.05 * count + 2.6 * (0.05 * 0.95 * count) ** 0.5
    if effects.tests:  # the uncorrected test is exact
        assert 0.05 * count - 12 <= tested <= 0.05 * count + 9


def test_resolution_of_an_interaction_is_coarser():
    """It is a difference of two differences, so its least deviation is twice that of a row."""
    constant = {key: [0.8, 0.8, 0.8] for key in CELLS}
    alpha, _, both = estimate(list(contrasts(TWO_BY_TWO, constant)), 0.01, 0.0)
    assert alpha.difference.deviation == pytest.approx(0.01)
    assert both.difference.deviation == pytest.approx(0.02)


def test_three_levels_are_compared_with_the_reference():
    """Each value has a main effect, and a contrast in each interaction."""
    factors = [Factor(("alpha",), (("0",), ("1",), ("2",))), TWO_BY_TWO[1]]
    cells = {(a, b): [float(a * a + 10 * b), a + 10.0 * b + a] for a in range(3) for b in range(2)}
    found = estimate(list(contrasts(factors, cells)), 0.0, 0.0)
    assert [(effect.name, effect.difference.mean) for effect in found] == [
        ("alpha: 0 -> 1", pytest.approx(1.5)),  # 1 and 2
        ("alpha: 0 -> 2", pytest.approx(4.0)),  # 4 and 4
        ("beta: 0 -> 1", pytest.approx(10.0)),
        ("alpha: 0 -> 1 x beta: 0 -> 1", pytest.approx(0.0)),
        ("alpha: 0 -> 2 x beta: 0 -> 1", pytest.approx(0.0)),
    ]


# Detection


def test_rows_written_by_hand_are_a_product(tmp_path):
    ablation = table(tmp_path, noisy)
    assert names(ablation) == [
        "loss.alpha: 0 -> 0.5",
        "loss.beta: 0 -> 0.3",
        "loss.alpha x loss.beta",
    ]
    alpha, _, both = (effect.difference for effect in ablation.effects.effects)
    values = {row.variant: np.array(list(row.values.values())) for row in ablation.rows}
    with_alpha = values["consistency_only"] + values["full"]
    per_seed = (with_alpha - values["base"] - values["specific_only"]) / 2
    assert alpha.mean == pytest.approx(per_seed.mean())
    assert alpha.t_p == pytest.approx(stats.ttest_1samp(per_seed, 0).pvalue)
    together = values["full"] - values["specific_only"]
    assert both.mean == pytest.approx(
        (together - values["consistency_only"] + values["base"]).mean()
    )


def test_axes_are_a_product(tmp_path):
    by_hand = table(tmp_path / "a", noisy)
    by_axes = table(tmp_path / "b", noisy, **AXES)
    assert by_axes.effects.effects == by_hand.effects.effects


def test_keys_that_change_together_are_one_factor(tmp_path):
    """As those of `zip`, or of a row that sets two keys for one idea."""
    changes = {
        "variants": {
            "base": {},
            "a": {"loss.alpha": 0.5, "steps": 400},
            "b": {"loss.beta": 0.3},
            "both": {"loss.alpha": 0.5, "steps": 400, "loss.beta": 0.3},
        }
    }
    ablation = table(tmp_path, noisy, **changes)
    one, other = sorted(ablation.effects.factors, key=lambda factor: len(factor.keys))
    assert one.keys == ("loss.beta",)
    assert sorted(other.keys) == ["loss.alpha", "steps"]
    assert sorted(other.change(1).split(", ")) == ["loss.alpha: 0 -> 0.5", "steps: 500 -> 400"]


@pytest.mark.parametrize(
    "rows",
    [
        {"base": {}, "a": {"loss.alpha": 0.5}},  # one factor
        {"base": {}, "a": {"loss.alpha": 0.5}, "b": {"loss.beta": 0.3}},  # not both
    ],
)
def test_other_rows_are_no_product(tmp_path, rows):
    ablation = table(tmp_path, noisy, variants=rows)
    assert ablation.effects is None
    assert to_effects_csv(ablation) == ""
    assert "Effects of the factors" not in to_markdown(ablation) + to_html(ablation)
    assert r"-effects}" not in to_latex(ablation)


def test_sanity_rows_are_left_out(tmp_path):
    variants = GRID["variants"] | {"longer": {"steps": 1000}}
    ablation = table(tmp_path, noisy, variants=variants, sanity=["longer"])
    assert ablation.effects.left_out == ("longer",)
    assert len(ablation.effects.effects) == 3
    assert "Rows outside the combinations: longer." in to_markdown(ablation)


def test_data_sets_are_no_factor(tmp_path):
    rows = {
        f"{name}-{alpha}": {"data.name": name, "loss.alpha": alpha}
        for name in ("tridigits", "other")
        for alpha in (0, 0.5)
    }
    grid = Grid.model_validate(GRID | {"variants": rows, "reference": "tridigits-0"})
    runs = expand(grid, {"tridigits": "a" * 16, "other": "b" * 16})
    folder = GridFolder(tmp_path / "study")
    for spec in runs:
        finish(spec, folder, accuracy=noisy(spec))
    assert collect(grid, runs, folder).effects is None


def test_runs_of_another_tool_have_effects(tmp_path):
    """Their factors are columns of settings. Values of a CSV file are texts."""
    lines = [
        {"run_id": f"{a}{b}{seed}", "params.seed": seed, "params.alpha": a, "params.beta": b}
        | {"status": "FINISHED", "metrics.acc": 0.5 + 0.1 * a + 0.02 * b * seed}
        | {"tags.mlflow.runName": f"{'base' if a == b == 0 else f'a{a}b{b}'}-seed{seed}"}
        for a, b, seed in product((0, 1), (0, 1), (1, 2, 3))
    ]
    write_csv(tmp_path / "runs.csv", lines)
    ablation = table_of(tmp_path / "runs.csv")
    found = {effect.name: effect.difference.mean for effect in ablation.effects.effects}
    assert found == {
        "params.alpha: 0 -> 1": pytest.approx(0.1),
        "params.beta: 0 -> 1": pytest.approx(0.04),
        "params.alpha x params.beta": pytest.approx(0, abs=1e-12),
    }


# Missing runs, packs and views


def test_a_missing_run_leaves_all_effects_undecided(tmp_path):
    whole = table(tmp_path / "whole", noisy)
    assert whole.effects.effects[0].verdict is Verdict.BETTER
    lacking = table(tmp_path / "lacking", noisy, without={("full", 3)})
    assert {effect.verdict for effect in lacking.effects.effects} == {Verdict.UNDECIDED}
    assert lacking.effects.gaps == "1 of 20 missing"
    assert lacking.effects.num_units == 4  # seeds that all rows have
    values = {row.variant: np.delete(list(row.values.values()), 3) for row in whole.rows}
    both = values["consistency_only"] + values["full"] - values["base"] - values["specific_only"]
    assert lacking.effects.effects[0].difference.mean == pytest.approx(both.mean() / 2)
    assert "Runs: 1 of 20 missing. The rest may be the better runs" in to_markdown(lacking)


def test_no_run_at_all(tmp_path):
    """A table without results has effects without numbers."""
    grid, runs = study()
    ablation = collect(grid, runs, GridFolder(tmp_path / "study"))
    assert [effect.difference for effect in ablation.effects.effects] == [None] * 3
    assert "inside each seed, without intervals. It counts the seeds" in to_markdown(ablation)
    assert "| loss.alpha: 0 -> 0.5 | \u2013 | undecided | \u2013 |" in to_markdown(ablation)


@pytest.mark.parametrize("origin", [None, PackOrigin(pool="p", test_per_train=0.4)])
def test_effects_over_packs_count_packs(tmp_path, origin):
    """Packs that share samples get the corrected interval."""
    prints = {name: name * 16 for name in "abc"}
    grid = Grid.model_validate(GRID | {"seeds": [0, 1], "packs": [*prints]})
    runs, folder = expand(grid, prints), GridFolder(tmp_path / "study")
    for spec in runs:
        gain = 0.01 * "abc".index(spec.config.data.name) * bool(spec.config.loss.alpha)
        finish(spec, folder, accuracy=noisy(spec) + gain, data_origin=origin)
    ablation = collect(grid, runs, folder)
    alpha = ablation.effects.effects[0].difference
    units = {row.variant: np.array(row.units) for row in ablation.rows}
    per_pack = units["consistency_only"] + units["full"] - units["base"] - units["specific_only"]
    oracle = stats.ttest_1samp(per_pack / 2, 0).confidence_interval()
    center, half = per_pack.mean() / 2, (oracle.high - oracle.low) / 2
    if origin:
        half *= (1 + 3 * 0.4) ** 0.5
    assert alpha.n == 3
    # the least deviation is one sample of the split, which these values do not reach
    assert alpha.interval == pytest.approx((center - half, center + half))
    assert "inside each pack" in to_markdown(ablation)


def test_a_view_has_effects_without_verdicts(tmp_path):
    ablation = table(tmp_path, noisy, view=View(metric="val/digit/accuracy"))
    effects = ablation.effects.effects
    assert [effect.verdict for effect in effects] == [None] * 3
    assert not any(effect.difference.simultaneous for effect in effects)
    text = to_markdown(ablation).partition("**Effects of the factors**")[2]
    assert "not corrected for the number of effects" in text
    assert "verdict" not in text
    filtered = table(tmp_path, noisy, view=View(where=("variant=base", "variant=full")))
    assert filtered.effects is None


# The second table


def test_every_format_shows_the_effects(tmp_path):
    ablation = table(tmp_path, noisy)
    console = Console(width=100, file=io.StringIO())
    console.print(to_terminal(ablation, 100))
    alpha = ablation.effects.effects[0]
    low, high = (100 * bound for bound in alpha.difference.simultaneous)
    cell = f"{100 * alpha.difference.mean:+.2f} [{low:.2f}, {high:.2f}]"
    for text in (
        console.file.getvalue(),
        to_markdown(ablation),
        to_latex(ablation),
        to_html(ablation),
    ):
        assert cell in text
        assert text.index(cell) > text.index("specific")  # below the first table
    assert r"\label{tab:study-effects}" in to_latex(ablation)
    assert '<h2 id="effects-title">' in to_html(ablation)
    assert "cannot go below p .0625 here, and p below .008333 is needed" in to_markdown(ablation)


def test_csv_of_effects(tmp_path):
    ablation = table(tmp_path / "runs", noisy)
    lines = list(csv.DictReader(io.StringIO(to_effects_csv(ablation))))
    assert [(line["name"], line["kind"], line["verdict"]) for line in lines] == [
        ("loss.alpha: 0 -> 0.5", "main", "better"),
        ("loss.beta: 0 -> 0.3", "main", str(ablation.effects.effects[1].verdict)),
        ("loss.alpha x loss.beta", "interaction", "undecided"),
    ]
    difference = ablation.effects.effects[0].difference
    assert float(lines[0]["difference"]) == difference.mean
    assert float(lines[0]["simultaneous_low"]) == difference.simultaneous[0]
    files = write_results(ablation, tmp_path / "out", figures=False)
    assert tmp_path / "out" / "effects.csv" in files
    other = table(tmp_path / "others", noisy, variants={"base": {}, "a": {"loss.alpha": 0.5}})
    write_results(other, tmp_path / "out", figures=False)  # removes the stale file
    assert not (tmp_path / "out" / "effects.csv").exists()
