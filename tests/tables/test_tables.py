"""The ablation table as data: statistics, and collecting runs."""

import csv
import io
import math
import random
import re
import subprocess
import sys

import pytest
from aggregate_study import submit
from tables_study import BONUS, accuracy_of, complete, finish, notes, row, study, troubled

from furnace_hpc.aggregate import show_table
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.runs.folder import GridFolder, write_json
from furnace_hpc.tables.collect import collect
from furnace_hpc.tables.large.changes import differences
from furnace_hpc.tables.notes import describe
from furnace_hpc.tables.other_settings import check_submitted, runs_of_other_settings
from furnace_hpc.tables.output.captions import caption
from furnace_hpc.tables.output.cells import all_cells
from furnace_hpc.tables.output.figures import draw_figures
from furnace_hpc.tables.output.latex import to_latex
from furnace_hpc.tables.output.render import to_csv
from furnace_hpc.tables.statistics import estimates
from furnace_hpc.tables.statistics.units import Draw
from furnace_hpc.tables.table import Ablation


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Ablation:
    return complete(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def holes(tmp_path_factory) -> Ablation:
    return troubled(tmp_path_factory.mktemp("holes"))


# Statistics


def test_t_interval_worked_by_hand():
    # values 1 2 3 4 5: mean 3, deviation sqrt(2.5), t(0.975, 4) = 2.776445
    assert estimates.mean([1, 2, 3, 4, 5]) == 3
    assert estimates.sample_deviation([1, 2, 3, 4, 5]) == pytest.approx(math.sqrt(2.5), rel=1e-12)
    low, high = estimates.t_interval([1, 2, 3, 4, 5])
    assert (low, high) == pytest.approx((3 - 1.963243, 3 + 1.963243), abs=1e-6)


def test_statistics_agree_with_scipy():
    import scipy.stats

    generator = random.Random(0)
    for n in (2, 3, 5, 10, 30):
        ours = [generator.gauss(0.8, 0.01) for _ in range(n)]
        theirs = [generator.gauss(0.79, 0.01) for _ in range(n)]
        oracle = scipy.stats.ttest_rel(ours, theirs).confidence_interval(0.95)
        difference = estimates.paired_difference(ours, theirs)
        assert difference.interval == pytest.approx((oracle.low, oracle.high), rel=1e-9)
        assert difference.n == n
        one = scipy.stats.ttest_1samp(ours, 0).confidence_interval(0.95)
        assert estimates.t_interval(ours) == pytest.approx((one.low, one.high), rel=1e-9)


def test_too_few_values_give_none():
    assert estimates.mean([]) is None
    assert estimates.sample_deviation([1.0]) is None
    assert estimates.t_interval([1.0]) is None
    assert estimates.paired_difference([], []) is None
    assert estimates.paired_difference([2.0], [1.5]) == estimates.Difference(0.5, None, 1)
    with pytest.raises(ValueError, match="zip"):
        estimates.paired_difference([1.0], [])


# Collecting


def test_complete_table(whole):
    assert [row.variant for row in whole.rows] == list(BONUS)
    base, full = row(whole, "base"), row(whole, "full")
    values = [accuracy_of(run.spec) for run in base.runs]
    assert base.values == {Draw("", seed): value for seed, value in enumerate(values)}
    assert base.mean == pytest.approx(sum(values) / 5, rel=1e-12)
    assert base.difference is None
    others = [accuracy_of(run.spec) for run in full.runs]
    assert full.difference.mean == pytest.approx(sum(others) / 5 - sum(values) / 5, abs=1e-12)
    assert full.difference.n == 5
    assert base.costs.train_s == 62
    assert base.costs.peak_memory_gib == 0.54
    assert base.costs.attempts == 5
    assert base.costs.num_parameters == 187_402
    assert not whole.missing
    assert [note.text.partition(":")[0] for note in whole.notes] == ["rests on normality"]


def test_changes_are_identity_keys_that_differ(whole):
    shown = [[(c.key, c.reference, c.value) for c in row.changes] for row in whole.rows]
    assert shown[0] == []
    assert shown[3] == [("loss.alpha", 0.0, 0.5), ("loss.beta", 0.0, 0.3)]
    config = whole.runs[0].spec.config
    assert differences(config.model_copy(update={"log_every": 99, "seed": 3}), config) == ()
    task = config.tasks[0].model_copy(update={"weight": 2.0})
    changed = differences(config.model_copy(update={"tasks": (task,)}), config)
    assert [(c.key, c.reference, c.value) for c in changed] == [("tasks.0.weight", 1.0, 2.0)]


def test_missing_runs_have_state_and_reason(holes):
    assert row(holes, "base").n == 4
    assert row(holes, "consistency_only").n == 3
    assert row(holes, "specific_only").n == 1
    named = [describe(run) for run in holes.missing]
    assert any(re.fullmatch(r"base-s4-\w{8} \(new\)", text) for text in named)
    assert any("(failed: RuntimeError: a|b <c> 100% of x_y at C:\\tmp ☃)" in text for text in named)
    assert len(named) == 6


def test_a_value_that_is_not_finite_is_named(holes):
    """It is not in the mean."""
    assert Draw("", 1) not in row(holes, "consistency_only").values
    assert re.search(
        r"not in the mean, because test/digit/accuracy is not finite: "
        r"consistency_only-s1-\w{8} \(nan\)",
        notes(holes),
    )


def test_differences_pair_seeds_that_both_rows_have(holes):
    difference = row(holes, "consistency_only").difference
    assert difference.n == 2  # its own 0, 2, 4 without the reference's missing 4
    base = row(holes, "base").values
    expected = [
        row(holes, "consistency_only").values[draw] - base[draw]
        for draw in (Draw("", 0), Draw("", 2))
    ]
    assert difference.mean == pytest.approx(sum(expected) / 2)
    assert "difference to base over seeds 0, 2, which both rows have" in notes(holes)
    assert row(holes, "specific_only").difference.interval is None
    assert "n=1: no standard deviation and no interval" in notes(holes)


def test_mixed_code_and_world_size_are_named(holes):
    text = notes(holes)
    assert re.search(
        r"code hash differs: c0dec0de in 12 of 14 runs, "
        r"but 01d01d01 in 2 of 14 runs: full-s0-\w{8}",
        text,
    )
    assert "Rows that average over different values: full" in text
    assert "world size differs: 2 in 12 of 14 runs, but 4 in 2 of 14 runs" in text
    assert "threads" not in text
    assert "device" not in text


def test_runs_of_an_older_grid_are_counted(holes):
    assert (
        "2 older runs left out, because the grid no longer contains them "
        "(1 on other data, 1 with another config)"
    ) in notes(holes)


def test_one_older_run_is_counted(tmp_path):
    grid, runs = study()
    folder = GridFolder(tmp_path / "study")
    _, older = study(base=grid.base | {"steps": 400})
    for spec in (*runs, older[0]):
        finish(spec, folder)
    expected = (
        "1 older run left out, because the grid no longer contains it (1 with another config)"
    )
    assert expected in notes(collect(grid, runs, folder))


def test_runs_of_other_settings_are_not_older_runs(tmp_path):
    """They have a table of their own. Without this rule they would count as older runs."""
    grid, runs = study()
    folder = GridFolder(tmp_path / "study")
    for spec in runs:
        finish(spec, folder)
    quick, quick_runs = study(base=grid.base | {"steps": 50}, settings={"steps": 50})
    submit(quick, quick_runs[:1], folder)
    submit(grid, runs, folder)
    finish(quick_runs[0], folder)
    quick_id = quick_runs[0].run_id
    assert runs_of_other_settings(grid, folder) == {quick_id}
    assert runs_of_other_settings(quick, folder) == {spec.run_id for spec in runs}
    assert "1 older run left out" in notes(collect(grid, runs, folder))
    assert show_table(grid, folder, tmp_path / "out", figures=False) == 0
    assert quick_id not in (tmp_path / "out" / "table.md").read_text()


def test_settings_without_submitted_runs_are_an_error(tmp_path):
    grid, runs = study()
    folder = GridFolder(tmp_path / "study")
    submit(grid, runs, folder)
    other, _ = study(base=grid.base | {"steps": 50}, settings={"steps": 50})
    with pytest.raises(ConfigError) as error:
        show_table(other, folder, tmp_path / "out", figures=False)
    assert "no run of grid 'study' was submitted with --set steps=50" in str(error.value)
    assert "aggregate --grid study" in str(error.value)
    assert not (tmp_path / "out").exists()
    assert show_table(grid, folder, tmp_path / "out", figures=False) == 1  # submitted, not done


def test_trials_of_a_tuned_grid_count_as_submitted(tmp_path):
    """Before values are chosen, no run of its table was submitted."""
    grid, runs = study()
    folder = GridFolder(tmp_path / "study")
    submit(grid, runs, folder)
    quick, trials = study(base=grid.base | {"steps": 50}, settings={"steps": 50})
    with pytest.raises(ConfigError, match="--set steps=50"):
        check_submitted(quick, ["a-row-of-the-table"], folder)
    submit(quick, trials, folder)
    check_submitted(quick, ["a-row-of-the-table"], folder)


def test_result_of_other_data_is_named(tmp_path):
    grid, runs = study()
    folder = GridFolder(tmp_path)
    finish(runs[0], folder, data_fingerprint="another")
    assert re.search(
        r"other data than planned in 1 run, by fingerprint: base-s0-\w{8} \(another\)",
        notes(collect(grid, runs, folder)),
    )


def test_reference_without_value_gives_no_difference(tmp_path):
    grid, runs = study()
    folder = GridFolder(tmp_path)
    for spec in runs:
        if spec.variant == "full":
            finish(spec, folder)
    ablation = collect(grid, runs, folder)
    assert row(ablation, "full").difference is None
    assert "no differences: the reference base has no value" in notes(ablation)
    assert "No row has an interval" in " ".join(caption(ablation, ()))


def test_a_table_without_results_has_dashes(tmp_path):
    grid, runs = study()
    ablation = collect(grid, runs, GridFolder(tmp_path / "empty"))
    assert [cells.n for cells in all_cells(ablation)] == ["0 of 5"] * 4
    assert [cells.mean for cells in all_cells(ablation)] == ["\u2013"] * 4
    assert not any(cells.best for cells in all_cells(ablation))
    assert len(draw_figures(ablation)) == 2
    assert "\\bottomrule" in to_latex(ablation)


def test_unknown_metric_lists_those_that_exist(tmp_path):
    grid, runs = study(metric="test/digit/f1_macro")
    finish(runs[0], GridFolder(tmp_path))
    with pytest.raises(ConfigError, match="metric 'test/digit/f1_macro' is in no result") as error:
        collect(grid, runs, GridFolder(tmp_path))
    assert "test/digit/accuracy" in str(error.value)


def test_an_unusable_result_is_a_missing_run(tmp_path):
    grid, runs = study()
    folder = GridFolder(tmp_path)
    write_json(folder.run(runs[0].run_id).result, {"format": 0})
    finish(runs[1], folder, run_id="another-s0-12345678")
    first, second, *_ = collect(grid, runs, folder).missing
    assert describe(first).endswith(
        "(unknown: result.json was written by another version of the code)"
    )
    assert describe(second).endswith("(unknown: result.json belongs to another-s0-12345678)")
    write_json(folder.run(runs[0].run_id).result, {"format": 99})
    newer = "result.json has format 99, and this Furnace reads format 1. Use the newer Furnace"
    assert newer in describe(collect(grid, runs, folder).missing[0])


def test_a_damaged_attempt_or_spec_has_a_note(tmp_path):
    """The results still count."""
    grid, runs = study()
    folder = GridFolder(tmp_path / "study")
    for spec in runs:
        finish(spec, folder)
    before = notes(collect(grid, runs, folder))
    assert "not counted" not in before
    assert "spec.json" not in before
    first = folder.run(runs[0].run_id)
    first.attempt(1).write_text('{"attempt": 1, "start_un')
    older = folder.run("older-s0-00000000")
    older.path.mkdir()
    older.spec.write_text('{"grid": "stu')
    ablation = collect(grid, runs, folder)
    assert not ablation.missing
    assert first.run_id in next(
        line for line in notes(ablation).splitlines() if "hours of an attempt not counted" in line
    )
    assert "left out, because spec.json is missing or damaged: older-s0-00000000" in notes(ablation)
    assert row(ablation, "base").costs.hours == pytest.approx(4 * 2 * 80 / 3600)


@pytest.mark.parametrize("seeds", [[0, 1], [0, 1, 2]])
def test_constant_differences_have_one_note(tmp_path, seeds):
    grid, runs = study(seeds=seeds)
    folder = GridFolder(tmp_path)
    exact = {"base": 0.80, "consistency_only": 0.85, "full": 0.80}
    for spec in runs:
        noise = 0.01 * spec.config.seed**2
        finish(spec, folder, accuracy=exact.get(spec.variant, 0.81 + noise))
    ablation = collect(grid, runs, folder)
    by_name = {cells.variant: cells for cells in all_cells(ablation)}
    for name, difference in (("consistency_only", "+5.0"), ("full", "+0.0")):
        cells = by_name[name]
        assert (cells.difference, cells.holm_p, cells.sign_flip_p, cells.effect) == (
            difference,
            *"\u2013\u2013\u2013",
        )
        assert cells.marks == "a"
    assert "[" in by_name["specific_only"].difference
    found = [line for line in notes(ablation).splitlines() if "the same for every seed" in line]
    assert found == [
        "the difference to base is the same for every seed, so it has no interval and no p value"
    ]
    assert "one pair gives no interval" not in notes(ablation)
    assert "excludes zero for consistency_only" not in " ".join(caption(ablation, ()))
    line = next(csv.DictReader(io.StringIO(to_csv(ablation).replace("\nbase,", "\nzz,"))))
    assert (line["t_p"], line["holm_p"], line["difference_low"]) == ("", "", "")


def test_one_seed_has_only_the_note_on_n(tmp_path):
    grid, runs = study(seeds=[0])
    for spec in runs:
        finish(spec, GridFolder(tmp_path), accuracy=0.85)
    text = notes(collect(grid, runs, GridFolder(tmp_path)))
    assert "n=1: no standard deviation and no interval" in text
    assert "the same for every" not in text


def test_importing_tables_imports_nothing_heavy():
    code = (
        "import sys, furnace_hpc.tables.output.results, furnace_hpc.aggregate; "
        "heavy = {'torch', 'scipy', 'matplotlib', 'polars', 'numpy', 'deepspeed'}; "
        "print(heavy & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
