"""Ranks over several data sets, the Friedman test and the critical difference (Demsar 2006)."""

import csv
import io
import re
from itertools import product
from statistics import fmean

import numpy as np
import pytest
from foreign_runs import table_of, write_csv
from scipy import stats
from tables_study import GRID, finish, notes

from furnace_hpc.config.grids.expansion import expand
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.manifest import PackOrigin
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.tables.collect import collect
from furnace_hpc.tables.data_sets import rank_notes, rank_over_data_sets
from furnace_hpc.tables.output.cells import all_cells
from furnace_hpc.tables.output.latex import to_latex
from furnace_hpc.tables.output.render import to_markdown, to_ranks_csv
from furnace_hpc.tables.output.report import to_html
from furnace_hpc.tables.output.results import write_results
from furnace_hpc.tables.statistics.ranks import critical_difference, rank_methods
from furnace_hpc.tables.table import Ablation
from furnace_hpc.tables.view import View, apply_view, why_no_verdict

SETS = [f"set{number}" for number in range(6)]
ALPHAS = [0, 0.25, 0.5]


def score(name: str, alpha: float, seed: int) -> float:
    """The higher alpha, the better, on data sets of different difficulty."""
    return 0.5 + 0.05 * SETS.index(name) + 0.1 * alpha + 0.001 * seed


def table(path, sets=SETS, alphas=ALPHAS, view=None, without=(), origins=None, **changes):
    """A grid whose axes are data set and alpha."""
    rows = {
        "variants": {},
        "axes": {"data.name": sets, "loss.alpha": alphas},
        "seeds": [0, 1],
        "reference": f"name-{sets[0]}_alpha-0",
    }
    grid = Grid.model_validate(GRID | rows | changes)
    runs = expand(grid, {name: name.ljust(16, "0") for name in sets})
    folder = GridFolder(path / "study")
    for spec in runs:
        name, alpha, seed = spec.config.data.name, spec.config.loss.alpha, spec.config.seed
        if (name, alpha, seed) not in without:
            origin = (origins or {}).get(name)
            finish(spec, folder, accuracy=score(name, alpha, seed), data_origin=origin)
    view = view or View()
    shown, kept = apply_view(grid, runs, view)
    why = why_no_verdict(grid, runs, view)
    return collect(shown, kept, folder, by=view.by, why_no_verdict=why)


def words_of(ablation: Ablation) -> str:
    """Everything that a reader sees: the tables, and the report with its data."""
    out = [to_markdown(ablation), to_latex(ablation), to_html(ablation).partition("<style>")[0]]
    out.append(to_html(ablation).partition("<main>")[2].partition('"copies"')[0])
    return "\n".join(out).replace('"pack":', "")  # a name in the page's data


def rank_note(ablation: Ablation) -> str:
    return next((n.text for n in ablation.notes if n.text.startswith("mean ranks")), "")


# Numbers


@pytest.mark.parametrize(
    ("num_methods", "quantile"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)]
)
def test_critical_difference_has_the_table_of_demsar(num_methods, quantile):
    """The quantiles of table 5a of Demsar (2006)."""
    expected = quantile * np.sqrt(num_methods * (num_methods + 1) / (6 * 14))
    assert critical_difference(num_methods, 14) == pytest.approx(expected, abs=1e-3)


