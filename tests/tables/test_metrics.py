"""Several metrics in one table: the first has verdicts, the others are columns."""

import csv
import io
import json
from dataclasses import replace

import pytest
from aggregate_study import command, submit
from foreign_runs import table_of, wide_lines, write_csv
from pydantic import ValidationError
from rich.console import Console
from scipy import stats
from tables_study import GRID, finish, study

import furnace_hpc
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import expand
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.tables.collect import collect
from furnace_hpc.tables.output.cells import all_cells, headings, optional_texts
from furnace_hpc.tables.output.latex import to_latex
from furnace_hpc.tables.output.page.script_data import script_data
from furnace_hpc.tables.output.render import to_csv, to_markdown, to_terminal
from furnace_hpc.tables.output.report import to_html
from furnace_hpc.tables.table import Ablation
from furnace_hpc.tables.view import View, apply_view, why_no_verdict

ACCURACY, LOSS = "test/digit/accuracy", "test/digit/loss"
METRICS = {"metric": None, "metrics": [ACCURACY, LOSS]}
ROWS = {"variants": {"base": {}, "full": {"loss.alpha": 0.5}}}


def loss_of(spec) -> float:
    """Full has a lower loss by 0.02, with noise."""
    seed = spec.config.seed
    return 0.5 - (spec.variant == "full") * (0.02 + 0.003 * (seed % 3)) + 0.01 * seed


def finished(path, without_loss=(), **changes) -> tuple[Grid, list, GridFolder]:
    grid, runs = study(**{**ROWS, **METRICS, **changes})
    folder = GridFolder(path / "study")
    for spec in runs:
        gain = (spec.variant == "full") * (0.02 + 0.001 * (spec.config.seed % 2))
        metrics = {ACCURACY: 0.8 + gain + 0.003 * spec.config.seed, LOSS: loss_of(spec)}
        if (spec.variant, spec.config.seed) in without_loss:
            metrics.pop(LOSS)
        finish(spec, folder, metrics=metrics)
    return grid, runs, folder


def table(path, view=None, **changes) -> Ablation:
    grid, runs, folder = finished(path, **changes)
    shown, kept = apply_view(grid, runs, view or View())
    return collect(shown, kept, folder, why_no_verdict=why_no_verdict(grid, runs, view or View()))


# The key


def test_the_first_of_metrics_is_the_metric():
    grid, _ = study(**METRICS)
    assert (grid.metric, grid.direction, grid.more_metrics) == (ACCURACY, "max", (LOSS,))
    lower, _ = study(metric=None, metrics=[LOSS, ACCURACY])
    assert (lower.metric, lower.direction) == (LOSS, "min")
    assert Grid.model_validate(grid.model_dump()) == grid  # as submit writes and reads it
    assert study()[0].more_metrics == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": LOSS, "metrics": [ACCURACY, LOSS]}, "and the first of metrics is"),
        ({"metric": None, "metrics": [ACCURACY, ACCURACY]}, "has a duplicate. Keep one"),
        ({"metric": None, "metrics": []}, "metric"),
    ],
)
def test_wrong_metrics_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        Grid.model_validate(GRID | changes)


def test_an_unknown_further_metric_is_refused():
    grid = Grid.model_validate(GRID | {"metric": None, "metrics": [ACCURACY, "test/digit/los"]})
    with pytest.raises(ConfigError, match="unknown metric 'test/digit/los'"):
        expand(grid, {"tridigits": "0" * 16})


# The columns


def test_further_metrics_change_no_verdict(tmp_path):
    """Intervals, p values and marks are those of a table with the first metric alone."""
    several = table(tmp_path / "a")
    alone = table(tmp_path / "b", metric=ACCURACY, metrics=[])
    assert [row.difference for row in several.rows] == [row.difference for row in alone.rows]
    assert [row.verdict for row in several.rows] == [None, "better"]
    (other,) = several.others
    assert [row.verdict for row in other.rows] == [None, None]
    assert all(row.difference.simultaneous is None for row in other.compared)


