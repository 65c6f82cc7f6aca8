"""Intervals and tests over packs that share samples, against scipy and hand-worked numbers."""

import math

import pytest
from login_study import grid as login_grid
from login_study import pack, refused, write_grid
from scipy import stats
from tables_study import GRID, finish, notes, row

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import expand, expand_rows
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.manifest import PackOrigin
from furnace_hpc.launch.planning.dataset_checks import fingerprints
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.tables.collect import collect, flat_config
from furnace_hpc.tables.output.captions import caption
from furnace_hpc.tables.output.cells import headings
from furnace_hpc.tables.output.latex import to_latex
from furnace_hpc.tables.output.render import to_markdown
from furnace_hpc.tables.statistics import resampling
from furnace_hpc.tables.statistics.estimates import paired_difference
from furnace_hpc.tables.table import Ablation
from furnace_hpc.tables.view import View, apply_view

PACKS = ("a", "b", "c")
VALUES = {"base": (0.81, 0.72, 0.63), "full": (0.84, 0.76, 0.65)}  # differences .03 .04 .02
RATIO = 0.4


def origin(part: str = "", pool: str = "tridigits") -> PackOrigin:
    return PackOrigin(pool=pool, part=part, test_per_train=RATIO)


def table(path, origins, view=None, values=VALUES, **changes) -> Ablation:
    """One seed on each of three packs."""
    rows = {"variants": {"base": {}, "full": {"loss.alpha": 0.5}}, "seeds": [0], "packs": PACKS}
    study = Grid.model_validate(GRID | rows | changes)
    runs = expand(study, {name: name * 16 for name in PACKS})
    folder = GridFolder(path / "study")
    for spec in runs:
        number = PACKS.index(spec.config.data.name)
        value = values[spec.variant][number]
        finish(spec, folder, accuracy=value, data_origin=origins[number])
    view = view or View()
    shown, kept = apply_view(study, runs, view)
    return collect(shown, kept, folder, by=view.by)


def test_the_corrected_test_is_that_of_the_paper(tmp_path):
    """Its t is the mean over S * sqrt(1/K + n_test/n_train), with K - 1 degrees of freedom."""
    ablation = table(tmp_path, [origin()] * 3)
    difference = row(ablation, "full").difference
    error = 0.01 * math.sqrt(1 / 3 + RATIO)
    half = stats.t.ppf(0.975, 2) * error
    assert difference.interval == pytest.approx((0.03 - half, 0.03 + half))
    assert difference.t_p == pytest.approx(2 * stats.t.sf(0.03 / error, 2))
    assert difference.sign_flip_p is None
    half = stats.t.ppf(0.975, 2) * 0.09 * math.sqrt(1 / 3 + RATIO)
    assert row(ablation, "base").interval == pytest.approx((0.72 - half, 0.72 + half))


@pytest.mark.parametrize(
    "origins",
    [
        [origin("1/3"), origin("2/3"), origin("3/3")],
        [None, None, None],
        [origin(), None, origin(pool="scans")],
    ],
    ids=["disjoint", "unknown", "of different pools"],
)
def test_packs_that_share_nothing_are_not_corrected(tmp_path, origins):
    ablation = table(tmp_path, origins)
    plain = paired_difference(VALUES["full"], VALUES["base"])
    difference = row(ablation, "full").difference
    assert difference.interval == pytest.approx(plain.interval)
    assert difference.t_p == pytest.approx(plain.t_p)
    assert difference.sign_flip_p == 0.25
    assert "Nadeau" not in " ".join(caption(ablation, headings(ablation))) + to_latex(ablation)


def test_marks_of_shared_packs_rest_on_normality(tmp_path):
    """The sign-flip test has no correction for shared samples, so nothing confirms a mark."""
    sentence = "packs that share samples have no exact test"
    undecided = notes(table(tmp_path / "undecided", [origin()] * 3))
    assert sentence not in undecided
    close = VALUES | {"full": (0.8401, 0.75, 0.6601)}
    shared = table(tmp_path / "shared", [origin()] * 3, values=close)
    assert row(shared, "full").verdict == "better"
    assert notes(shared) == f"rests on normality: {sentence}"
    assert sentence not in notes(table(tmp_path / "own", [None] * 3, values=close))