def test_ranks_worked_by_hand():
    """Ranks of three methods on five data sets. Two share ranks 1 and 2 on the last one."""
    scores = {
        "a": [0.9, 0.8, 0.7, 0.6, 0.5],
        "b": [0.8, 0.9, 0.6, 0.5, 0.5],
        "c": [0.7, 0.7, 0.5, 0.4, 0.4],
    }
    found = rank_methods(scores, list("vwxyz"), True)
    assert found.ranks == {"a": (1, 2, 1, 1, 1.5), "b": (2, 1, 2, 2, 1.5), "c": (3, 3, 3, 3, 3)}
    assert found.mean_ranks == pytest.approx({"a": 1.3, "b": 1.7, "c": 3.0})
    # chi2 = 12 N / (k (k + 1)) (sum R^2 - k (k + 1)^2 / 4) = 7.9, divided by 1 - 6 / (5 * 24)
    # for the tie
    assert found.friedman_p == pytest.approx(stats.chi2.sf(7.9 / 0.95, 2))
    assert found.critical_difference == pytest.approx(2.3437 * np.sqrt(12 / 30), abs=1e-3)
    lower_is_better = rank_methods(scores, list("vwxyz"), False)
    assert lower_is_better.mean_ranks["c"] == 1.0


def test_rounding_is_no_rank():
    """Means of 50, 55 and 75 of 97 samples, and of 53, 53 and 74, differ by one bit."""
    one, other = (fmean(n / 97 for n in found) for found in ((50, 55, 75), (53, 53, 74)))
    assert one != other
    scores = {"a": [one] * 5, "b": [other] * 5, "c": [0.1] * 5}
    assert rank_methods(scores, list("vwxyz"), True).mean_ranks == {"a": 1.5, "b": 1.5, "c": 3.0}


def test_wrong_findings_of_the_friedman_test():
    """Without differences it finds some in at most 5 % of studies with 5 data sets."""
    generator = np.random.default_rng(0)
    found = 0
    for _ in range(200):
        draws = generator.normal(size=(4, 5)).tolist()
        ranks = rank_methods(dict(zip("abcd", draws, strict=True)), list("vwxyz"), True)
        found += ranks.friedman_p < 0.05
    assert 1 <= found <= 18


def test_too_few_data_sets_or_equal_ranks():
    four = rank_methods({name: [1.0, 2.0, 3.0, 4.0] for name in "abc"}, list("wxyz"), True)
    assert (four.friedman_p, four.why_no_test) == (None, "4 data sets are too few, 5 are needed")
    two = rank_methods({name: [1.0, 2, 3, 4, 5] for name in "ab"}, list("vwxyz"), True)
    assert two.why_no_test == "2 rows are too few, 3 are needed"
    equal = rank_methods({name: [1.0, 2, 3, 4, 5] for name in "abc"}, list("vwxyz"), True)
    assert equal.why_no_test == "all rows have the same ranks"


# In the table


def test_ranks_of_a_grid_over_data_sets(tmp_path):
    ablation = table(tmp_path / "runs")
    ranks = ablation.ranks
    assert ranks.data_sets == tuple(SETS)
    assert ranks.mean_ranks == {"loss.alpha=0": 3, "loss.alpha=0.25": 2, "loss.alpha=0.5": 1}
    assert ranks.scores["loss.alpha=0.5"][1] == pytest.approx(0.6005)  # mean over seeds
    assert ranks.friedman_p == pytest.approx(stats.chi2.sf(12, 2))
    note = rank_note(ablation)
    assert note.startswith(
        "mean ranks over 6 data sets (1 is best): loss.alpha=0.5 1.00; loss.alpha=0.25 2.00; "
        "loss.alpha=0 3.00. Friedman test over data sets: p .002; critical difference of two "
        "mean ranks 1.35 (Nemenyi, 5 %, all pairs), exceeded by loss.alpha=0.5 and loss.alpha=0"
    )
    first = next(csv.DictReader(io.StringIO(to_ranks_csv(ablation))))
    assert (first["method"], first["mean_rank"], first["rank.set3"]) == (
        "loss.alpha=0",
        "3.0",
        "3.0",
    )
    assert float(first["score.set0"]) == pytest.approx(0.5005)
    files = write_results(ablation, tmp_path / "out", figures=False)
    assert tmp_path / "out" / "ranks.csv" in files


