"""Views of a grid: another metric, rows by a key, some of the runs."""

import csv
import io
import json
import re

import pytest
from aggregate_study import command, submit
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tables_study import BONUS, accuracy_of, finish, notes, row, study

from furnace_hpc.aggregate import show_table
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.tables.collect import collect
from furnace_hpc.tables.output.captions import caption
from furnace_hpc.tables.output.cells import all_cells
from furnace_hpc.tables.output.figures import draw_figures
from furnace_hpc.tables.output.render import to_csv, to_markdown, to_runs_csv
from furnace_hpc.tables.output.report import to_html
from furnace_hpc.tables.statistics.units import Draw
from furnace_hpc.tables.table import Ablation
from furnace_hpc.tables.text import format_value
from furnace_hpc.tables.view import View, apply_view, why_no_verdict


def seen(path, view: View, without=(), **changes) -> Ablation:
    grid, runs = study(**changes)
    folder = GridFolder(path)
    for spec in runs:
        if (spec.variant, spec.config.seed) not in without:
            finish(spec, folder)
    shown, kept = apply_view(grid, runs, view)
    excluded_ids = [spec.run_id for spec in runs if spec not in kept]
    return collect(
        shown,
        kept,
        folder,
        by=view.by,
        excluded_ids=excluded_ids,
        why_no_verdict=why_no_verdict(grid, runs, view),
    )


def mean_of(runs, variants, seed) -> float:
    values = [
        accuracy_of(run) for run in runs if run.variant in variants and run.config.seed == seed
    ]
    assert len(values) == len(variants)
    return sum(values) / len(values)


def test_rows_by_a_key(tmp_path):
    """Runs of one seed are averaged, and rows are paired by seed."""
    ablation = seen(tmp_path, View(by=("loss.alpha",)))
    off, on = ablation.rows
    assert (off.variant, on.variant) == ("loss.alpha=0", "loss.alpha=0.5")
    assert ablation.grid.reference == "loss.alpha=0"
    _, runs = study()
    for seed in range(5):
        assert off.values[Draw("", seed)] == pytest.approx(
            mean_of(runs, ("base", "specific_only"), seed)
        )
        assert on.values[Draw("", seed)] == pytest.approx(
            mean_of(runs, ("consistency_only", "full"), seed)
        )
    assert (on.n, on.n_expected, len(on.runs), on.difference.n) == (5, 5, 10, 5)
    assert on.difference.mean == pytest.approx(on.mean - off.mean)
    assert [(c.key, c.reference, c.value) for c in on.changes] == [("loss.alpha", 0.0, 0.5)]
    assert "The value of a seed is the mean over the row's runs with it." in " ".join(
        caption(ablation, ())
    )


def test_a_seed_with_a_missing_run_is_left_out(tmp_path):
    ablation = seen(tmp_path, View(by=("loss.alpha",)), without=[("full", 2)])
    on = row(ablation, "loss.alpha=0.5")
    assert sorted(draw.seed for draw in on.values) == [0, 1, 3, 4]
    assert all_cells(ablation)[1].n == "4 of 5"
    assert "missing: full-s2-" in notes(ablation)


def test_where_keeps_runs_and_seeds(tmp_path):
    ablation = seen(tmp_path, View(where=("variant=base", "variant=f*", "seed=0", "seed=3")))
    assert [row.variant for row in ablation.rows] == ["base", "full"]
    assert ablation.grid.seeds == (0, 3)
    assert [draw.seed for draw in ablation.rows[1].values] == [0, 3]
    assert ablation.grid.description.endswith("Where variant=base, variant=f*, seed=0, seed=3.")
    assert "16 runs of the grid not shown, because --where excludes them" in notes(ablation)
    assert "older runs" not in notes(ablation)
    numbers = seen(tmp_path, View(where=("loss.beta=3e-1",)), reference="full")
    assert [row.variant for row in numbers.rows] == ["specific_only", "full"]


def test_another_metric_has_its_direction(tmp_path):
    loss = seen(tmp_path, View(metric="test/digit/loss"))
    assert (loss.grid.metric, loss.grid.direction, loss.rows[0].mean) == (
        "test/digit/loss",
        "min",
        0.5,
    )
    assert seen(tmp_path, View(metric="val/digit/accuracy")).grid.direction == "max"
    with pytest.raises(
        ConfigError,
        match="direction min contradicts metric 'test/digit/accuracy': higher is",
    ):
        seen(tmp_path, View(direction="min"))
    with pytest.raises(
        ConfigError, match="direction max contradicts metric 'test/digit/loss': lower is"
    ):
        seen(tmp_path, View(metric="test/digit/loss", direction="max"))
    with pytest.raises(ConfigError, match="'test/digit/f1' is in no result.*test/digit/accuracy"):
        seen(tmp_path, View(metric="test/digit/f1"))


