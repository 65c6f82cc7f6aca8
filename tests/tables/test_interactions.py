"""Interactions: contrasts and tests of several levels, and 2 x 2 parts of other tables."""

import csv
import io
from itertools import product

import numpy as np
import pytest
from factor_study import AXES, TWO_BY_TWO, noisy, table
from scipy import linalg, stats
from tables_study import GRID

from furnace_hpc.tables.output.latex import to_latex
from furnace_hpc.tables.output.render import to_effects_csv, to_markdown
from furnace_hpc.tables.output.report import to_html
from furnace_hpc.tables.output.verdict import verdict
from furnace_hpc.tables.statistics.factorial import Factor, contrasts, estimate, omnibus_tests
from furnace_hpc.tables.statistics.interactions import omnibus_test
from furnace_hpc.tables.statistics.verdicts import Verdict
from furnace_hpc.tables.view import View


def random_cells(shape: tuple[int, ...], units: int, seed: int = 0) -> dict:
    generator = np.random.default_rng(seed)
    return {
        key: generator.normal(sum(key), 1 + key[0], units).tolist()
        for key in product(*map(range, shape))
    }


def factors_of(shape: tuple[int, ...]) -> list[Factor]:
    return [
        Factor((name,), tuple((str(level),) for level in range(size)))
        for name, size in zip("abc", shape, strict=False)
    ]


def test_contrasts_agree_with_least_squares():
    """Regress the values of each unit on dummies of the levels and on their products."""
    cells, factors = random_cells((3, 3), 6), factors_of((3, 3))
    found = estimate(list(contrasts(factors, cells)), 0.0, 0.0)[4:]
    pairs = [(1, 1), (1, 2), (2, 1), (2, 2)]
    design = [
        [1.0, a == 1, a == 2, b == 1, b == 2, *((a, b) == pair for pair in pairs)] for a, b in cells
    ]
    slopes = np.linalg.solve(np.array(design, dtype=float), np.array(list(cells.values())))[5:]
    for effect, of_unit, (a, b) in zip(found, slopes, pairs, strict=True):
        assert effect.name == f"a: 0 -> {a} x b: 0 -> {b}"
        assert effect.is_interaction
        oracle = stats.ttest_1samp(of_unit, 0)
        assert effect.difference.mean == pytest.approx(of_unit.mean())
        assert effect.difference.t_p == pytest.approx(oracle.pvalue)


def test_contrasts_average_over_a_third_factor():
    cells, factors = random_cells((3, 2, 2), 4), factors_of((3, 2, 2))
    found = {one.name: one for one in estimate(list(contrasts(factors, cells)), 0.0, 0.0)}
    mean = np.mean(
        [
            np.array(cells[2, 1, c]) - cells[2, 0, c] - cells[0, 1, c] + cells[0, 0, c]
            for c in (0, 1)
        ]
    )
    assert found["a: 0 -> 2 x b: 0 -> 1"].difference.mean == pytest.approx(mean)
    assert len(found) == 4 + 2 + 2 + 1


def sums_of_squares(cells: dict, shape: tuple[int, int], units: int) -> tuple[float, float]:
    """Of the interaction and of its error, from residuals of nested least-squares fits."""
    values, columns = [], {"unit": [], "a": [], "b": []}
    for (a, b), of_cell in cells.items():
        for unit, value in enumerate(of_cell):
            values.append(value)
            for name, level in (("unit", unit), ("a", a), ("b", b)):
                columns[name].append(level)
    dummies = {name: np.eye(max(levels) + 1)[levels] for name, levels in columns.items()}

    def crossed(*names: str) -> np.ndarray:
        found = np.ones((len(values), 1))
        for name in names:
            found = (found[:, :, None] * dummies[name][:, None, :]).reshape(len(values), -1)
        return found

    def residual(*terms: tuple[str, ...]) -> float:
        design = np.hstack([crossed(*term) for term in terms])
        fit = design @ np.linalg.lstsq(design, np.array(values), rcond=None)[0]
        return float(((np.array(values) - fit) ** 2).sum())

    without = residual(("unit", "a"), ("unit", "b"))
    with_interaction = residual(("unit", "a"), ("unit", "b"), ("a", "b"))
    return without - with_interaction, with_interaction