@pytest.mark.parametrize("by", [("data.name",), ("loss.alpha",)])
def test_a_view_has_ranks_without_a_test(tmp_path, by):
    """The data sets and methods do not depend on what the rows show."""
    ablation = table(tmp_path, view=View(by=by))
    assert ablation.ranks.mean_ranks["loss.alpha=0.5"] == 1
    assert ablation.ranks.friedman_p is None
    assert "No Friedman test: a view" in rank_note(ablation)


def test_a_grid_by_data_sets_has_the_test(tmp_path):
    """`by` in the grid is the grid's own table."""
    ablation = table(tmp_path, by=["data.name"], view=View(by=("data.name",)))
    assert ablation.why_no_verdict == ""
    assert ablation.ranks.friedman_p < 0.05


def test_verdicts_of_effects_keep_the_test(tmp_path):
    """The grid declares `verdicts: effects`, so its table is no view."""
    axes = {"data.name": SETS, "loss.alpha": [0, 0.5], "loss.beta": [0, 0.3]}
    reference = "name-set0_alpha-0_beta-0"
    ablation = table(tmp_path, axes=axes, reference=reference, verdicts="effects")
    assert ablation.effects is not None
    assert "Friedman test over data sets: p" in rank_note(ablation)


def test_few_data_sets_have_no_test(tmp_path):
    ablation = table(tmp_path, sets=SETS[:3])
    assert rank_note(ablation).endswith("No Friedman test: 3 data sets are too few, 5 are needed")


def test_packs_of_one_pool_are_one_data_set(tmp_path):
    """Two resamples of one pool count once, with the mean of their scores."""
    origins = {name: PackOrigin(pool="p", test_per_train=0.4) for name in SETS[:2]}
    ranks = table(tmp_path / "a", origins=origins).ranks
    assert ranks.data_sets == ("p", *SETS[2:])
    assert ranks.scores["loss.alpha=0"][0] == pytest.approx(0.5255)
    all_of_one = dict.fromkeys(SETS, origins["set0"])
    assert table(tmp_path / "b", origins=all_of_one).ranks is None


def test_a_missing_run_or_few_methods_leave_no_ranks(tmp_path):
    lacking = table(tmp_path / "a", without={("set2", 0.25, 1)})
    assert lacking.ranks is None
    assert "mean ranks" not in notes(lacking)
    expected = "no ranks over 6 data sets: loss.alpha=0.25 lacks a value on set2"
    assert expected in notes(lacking)
    assert to_ranks_csv(lacking) == ""
    assert table(tmp_path / "b", alphas=[0, 0.5]).ranks is None


def with_sanity(path, lacks: tuple[str, ...] = (), sanity: tuple[str, ...] = ()):
    """Three methods on six data sets, and a method `chance` that lacks some of them."""
    lines = [
        {"variant": row, "pack": name, "seed": 0, "acc": score(name, alpha, 0)}
        for (row, alpha), name in product(
            [("base", 0), ("mid", 0.25), ("top", 0.5), ("chance", -1)], SETS
        )
        if row != "chance" or name not in lacks
    ]
    write_csv(path / "runs.csv", lines)
    found = table_of(path / "runs.csv", data_set="pack")
    grid = found.grid.model_copy(update={"sanity": sanity})
    return rank_over_data_sets(grid, found.rows, lambda _: {})


def test_a_sanity_row_without_a_data_set_is_left_out(tmp_path):
    """A foreign row counts as missing where others have runs."""
    ranks, why = with_sanity(tmp_path, ("set1", "set4"), ("chance",))
    assert why == ""
    assert ranks.mean_ranks == {"base": 3, "mid": 2, "top": 1}
    assert ranks.friedman_p == pytest.approx(stats.chi2.sf(12, 2))
    assert "sanity rows without a rank: chance lacks a value on set1, set4" in [
        note.text for note in rank_notes(ranks)
    ]
    ranks, why = with_sanity(tmp_path, ("set1",))
    assert (ranks, why) == (None, "no ranks over 6 data sets: chance lacks a value on set1")
    ranks, _ = with_sanity(tmp_path, (), ("chance",))
    assert ranks.mean_ranks["chance"] == 4


