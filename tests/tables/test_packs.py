"""Grids over several packs of the data, against hand-worked numbers."""

import math
import re
import statistics

import pytest
from login_study import grid as login_grid
from login_study import pack, refused, write_grid
from tables_study import GRID, finish, notes, row

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import expand, expand_rows
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.launch.planning.dataset_checks import fingerprints
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.tables.collect import collect
from furnace_hpc.tables.output.captions import caption
from furnace_hpc.tables.output.cells import all_cells, headings
from furnace_hpc.tables.output.latex import to_latex
from furnace_hpc.tables.output.render import to_csv, to_markdown, to_runs_csv
from furnace_hpc.tables.output.report import to_html
from furnace_hpc.tables.reading.samples import compare_samples
from furnace_hpc.tables.statistics import estimates
from furnace_hpc.tables.statistics.units import Draw
from furnace_hpc.tables.table import Ablation, pair_differences
from furnace_hpc.tables.view import View, apply_view

PRINTS = {"a": "a" * 16, "b": "b" * 16, "c": "c" * 16}
VALUES = {  # two seeds each
    "base": {"a": (0.80, 0.82), "b": (0.70, 0.74), "c": (0.60, 0.66)},
    "full": {"a": (0.84, 0.84), "b": (0.76, 0.76), "c": (0.62, 0.68)},
}


def table(path, view=None, without=()) -> Ablation:
    rows = {
        "variants": {"base": {}, "full": {"loss.alpha": 0.5}},
        "seeds": [0, 1],
        "packs": [*PRINTS],
    }
    grid = Grid.model_validate(GRID | rows)
    runs, folder = expand(grid, PRINTS), GridFolder(path / "study")
    for spec in runs:
        name, seed = spec.config.data.name, spec.config.seed
        if (spec.variant, name, seed) not in without:
            finish(spec, folder, accuracy=VALUES[spec.variant][name][seed])
    shown, kept = apply_view(grid, runs, view or View())
    return collect(shown, kept, folder, by=(view or View()).by)


def test_a_row_has_a_run_per_pack_and_seed():
    runs = expand(login_grid(packs=["a", "b"], variants={"base": {}}), PRINTS)
    assert [(run.config.data.name, run.config.seed, run.data_fingerprint[0]) for run in runs] == [
        ("a", 0, "a"),
        ("a", 1, "a"),
        ("b", 0, "b"),
        ("b", 1, "b"),
    ]
    assert len({run.run_id for run in runs}) == 4
    alone = expand(
        login_grid(base={**login_grid().base, "data.name": "b"}, variants={"base": {}}), PRINTS
    )
    # on several packs each has weights and orders of its own, so these are other runs
    assert not {run.run_id for run in alone} & {run.run_id for run in runs}
    assert [run.run_id for run in alone] == [
        run.run_id for run in expand(login_grid(packs=["b"], variants={"base": {}}), PRINTS)
    ]


def test_intervals_and_tests_count_packs(tmp_path):
    """The spread over seeds and the spread over packs are both shown."""
    ablation = table(tmp_path)
    base, full = ablation.rows
    # means of packs .81 .72 .63 and, over seeds, variances .0002 .0008 .0018 with one degree of
    # freedom each
    assert (base.n, base.n_expected, base.mean) == (6, 6, pytest.approx(0.72))
    assert base.packs_deviation == pytest.approx(0.09)
    assert base.deviation == pytest.approx(math.sqrt(0.0028 / 3))
    half = 4.302653 * 0.09 / math.sqrt(3)  # t(0.975, 2)
    assert base.interval == pytest.approx((0.72 - half, 0.72 + half), abs=1e-7)
    # differences .04 .02, .06 .02, .02 .02: of packs .03 .04 .02, mean .03, deviation .01
    difference = full.difference
    assert (difference.n, difference.mean, difference.effect) == (
        3,
        pytest.approx(0.03),
        pytest.approx(3),
    )
    half = 4.302653 * 0.01 / math.sqrt(3)
    assert difference.interval == pytest.approx((0.03 - half, 0.03 + half), abs=1e-7)
    t = 3 * math.sqrt(3)
    # Student's t of 2 degrees, in closed form
    assert difference.t_p == pytest.approx(1 - t / math.sqrt(t**2 + 2))
    assert difference.sign_flip_p == 0.25
    assert [cells.spread for cells in all_cells(ablation)] == [
        "± 3.1 (seeds) ± 9.0 (packs)",
        "± 2.4 (seeds) ± 9.5 (packs)",
    ]
    assert notes(ablation) == (
        "rests on normality: the exact sign-flip test cannot go below p .25 with 3 packs, "
        "and p below .05 is needed"
    )


def test_pairs_are_those_of_the_interval(tmp_path):
    """One per pack: the difference of the means over seeds. Without packs, one per seed."""
    base, full = table(tmp_path).rows
    pairs = pair_differences(full, base)
    assert pairs == pytest.approx({"a": 0.03, "b": 0.04, "c": 0.02})
    assert statistics.fmean(pairs.values()) == pytest.approx(full.difference.mean)
    base, full = table(tmp_path / "holes", without={("full", "b", 0), ("full", "b", 1)}).rows
    assert pair_differences(full, base) == pytest.approx({"a": 0.03, "c": 0.02})