@pytest.mark.parametrize(("shape", "units"), [((3, 3), 6), ((3, 2), 5), ((4, 3), 8)])
def test_omnibus_agrees_with_nested_regressions(shape, units):
    cells = random_cells(shape, units, seed=4)
    (test,) = omnibus_tests(factors_of(shape), cells, 0.0, 0.0)
    of_interaction, of_error = sums_of_squares(cells, shape, units)
    degrees = (shape[0] - 1) * (shape[1] - 1)
    assert test.num_contrasts == degrees
    assert test.f == pytest.approx(of_interaction / (of_error / (units - 1)))
    # Greenhouse and Geisser: eigenvalues of the covariance of orthonormal contrasts
    bases = [linalg.helmert(size) for size in shape]
    values = np.array([[cells[a, b] for b in range(shape[1])] for a in range(shape[0])])
    rotated = np.einsum("pa,qb,abn->pqn", *bases, values).reshape(degrees, units)
    eigenvalues = np.linalg.eigvalsh(np.cov(rotated))
    share = eigenvalues.sum() ** 2 / (degrees * (eigenvalues**2).sum())
    assert test.degrees == pytest.approx((share * degrees, share * degrees * (units - 1)))
    assert test.p == pytest.approx(stats.f.sf(test.f, *test.degrees))
    assert 1 / degrees <= share <= 1


def test_omnibus_of_two_levels_is_the_t_test():
    cells = random_cells((2, 2), 5)
    values = [[cells[a, b] for b in range(2)] for a in range(2)]
    contrast = estimate(list(contrasts(TWO_BY_TWO, cells)), 0.0, 0.0)[2].difference
    assert omnibus_test("", values).p == pytest.approx(contrast.t_p)
    assert list(omnibus_tests(TWO_BY_TWO, cells, 0.0, 0.0)) == []
    fine = omnibus_test("", values, resolution=10.0)
    coarse = estimate(list(contrasts(TWO_BY_TWO, cells)), 10.0, 0.0)[2].difference
    assert fine.p == pytest.approx(coarse.t_p)
    shared = omnibus_test("", values, test_per_train=0.4)
    corrected = estimate(list(contrasts(TWO_BY_TWO, cells)), 0.0, 0.4)[2].difference
    assert shared.p == pytest.approx(corrected.t_p)


def test_when_there_is_no_omnibus_test():
    constant = [[[0.1, 0.1, 0.1], [0.2, 0.2, 0.2]], [[0.3] * 3, [0.4] * 3], [[0.5] * 3, [0.9] * 3]]
    assert omnibus_test("", constant).p is None
    assert omnibus_test("", [[[0.1], [0.2]], [[0.3], [0.4]], [[0.5], [0.7]]]).p is None
    assert omnibus_test("", constant, resolution=0.01).p < 1e-4


def test_three_levels_in_the_table(tmp_path):
    """Two rows of interactions and their test, in one family with all else."""
    axes = {"loss.alpha": [0, 0.5, 0.7], "loss.beta": [0, 0.3]}
    ablation = table(tmp_path, noisy, **(AXES | {"axes": axes}))
    (test,) = ablation.effects.tests
    assert ablation.family == "5 rows, 5 effects and 1 test"
    assert {row.difference.family for row in ablation.compared} == {11}
    assert test.holm_p >= test.p
    text = to_markdown(ablation)
    line = f"| loss.alpha x loss.beta: any interaction | F({test.degrees[0]:.1f}, "
    assert line in text
    assert "Greenhouse and Geisser" in text
    last = list(csv.DictReader(io.StringIO(to_effects_csv(ablation))))[-1]
    assert last["kind"] == "any interaction"
    assert float(last["f_p"]) == pytest.approx(test.p)
    assert last["difference"] == ""
    assert "any interaction" in to_html(ablation)
    assert "any interaction" in to_latex(ablation)
    view = table(
        tmp_path / "b", noisy, view=View(metric="val/digit/accuracy"), **AXES | {"axes": axes}
    )
    assert "p = " in to_markdown(view).partition("any interaction")[2].splitlines()[0]


def test_many_contrasts_have_only_the_test(tmp_path):
    axes = {"loss.alpha": [0, 0.2, 0.5, 0.7], "loss.beta": [0, 0.3, 0.4]}
    ablation = table(tmp_path, noisy, **(AXES | {"axes": axes}))
    assert not any(effect.is_interaction for effect in ablation.effects.effects)
    assert [test.num_contrasts for test in ablation.effects.tests] == [6]
    text = "No intervals for loss.alpha x loss.beta: more than 4 contrasts would widen"
    assert text in to_markdown(ablation)