def test_effects_of_shared_packs_rest_on_normality(tmp_path):
    beta = {"loss.beta": 0.3}
    variants = {"base": {}, "alpha": {"loss.alpha": 0.5}, "beta": beta}
    variants["full"] = variants["alpha"] | beta
    values = VALUES | {"alpha": (0.81, 0.7201, 0.63), "beta": (0.95, 0.8602, 0.77)}
    values["full"] = (0.9501, 0.86, 0.77)
    changes = {"variants": variants, "values": values}
    sentence = "rest on normal differences: loss.beta: 0 -> 0.3. Packs that share samples have no"
    assert sentence in to_markdown(table(tmp_path / "shared", [origin()] * 3, **changes))
    own = to_markdown(table(tmp_path / "own", [None] * 3, **changes))
    assert "rests on normal differences: loss.beta: 0 -> 0.3. The exact sign-flip test" in own


@pytest.mark.parametrize(
    ("parts", "shared"),
    [
        (("", ""), True),
        (("1/2", "2/2"), False),
        (("1/2", "1/2"), True),
        (("1/2", "2/3"), True),
        (("1/2", ""), True),
    ],
)
def test_which_parts_share_samples(parts, shared):
    ratio = resampling.test_per_train([origin(part) for part in parts])
    assert ratio == (RATIO if shared else 0.0)


def test_the_caption_names_the_correction(tmp_path):
    ablation = table(tmp_path, [origin()] * 3)
    text = " ".join(caption(ablation, headings(ablation)))
    assert "The packs are drawn from the same samples" in text
    assert "Nadeau and Bengio (2003)" in text
    assert "1/K + 0.40 times that of a pack" in text
    assert "corrected for shared samples (Nadeau and Bengio)" in to_latex(ablation)
    assert "p (flip): exact" not in text


def test_more_packs_of_one_pool_are_not_advised(tmp_path):
    advice = "more packs of the same samples would add little. Use packs that share none"
    text = notes(table(tmp_path / "shared", [origin()] * 3, sesoi=0.01))
    assert advice in text
    assert "power" not in text
    text = notes(table(tmp_path / "disjoint", [None] * 3, sesoi=0.01))
    assert advice not in text
    assert "power 80 %" in text


def test_one_pack_is_never_corrected(tmp_path):
    one = table(tmp_path, [origin()] * 3, View(where=("data.name=a",)))
    assert one.rows[0].test_per_train == 0
    rows = table(tmp_path, [origin()] * 3, View(by=("data.name",), where=("variant=base",)))
    assert [row.test_per_train for row in rows.rows] == [0, 0, 0]
    assert [[change.key for change in row.changes] for row in rows.rows] == [
        [],
        ["data.name"],
        ["data.name"],
    ]


def test_the_seed_of_a_pack_is_no_change(tmp_path):
    ablation = table(tmp_path, [None] * 3)
    assert [change.key for change in row(ablation, "full").changes] == ["loss.alpha"]
    run = row(ablation, "full").runs[1]
    assert run.spec.config.pack_seed is not None
    assert "pack_seed" not in flat_config(run.spec)


def test_packs_of_a_pool_are_made(tmp_path, capsys):
    """The name has the part of the pool: tridigits-1of5."""
    rows = expand_rows(login_grid(packs=["tridigits-1of5", "tridigits-10of10"]))
    fingerprints(rows, tmp_path, dry_run=True)
    assert capsys.readouterr().out.count("will pack it") == 2
    for name in ("tridigits-6of5", "tridigits-1of11", "tridigits-0of5", "tridigits-1of1"):
        with pytest.raises(ConfigError, match=f"'{name}' is not packed"):
            fingerprints(
                expand_rows(login_grid(packs=[name, "tridigits"])), tmp_path / name, dry_run=True
            )


def test_parts_of_different_pools_are_refused(tmp_path):
    write_grid(tmp_path, packs=["a", "b"])
    pack(tmp_path / "data" / "a", preprocessing={"knobs": {"pool": "1/5"}})
    pack(
        tmp_path / "data" / "b",
        preprocessing={"knobs": {"pool": "2/4"}},
        fingerprint="0" * 16,
    )
    [line] = refused(tmp_path, "study.yaml", "--dry-run")
    assert "setting knobs.pool is 'I/5' in one and 'I/4' in the other" in line