@pytest.mark.parametrize(
    ("view", "options"),
    [
        (View(where=("variant=base", "variant=full")), "--where changes"),
        (View(metric="val/digit/accuracy"), "--metric changes"),
        (View(by=("loss.alpha",)), "--by changes"),
        (View(where=("seed=0", "seed=1"), by=("loss.beta",)), "--by and --where change"),
    ],
)
def test_a_view_has_no_star_and_says_why(tmp_path, view, options):
    """Else choosing rows after a look at them would create stars."""
    ablation = seen(tmp_path, view)
    cells = all_cells(ablation)
    assert not any(mark in row.difference for row in cells for mark in "*\u2020")
    assert {row.holm_p for row in cells} == {"\u2013"}
    assert any("[" in row.difference for row in cells)
    text = " ".join(caption(ablation, ("holm_p",)))
    assert f"No marks, verdicts and corrected p values, because {options}" in text
    assert "p < .05" not in text
    assert "*" not in to_markdown(ablation).replace("**", "").replace("f\\*", "")


def test_the_table_of_the_grid_has_stars(tmp_path):
    """Options that change nothing are not another view."""
    view = View(where=("variant=*",), metric="test/digit/accuracy", by=("loss.alpha",))
    ablation = seen(tmp_path, view, by=["loss.alpha"])
    assert ablation.why_no_verdict == ""
    assert "*" in all_cells(ablation)[1].difference


def test_a_filtered_table_on_disk_has_no_star(tmp_path):
    grid, runs = study()
    folder = GridFolder(tmp_path / "runs" / "study")
    submit(grid, runs, folder)
    for spec in runs:
        finish(spec, folder)
    for name, view in (("whole", View()), ("part", View(where=("variant=base", "variant=full")))):
        show_table(grid, folder, tmp_path / name, figures=False, view=view)
    whole, part = ((tmp_path / name / "table.md").read_text() for name in ("whole", "part"))
    assert "]\\*" in whole
    assert "]\\*" not in part
    assert "because --where changes what the grid compares" in part


def test_columns_and_rows_come_from_the_grid_file(tmp_path):
    grid, runs = study(columns=["metric", "hours", "n", "changes"], by=["loss.alpha"])
    folder = GridFolder(tmp_path / "runs" / "study")
    submit(grid, runs, folder)
    for spec in runs:
        finish(spec, folder)
    assert show_table(grid, folder, tmp_path / "out", figures=False) == 0
    head, rule, first, second = [
        line
        for line in (tmp_path / "out" / "table.md").read_text().splitlines()
        if line.startswith("|")
    ]
    assert head == "| variant | accuracy (%) | GPU-hours | n | change to loss.alpha=0 |"
    assert rule == "| :-- | --: | --: | --: | :-- |"
    # the mark of the second row has a footnote
    assert first.split()[1] == "loss.alpha=0"
    assert second.split()[1] == "loss.alpha=0.5<sup>a</sup>"
    tex = (tmp_path / "out" / "table.tex").read_text()
    assert r"\begin{tabular}{lrrrl}" in tex
    assert r"variant & accuracy (\%) & GPU-hours & n & change to loss.alpha=0 \\" in tex
    page = (tmp_path / "out" / "report.html").read_text()
    assert re.findall('<th scope="col" data-column="([a-z_]+)"', page) == [
        "variant",
        "metric",
        "hours",
        "n",
        "changes",
    ]
    assert (
        show_table(grid, folder, tmp_path / "other", figures=False, view=View(by=("loss.beta",)))
        == 0
    )
    assert "loss.beta=0.3" in (tmp_path / "other" / "table.md").read_text()
    assert "cost.svg" in draw_figures(collect(grid, runs, folder))  # without the column train_s
    with pytest.raises(ValidationError, match="columns"):
        study(columns=["hours", "metrics"])
    with pytest.raises(ValidationError, match=r"columns \['hours', 'hours'\]"):
        study(columns=["hours", "hours"])


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (
            View(by=("loss.alpha2",)),
            "--by loss.alpha2: no run has this key; did you mean 'loss.alpha'",
        ),
        (View(where=("loss.alpha",)), "wanted key=value"),
        (View(where=("lr=1",)), "--where lr: no run has this key"),
        (View(where=("loss.alpha=0.7",)), "--where loss.alpha=0.7 matches no run.*0.5"),
        (View(where=("variant=full",)), "excludes all runs of the reference 'base'"),
    ],
)
def test_unknown_keys_and_values_are_refused(view, message):
    with pytest.raises(ConfigError, match=message):
        apply_view(*study(), view)


def test_an_empty_view_changes_nothing():
    grid, runs = study(sanity=["full"])
    assert apply_view(grid, runs, View()) == (grid, runs)
    assert View().suffix == ""
    assert View(by=("loss.alpha",), where=("variant=f*",)).suffix == "by-loss.alpha-variant-f"