# 2 x 2 parts of other tables


def test_a_part_has_its_interaction(tmp_path):
    """With one more row the product is not full."""
    variants = GRID["variants"] | {"longer": {"steps": 1000}}
    ablation = table(tmp_path, noisy, variants=variants)
    (effect,) = ablation.effects.effects
    assert effect.name == "full: consistency_only x specific_only"
    values = {row.variant: np.array(list(row.values.values())) for row in ablation.rows}
    per_seed = values["full"] + values["base"] - values["consistency_only"]
    per_seed -= values["specific_only"]
    assert effect.difference.mean == pytest.approx(per_seed.mean())
    assert effect.difference.t_p == pytest.approx(stats.ttest_1samp(per_seed, 0).pvalue)
    assert effect.difference.family == 5
    text = to_markdown(ablation)
    assert "These rows with base are all combinations of two changes." in text
    assert "full plus base minus the two single changes, inside each seed" in text


def test_an_incomplete_product_has_parts(tmp_path):
    """Three by three without one combination."""
    axes = {"loss.alpha": [0, 0.5, 0.7], "loss.beta": [0, 0.3, 0.4]}
    exclude = [{"loss.alpha": 0.7, "loss.beta": 0.4}]
    ablation = table(tmp_path, noisy, **(AXES | {"axes": axes, "exclude": exclude}))
    assert len(ablation.effects.effects) == 3
    assert ablation.effects.factors == ()
    lacking = {("alpha-0.7_beta-0.3", 3)}
    gaps = table(tmp_path / "b", noisy, lacking, **(AXES | {"axes": axes, "exclude": exclude}))
    assert gaps.effects.num_units == 4
    assert {effect.verdict for effect in gaps.effects.effects} == {Verdict.UNDECIDED}


# The grid's key `verdicts`


def test_verdicts_of_effects_alone(tmp_path):
    """Three effects are corrected for themselves, and rows have none."""
    ablation = table(tmp_path, noisy, verdicts="effects")
    assert {row.verdict for row in ablation.rows} == {None}
    assert not any(row.difference.simultaneous for row in ablation.compared)
    alpha = ablation.effects.effects[0]
    assert (alpha.verdict, alpha.difference.family) == (Verdict.BETTER, 3)
    values = {row.variant: np.array(list(row.values.values())) for row in ablation.rows}
    per_seed = values["consistency_only"] + values["full"] - values["base"]
    oracle = stats.ttest_1samp((per_seed - values["specific_only"]) / 2, 0)
    interval = oracle.confidence_interval(1 - 0.05 / 3)
    assert alpha.difference.simultaneous == pytest.approx((interval.low, interval.high))
    text = to_markdown(ablation)
    rows, _, effects = text.partition("**Effects of the factors**")
    assert "Rows have no marks, verdicts and corrected p values" in rows
    assert "| verdict" not in rows
    assert "| verdict |" in effects
    assert "Bonferroni, 3 effects" in effects
    line = verdict(ablation)
    assert line.startswith("loss.alpha: 0 -> 0.5: better, +")
    assert '<li class="better">loss.alpha: 0 -&gt; 0.5: better' in to_html(ablation)


def test_verdicts_of_rows_alone(tmp_path):
    ablation = table(tmp_path, noisy, verdicts="rows")
    assert {row.difference.family for row in ablation.compared} == {3}
    assert [effect.verdict for effect in ablation.effects.effects] == [None] * 3
    text = to_markdown(ablation)
    assert "Bonferroni, 3 rows)" in text
    assert "Effects have no verdicts, because the grid gives verdicts to its rows." in text
    assert "not corrected for the number of effects" in text


def test_rows_without_factors_keep_their_verdicts(tmp_path):
    rows = {"base": {}, "a": {"loss.alpha": 0.5}}
    ablation = table(tmp_path, noisy, verdicts="effects", variants=rows)
    assert ablation.rows[1].verdict is not None
    assert ablation.why_no_verdict == ""
    view = table(tmp_path / "b", noisy, view=View(metric="val/digit/accuracy"), verdicts="effects")
    assert "because --metric changes" in view.why_no_verdict
    assert not view.effects.are_judged