def test_each_metric_has_its_direction_unit_and_digits(tmp_path):
    ablation = table(tmp_path)
    titles = headings(ablation)
    assert titles["metric"] == "accuracy \u2191 (%)"
    assert titles["metric_2"] == "loss \u2193"
    base, full = all_cells(ablation)
    losses = [0.5, 0.51, 0.52, 0.53, 0.54]
    deviation = stats.tstd(losses)
    assert base.further[0] == ("0.520", f"\u00b1 {deviation:.3f}", False)
    assert full.further[0].best  # the lower one
    assert full.best


def test_every_format_has_the_column(tmp_path):
    ablation = table(tmp_path)
    console = Console(width=100, file=io.StringIO())
    console.print(to_terminal(ablation, 100))
    sentence = "No verdict, and no correction counts it."
    markdown, latex, html = to_markdown(ablation), to_latex(ablation), to_html(ablation)
    for text in (markdown, latex, html, " ".join(console.file.getvalue().split())):
        assert "loss \u2193" in text
        assert sentence in text
        assert "0.520" in text
    assert f"Verdicts and marks are for {ACCURACY}." in markdown
    assert '<th scope="col" data-column="metric_2">' in html
    assert r"\ensuremath{\downarrow}" in latex
    chosen = table(tmp_path / "b", columns=["difference", "n"])
    assert list(headings(chosen)) == ["variant", "difference", "n", "metric_2"]


def test_one_metric_has_no_arrow(tmp_path):
    ablation = table(tmp_path, metric=ACCURACY, metrics=[])
    assert headings(ablation)["metric"] == "accuracy (%)"
    assert "Arrows" not in to_markdown(ablation)


def test_csv_has_uncorrected_differences(tmp_path):
    ablation = table(tmp_path)
    base, full = csv.DictReader(io.StringIO(to_csv(ablation)))
    gains = [-(0.02 + 0.003 * (seed % 3)) for seed in range(5)]
    oracle = stats.ttest_1samp(gains, 0).confidence_interval()
    assert float(full[f"{LOSS}.difference"]) == pytest.approx(sum(gains) / 5)
    assert float(full[f"{LOSS}.difference_low"]) == pytest.approx(oracle.low)
    assert float(full[f"{LOSS}.difference_high"]) == pytest.approx(oracle.high)
    assert float(base[f"{LOSS}.mean"]) == pytest.approx(0.52)
    assert base[f"{LOSS}.difference"] == ""
    assert full[f"{LOSS}.n"] == "5"


def test_a_run_without_a_further_metric_is_named(tmp_path):
    """The first metric keeps its verdict. The cell names the gap."""
    ablation = table(tmp_path, without_loss={("full", 2)})
    assert ablation.rows[1].verdict == "better"
    _, full = all_cells(ablation)
    assert full.further[0].spread.endswith("(1 of 5 missing)")
    assert not full.further[0].best


def test_equal_short_names_become_full_names(tmp_path):
    grid, runs = study(metric=None, metrics=[ACCURACY, "val/digit/accuracy"])
    folder = GridFolder(tmp_path / "study")
    for spec in runs:
        finish(spec, folder)
    ablation = collect(grid, runs, folder)
    titles = headings(ablation)
    assert titles["metric"] == f"{ACCURACY} \u2191 (%)"
    assert titles["metric_2"] == "val/digit/accuracy \u2191 (%)"
    text = "Validation selected the step, so values of val/digit/accuracy are optimistic."
    assert text in to_markdown(ablation)


def test_an_unknown_direction_has_no_better_row(tmp_path):
    """A metric of own code: neither bold, nor a share of better pairs, nor an arrow."""
    known = table(tmp_path)
    unknown = replace(known, has_direction=False)
    for ablation, share, direction in ((known, "1.00", "max"), (unknown, "\u2013", None)):
        text = optional_texts(ablation, ablation.rows[1])["improvement"]
        assert text.partition(" ")[0] == share
        assert json.loads(script_data(ablation))["views"][0]["better"] == direction
    assert not any(cells.best for cells in all_cells(unknown))