def test_every_output_names_the_packs(tmp_path):
    ablation = table(tmp_path)
    text = " ".join(caption(ablation, headings(ablation)))
    assert "mean over 3 packs (a, b, c)" in text
    assert "Each pack and seed has its own initial weights and sample order." in text
    assert "the mean over 2 seeds of the training. Seeds: 0, 1. n counts runs." in text
    assert "Its smallest possible p is .25 with 3 packs" in text
    assert "n = 6 runs, 2 seeds on each of 3 packs" in to_latex(ablation)
    assert "± 3.1 (seeds) ± 9.0 (packs)" in to_markdown(ablation)
    head, first, *_ = to_csv(ablation).splitlines()
    cells = dict(zip(head.split(","), first.split(","), strict=True))
    assert (cells["n_packs"], float(cells["packs_deviation"])) == ("3", pytest.approx(0.09))
    assert [line.split(",")[2:4] for line in to_runs_csv(ablation).splitlines()[:3]] == [
        ["pack", "seed"],
        ["a", "0"],
        ["a", "1"],
    ]
    page = to_html(ablation)
    assert "seeds 0, 1 · packs a, b, c" in page
    assert page.count('"pack":"a"') == 4


def test_a_missing_run_excludes_its_pair(tmp_path):
    ablation = table(tmp_path, without=[("full", "b", 1), ("full", "c", 0), ("full", "c", 1)])
    full = row(ablation, "full")
    assert (full.n, full.n_expected) == (3, 6)
    assert full.mean == pytest.approx((0.84 + 0.76) / 2)
    assert full.difference.n == 2
    # of b seed 0 alone; c has no pair
    assert full.difference.mean == pytest.approx((0.03 + 0.06) / 2)
    text = notes(ablation)
    assert "difference to base over 3 of 6 pairs of runs, those that both rows have" in text
    assert len(re.findall(r"full-s\d-\w{8} \(new\)", text)) == 3
    assert "more packs" not in text
    assert full.verdict == "undecided"


def test_views_of_one_pack_and_of_packs_as_rows(tmp_path):
    one = table(tmp_path, View(where=("data.name=a",)))
    assert one.packs == ()
    assert row(one, "full").values == {Draw("", 0): 0.84, Draw("", 1): 0.84}
    assert row(one, "full").difference.mean == pytest.approx(0.03)
    assert row(one, "full").difference.n == 2
    rows = table(tmp_path, View(by=("data.name",), where=("variant=base",)))
    assert [(row.variant, row.mean) for row in rows.rows] == [
        (f"data.name={name}", pytest.approx(sum(VALUES["base"][name]) / 2)) for name in PRINTS
    ]
    by_alpha = table(tmp_path, View(by=("loss.alpha",)))
    assert by_alpha.rows[1].difference.n == 3


def test_samples_of_several_packs_are_refused(tmp_path):
    with pytest.raises(
        ConfigError, match="the 3 packs have different samples. Choose one: --where data.name=a"
    ):
        compare_samples(table(tmp_path))


def test_pooled_deviation_of_groups_of_any_size():
    # 1 2 3: sum of squares 2 with 2 degrees of freedom. 5 7: 2 with 1. A single value has none.
    assert estimates.pooled_deviation([[1, 2, 3], [5, 7], [9]]) == pytest.approx(math.sqrt(4 / 3))
    assert estimates.pooled_deviation([[1], [2]]) is None
    assert estimates.pooled_deviation([[1, 2, 3], [4]]) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"packs": ["a", "a"]}, "packs ['a', 'a'] has a duplicate"),
        (
            {"packs": ["a"], "variants": {"base": {"data.name": "b"}}},
            "row 'base': key 'data.name' does not belong",
        ),
        (
            {"packs": ["a"], "base": {"deepspeed": "zero1", "data": {"name": "a"}}},
            "key 'data.name' does not belong",
        ),
    ],
)
def test_invalid_packs_are_refused(tmp_path, changes, message):
    write_grid(tmp_path, **changes)
    assert any(
        message.removeprefix("row 'base': ") in line
        for line in refused(tmp_path, "study.yaml", "--dry-run")
    )


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            {"fingerprint": "feedfeedfeedfeed"},
            "packs 'a' and 'b' contain the same samples and would count twice",
        ),
        (
            {"preprocessing": {"knobs": {"seed": 2, "snr_db": 0}}},
            "setting knobs.snr_db is -6 in one and 0 in the other",
        ),
        ({"dataset": "avmnist"}, "data set is 'tridigits' in one and 'avmnist' in the other"),
    ],
)
def test_packs_of_different_data_are_refused(tmp_path, second, message):
    """Packs must be different draws of the same data set."""
    write_grid(tmp_path, packs=["a", "b"])
    pack(tmp_path / "data" / "a", preprocessing={"knobs": {"seed": 1, "snr_db": -6}})
    other = {"preprocessing": {"knobs": {"seed": 2, "snr_db": -6}}, "fingerprint": "0" * 16}
    pack(tmp_path / "data" / "b", **other | second)
    [line] = refused(tmp_path, "study.yaml", "--dry-run")
    assert message in line


def test_packs_of_the_default_set_are_made(tmp_path, capsys):
    """The name has the data seed: tridigits-seed3."""
    rows = expand_rows(login_grid(packs=["tridigits-seed3", "tridigits"]))
    assert set(fingerprints(rows, tmp_path, dry_run=True)) == {"tridigits-seed3", "tridigits"}
    assert (
        "data set 'tridigits-seed3' is not packed: `furnace submit` will pack it"
        in capsys.readouterr().out
    )
    with pytest.raises(ConfigError, match="'tridigits-seedx' is not packed"):
        fingerprints(
            expand_rows(login_grid(packs=["tridigits-seedx", "tridigits"])), tmp_path, dry_run=True
        )