def test_a_sanity_row_on_one_data_set_is_left_out(tmp_path):
    """A sanity row of a grid may have no runs on the other data sets."""
    names, alphas = SETS[:2], [*ALPHAS, 1]
    axes = {"data.name": names, "loss.alpha": alphas}
    content = {"variants": {}, "seeds": [0], "reference": "name-set0_alpha-0", "axes": axes}
    grid = Grid.model_validate(GRID | content)
    runs = expand(grid, {name: name.ljust(16, "0") for name in names})
    runs = [run for run in runs if run.variant != "name-set1_alpha-1"]
    grid = grid.model_copy(update={"sanity": ("name-set0_alpha-1",)})
    folder = GridFolder(tmp_path / "study")
    for spec in runs:
        finish(spec, folder, accuracy=score(spec.config.data.name, spec.config.loss.alpha, 0))
    ablation = collect(grid, runs, folder)
    assert [*ablation.ranks.mean_ranks.values()] == [3, 2, 1]
    assert "sanity rows without a rank: loss.alpha=1 has no run on set1" in notes(ablation)


def test_packs_of_a_grid_are_one_data_set(tmp_path):
    """`submit` refuses packs of different data sets."""
    prints = {name: name.ljust(16, "0") for name in SETS}
    grid = Grid.model_validate(GRID | {"packs": SETS, "seeds": [0]})
    runs, folder = expand(grid, prints), GridFolder(tmp_path / "study")
    for spec in runs:
        finish(spec, folder)
    assert collect(grid, runs, folder).ranks is None


def test_packs_of_another_tool_mean_what_is_given(tmp_path):
    lines = [
        {"variant": row, "pack": name, "seed": seed, "acc": score(name, alpha, seed)}
        for (row, alpha), name, seed in product(
            [("base", 0), ("mid", 0.25), ("top", 0.5)], SETS, (0, 1)
        )
    ]
    write_csv(tmp_path / "runs.csv", lines)
    ablation = table_of(tmp_path / "runs.csv", data_set="pack")
    assert ablation.ranks.mean_ranks == {"base": 3, "mid": 2, "top": 1}
    assert ablation.ranks.friedman_p == pytest.approx(stats.chi2.sf(12, 2))
    assert "Intervals and tests count data sets (--data-set)" in to_markdown(ablation)
    assert re.search(r"\bpacks?\b", words_of(ablation)) is None
    draws = table_of(tmp_path / "runs.csv", pack="pack")
    assert draws.ranks is None
    assert "mean ranks" not in notes(draws)
    assert "Packs are draws of one data set (--pack). The files do not say" in to_markdown(draws)
    assert "(packs)" in to_markdown(draws)
    assert ablation.rows[1].unit == "data set"
    assert "Values of all data sets are pooled as they are" in to_html(ablation)
    same = [row.difference for row in draws.rows]
    assert same == [row.difference for row in ablation.rows]


def test_bold_compares_rows_on_the_same_data(tmp_path):
    """The highest mean of the table may be that of the easiest data set."""
    cells = all_cells(table(tmp_path / "a"))
    assert [cell.variant for cell in cells if cell.best] == [f"name-{s}_alpha-0.5" for s in SETS]
    views = table(tmp_path / "b", view=View(by=("data.name",)))
    assert not any(cell.best for cell in all_cells(views))


def test_rows_on_other_data_have_no_verdict(tmp_path):
    """A data set is not better than another one. Only rows on the reference's data are compared."""
    ablation = table(tmp_path)
    compared = [row.variant for row in ablation.compared]
    assert compared == ["name-set0_alpha-0.25", "name-set0_alpha-0.5"]
    others = [row for row in ablation.rows if not row.variant.startswith("name-set0")]
    assert {(row.difference, row.verdict) for row in others} == {(None, None)}
    assert "no difference and no verdict: other data than the reference" in notes(ablation)