# Options


def test_metrics_of_a_view(tmp_path):
    """If the first one is the grid's, the table keeps its verdicts."""
    plain = {"metric": ACCURACY, "metrics": []}
    same = table(tmp_path / "a", View(metric=ACCURACY, more_metrics=(LOSS,)), **plain)
    assert [row.verdict for row in same.rows] == [None, "better"]
    assert [other.metric.name for other in same.others] == [LOSS]
    other = table(tmp_path / "b", View(metric=LOSS, more_metrics=(ACCURACY,)), **plain)
    assert other.why_no_verdict
    assert "Verdicts and marks" not in to_markdown(other)
    assert View(metric=LOSS, more_metrics=(ACCURACY,)).suffix == (
        "test-digit-loss-test-digit-accuracy"
    )
    with pytest.raises(ConfigError, match="--metric has a duplicate"):
        table(tmp_path / "c", View(metric=LOSS, more_metrics=(LOSS,)), **plain)


def test_command_and_python(tmp_path, monkeypatch):
    grid, runs, _ = finished(tmp_path / "runs")
    submit(grid, runs, GridFolder(tmp_path / "runs" / "study"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FURNACE_RUNS", raising=False)
    options = ["--grid", "study", "--no-figures"]
    found = command(tmp_path, *options)
    assert (found.returncode, found.stderr) == (0, "")
    assert "loss \u2193" in (tmp_path / "results/study/table.md").read_text()
    found = command(tmp_path, *options, "--metric", LOSS, "--metric", ACCURACY)
    assert (found.returncode, found.stderr) == (0, "")
    name = "study--test-digit-loss-test-digit-accuracy"
    assert "accuracy \u2191 (%)" in (tmp_path / "results" / name / "table.md").read_text()
    results = furnace_hpc.results("study", metric=[ACCURACY, LOSS])
    assert f"{LOSS}.mean" in results.table.columns
    assert "loss \u2193" in results._repr_html_()


# Other tools


def test_further_metrics_of_another_tool(tmp_path):
    lines = [line | {"odd": 3.0 + line["seed"]} for line in wide_lines()]
    path = write_csv(tmp_path / "runs.csv", lines)
    ablation = table_of(path, metric="acc", more_metrics=("loss", "odd"))
    titles = headings(ablation)
    assert (titles["metric_2"], titles["metric_3"]) == ("loss \u2193", "odd")  # no direction
    base, big = all_cells(ablation)
    assert base.further[0].mean == "0.1988"
    assert big.further[0].best
    assert not big.further[1].best
    with pytest.raises(ConfigError, match="--metric lost: the file has no such column"):
        table_of(path, metric="acc", more_metrics=("lost",))
    with pytest.raises(ConfigError, match="has a duplicate"):
        table_of(path, metric="acc", more_metrics=("acc",))


def test_two_metrics_with_equal_values(tmp_path):
    """Columns with the same values are two metrics, for example of two tools."""
    lines = [line | {"top1": line["acc"]} for line in wide_lines()]
    ablation = table_of(write_csv(tmp_path / "a.csv", lines), metric="acc", more_metrics=("top1",))
    base, _ = all_cells(ablation)
    assert base.further[0].mean == base.mean == "0.8013"


def test_files_that_do_not_name_their_metric(tmp_path):
    """TensorBoard's scalars without a tag would be read as any metric."""
    for line in wide_lines():
        values = [{"Wall time": 1.0, "Step": 10, "Value": line["acc"]}]
        write_csv(tmp_path / f"{line['variant']}-seed{line['seed']}.csv", values)
    with pytest.raises(ConfigError, match="does not name the metric of its values. Give"):
        table_of(tmp_path, metric="acc", more_metrics=("loss",))