def test_a_view_has_its_own_results_folder(tmp_path):
    grid, runs = study()
    submit(grid, runs, GridFolder(tmp_path / "runs" / "study"))
    for spec in runs:
        finish(spec, GridFolder(tmp_path / "runs" / "study"))
    options = ("--by", "loss.alpha", "--metric", "test/digit/loss", "--no-figures")
    done = command(tmp_path, "--grid", "study", *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in (tmp_path / "results").iterdir()] == [
        "study--test-digit-loss-by-loss.alpha"
    ]
    assert "loss.alpha=0.5" in done.stdout
    assert not any(
        variant in done.stdout.split("test/digit/loss on", 1)[0]
        for variant in BONUS
        if variant != "base"
    )
    wrong = command(tmp_path, "--grid", "study", "--direction", "up")
    assert (wrong.returncode, "'max', 'min'" in wrong.stderr) == (2, True)


# Values are keys


NEAR = (0.00123456, 0.001234561)  # six digits do not tell them apart


def near(path, **changes) -> tuple[Ablation, list]:
    variants = {f"lr{number}": {"optimizer.lr": value} for number, value in enumerate(NEAR)}
    grid, runs = study(variants={"base": {}} | variants, seeds=[0, 1], **changes)
    folder = GridFolder(path)
    for spec in runs:
        finish(spec, folder, accuracy=0.8 + spec.config.optimizer.lr)
    return collect(grid, runs, folder, by=changes.get("by", ())), runs


def test_similar_values_are_different_rows(tmp_path):
    grid, runs = study(
        variants={"base": {}} | {f"lr{n}": {"optimizer.lr": v} for n, v in enumerate(NEAR)},
        seeds=[0],
    )
    for spec in runs:
        finish(spec, GridFolder(tmp_path), accuracy=0.8)
    shown, kept = apply_view(grid, runs, View(by=("optimizer.lr",)))
    ablation = collect(shown, kept, GridFolder(tmp_path), by=("optimizer.lr",))
    names = ["optimizer.lr=0.003", "optimizer.lr=0.00123456", "optimizer.lr=0.001234561"]
    assert [row.variant for row in ablation.rows] == names
    assert all(len(row.runs) == 1 for row in ablation.rows)


def test_csv_and_report_have_full_precision(tmp_path):
    ablation, _ = near(tmp_path)
    runs = list(csv.DictReader(io.StringIO(to_runs_csv(ablation))))
    assert [float(line["config.optimizer.lr"]) for line in runs[2::2]] == list(NEAR)
    assert [float(line["test/digit/accuracy"]) for line in runs[2::2]] == [
        0.8 + value for value in NEAR
    ]
    rows = list(csv.DictReader(io.StringIO(to_csv(ablation))))
    assert [line["changes"] for line in rows[1:]] == [
        f"optimizer.lr: 0.003 -> {value!r}" for value in NEAR
    ]
    assert [float(line["mean"]) for line in rows] == [row.mean for row in ablation.rows]
    data = json.loads(re.search(r'id="data">(.*?)</script>', to_html(ablation), re.DOTALL)[1])
    assert [row["changes"] for row in data["rows"][1:]] == [
        [["optimizer.lr", "0.003", repr(v)]] for v in NEAR
    ]
    assert [row["mean"] for row in data["views"][0]["values"]] == [
        row.mean for row in ablation.rows
    ]


@pytest.mark.parametrize("value", NEAR)
def test_where_selects_by_value(value):
    grid, runs = study(
        variants={"base": {}} | {f"lr{n}": {"optimizer.lr": v} for n, v in enumerate(NEAR)},
        seeds=[0],
    )
    for text in (repr(value), f"{value:.12e}", f"{value:.12f}"):
        _, kept = apply_view(grid, runs, View(where=(f"optimizer.lr={text}", "optimizer.lr=3e-3")))
        assert sorted(spec.config.optimizer.lr for spec in kept) == sorted([0.003, value])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.5"),
        (1e-5, "1e-05"),
        (100000.0, "100000"),
        (0.1 + 0.2, "0.30000000000000004"),
        (-0.0, "0"),
        (3, "3"),
        (True, "on"),
        (None, "none"),
        ("none", '"none"'),
        ("1e3", '"1e3"'),
        ("plain word", "plain word"),
        ("a, b=1", '"a, b=1"'),
        ("\x1b[0m", r'"\u001b[0m"'),
        ([0.9, 0.999], "0.9+0.999"),
        (["a+b"], '"a+b"'),
        (["a", "b"], "a+b"),
    ],
)
def test_format_value(value, text):
    assert format_value(value) == text


SCALARS = (
    st.floats(allow_nan=False) | st.integers() | st.booleans() | st.none() | st.text(max_size=8)
)


@pytest.mark.fuzz
@given(
    *[SCALARS | st.lists(st.floats(allow_nan=False) | st.text(max_size=4), min_size=2, max_size=3)]
    * 2
)
def test_different_values_have_different_texts(one, other):
    kinds = {type(one), type(other)}
    # True is 1, but is no number of a config
    if one == other or (kinds & {bool} and kinds & {int, float}):
        return
    assert format_value(one) != format_value(other)
    assert format_value(one).isprintable()


def test_opposite_numbers_have_different_folders():
    assert View(where=("loss.alpha=0.5",)).suffix == "loss.alpha-0.5"
    assert View(where=("loss.alpha=-0.5",)).suffix == "loss.alpha--0.5"
