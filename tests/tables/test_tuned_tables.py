"""The table of a tuned grid: budget, chosen values, costs, curves, and rows that wait."""

import csv
from itertools import product
from statistics import fmean

import pytest
from login_study import write_grid
from tables_study import complete, finish, notes
from tuned_study import FAILS, TUNE, end_trials, folder_at, rows_of, trials_of, tuned_grid

from furnace_hpc.api.grid_table import make_table
from furnace_hpc.config.grids import trials as tuned_trials
from furnace_hpc.config.grids.expansion import expand
from furnace_hpc.config.grids.grid import Grid, read_grid
from furnace_hpc.config.parsing import strict_yaml
from furnace_hpc.monitor.tuning import next_stage
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.state import read_status
from furnace_hpc.tables.output.captions import caption, short_caption
from furnace_hpc.tables.output.cells import DASH, all_cells, headings
from furnace_hpc.tables.output.results import write_results
from furnace_hpc.tables.statistics.best_of import expected_best
from furnace_hpc.tables.table import Ablation
from furnace_hpc.tables.tuning.csv_lines import tuning_lines
from furnace_hpc.tables.view import View

PRINTS = {"tridigits": "feed" * 4}


def tuned(path, *of_full, grid: Grid | None = None) -> tuple[Grid, GridFolder]:
    """A study whose row `base` has run, and `full` with these results of its trials."""
    grid, folder = grid or tuned_grid(), folder_at(path)
    base, full = trials_of(grid)
    end_trials(base, folder, 0.6, 0.5, 0.4)
    end_trials(full, folder, *of_full)
    stage = next_stage(grid, rows_of(grid), PRINTS, folder, read_status, write=True)
    for run in stage.runs:
        if "~" not in run.variant:
            finish(run, folder)
    return grid, folder


def table(path, *of_full, view: View | None = None) -> Ablation:
    return make_table(*tuned(path, *of_full), view or View())


def test_expected_best_is_that_of_all_draws():
    values = [0.3, 0.9, 0.5, 0.5]
    for k in (1, 2, 3):
        draws = list(product(values, repeat=k))
        assert expected_best(values, k, "max") == pytest.approx(fmean(map(max, draws)))
        assert expected_best(values, k, "min") == pytest.approx(fmean(map(min, draws)))


def test_the_table_has_budget_and_choice(tmp_path):
    ablation = table(tmp_path, 0.4, 0.5, 0.6)
    text = " ".join(caption(ablation, headings(ablation)))
    budget = (
        "Each row tuned with 3 trials of optimizer.lr (log 0.0003 to 0.03) on seeds 100, 101 by "
        "val/digit/accuracy."
    )
    assert budget in text
    assert budget in short_caption(ablation)
    assert "Not tuned" not in text
    base, full = all_cells(ablation)
    assert (base.tuned, full.tuned) == ("optimizer.lr 0.007374", "optimizer.lr 0.01772")
    assert full.changes == "loss.alpha: 0 -> 0.5"  # a tuned value is no change
    # 6 runs of a row, each 80 s on 2 GPUs
    assert base.tuning_hours == f"{6 * 80 * 2 / 3600:.2f}"
    assert base.hours == f"{3 * 80 * 2 / 3600:.2f}"
    assert "They took 0.53 GPU-hours, which the other costs do not include" in text
    assert "full" in [
        v for note in ablation.notes if "lowest or highest" in note.text for v in note.variants
    ]
    assert "older run" not in notes(ablation)
    assert not ablation.missing


def test_a_renamed_row_keeps_trials_and_costs(tmp_path):
    before = table(tmp_path, 0.4, 0.5, 0.6)
    grid = tuned_grid(variants={"base": {}, "whole": {"loss.alpha": 0.5}})
    folder = folder_at(tmp_path)
    next_stage(grid, rows_of(grid), PRINTS, folder, read_status, write=True)
    after = make_table(grid, folder, View())
    of_full, of_whole = all_cells(before)[1], all_cells(after)[1]
    assert (of_whole.tuned, of_whole.tuning_hours) == (of_full.tuned, of_full.tuning_hours)
    assert "~" not in notes(after)
    assert [line["mean"] for line in tuning_lines(after)][3:] == [0.4, 0.5, 0.6]


def test_a_table_expands_the_trials_once(tmp_path, monkeypatch):
    grid, folder = tuned(tmp_path, 0.4, 0.5, 0.6)
    calls, expand_one = list[str](), tuned_trials._of_trial
    monkeypatch.setattr(
        tuned_trials, "_of_trial", lambda *of: calls.append(of[1].name) or expand_one(*of)
    )
    make_table(grid, folder, View())
    assert calls == ["base"] * 3 + ["full"] * 3


def test_the_files_have_every_trial(tmp_path):
    ablation = table(tmp_path / "runs", 0.4, FAILS, 0.6)
    write_results(ablation, tmp_path / "out", figures=False)
    lines = list(csv.DictReader((tmp_path / "out/tuning.csv").open()))
    assert [(line["variant"], line["trial"], line["chosen"]) for line in lines] == [
        ("base", "1", "True"),
        ("base", "2", "False"),
        ("base", "3", "False"),
        ("full", "1", "False"),
        ("full", "2", "False"),
        ("full", "3", "True"),
    ]
    assert lines[4]["mean"] == ""
    assert "the loss is nan" in lines[4]["failures"]
    assert (lines[5]["optimizer.lr"], lines[5]["seed_101"]) == ("0.01772", "0.6")
    curve = list(csv.DictReader((tmp_path / "out/tuning_curve.csv").open()))
    of_base = [float(line["expected_best"]) for line in curve if line["variant"] == "base"]
    assert of_base == pytest.approx([0.5, (0.6 * 5 + 0.5 * 3 + 0.4) / 9, 0.5667], abs=1e-3)
    of_full = [float(line["expected_best"]) for line in curve if line["variant"] == "full"]
    assert of_full[0] == pytest.approx((0.4 + 0.4 + 0.6) / 3)  # the failed one is the worst
    assert "1 of 3 trials failed and counts as the worst: full~2-s100" in notes(ablation)
    report = (tmp_path / "out/report.html").read_text()
    section = report[report.index('id="tuning-title"') :]
    assert section.count("<polyline") == 2
    assert "optimizer.lr 0.01772" in section
    rows = list(csv.DictReader((tmp_path / "out/table.csv").open()))
    assert rows[0]["tuned"] == "optimizer.lr 0.007374"
    latex = (tmp_path / "out/table.tex").read_text()
    assert "% Tuned, base: optimizer.lr 0.007374.\n" in latex
    assert latex.count("Each row tuned with 3 trials") == 2  # in its comments and its caption


def test_equal_trials_get_a_note(tmp_path):
    ablation = table(tmp_path, 0.5, 0.7, 0.7)
    assert "trials 2, 3 are equally good, and the first was chosen" in notes(ablation)


def test_a_row_that_waits_is_missing(tmp_path):
    """Runs of an untuned grid with the same names do not stand in for it."""
    grid, folder = tuned(tmp_path, 0.1)
    untuned = grid.model_copy(update={"tune": None})
    for run in expand(untuned, PRINTS):
        finish(run, folder)
    ablation = make_table(grid, folder, View())
    assert {run.status.reason for run in ablation.missing} == {"tuning 2/6"}
    assert [run.spec.variant for run in ablation.missing] == ["full"] * 3
    base, full = all_cells(ablation)
    assert (base.tuned, full.tuned, full.n) == ("optimizer.lr 0.007374", DASH, "0 of 3")
    files = write_results(ablation, tmp_path / "out", figures=False)
    assert "not chosen yet" in (tmp_path / "out/report.html").read_text()
    assert all(file.exists() for file in files)


def test_a_table_before_the_first_choice(tmp_path):
    grid, folder = tuned_grid(), folder_at(tmp_path)
    end_trials(trials_of(grid)[0], folder, 0.1, 0.2, 0.3)
    ablation = make_table(grid, folder, View())
    reasons = [run.status.reason for run in ablation.missing]
    assert reasons == 3 * ["all trials have ended: submit again to choose values"] + 3 * [
        "tuning 0/6"
    ]
    write_results(ablation, tmp_path / "out", figures=False)
    assert not (tmp_path / "out/tuning.csv").exists()


def test_a_view_by_a_tuned_key(tmp_path):
    ablation = table(tmp_path, 0.4, 0.5, 0.6, view=View(by=("optimizer.lr",)))
    assert [row.variant for row in ablation.rows] == [
        "optimizer.lr=0.007374",
        "optimizer.lr=0.01772",
    ]
    assert all_cells(ablation)[1].tuned == "optimizer.lr 0.01772"


def test_packs_have_their_own_values(tmp_path):
    grid, folder = tuned_grid(packs=["a", "b"]), folder_at(tmp_path)
    found = trials_of(grid)
    for trials, best in zip(found, (0, 1, 0, 0), strict=True):
        end_trials(trials, folder, *[0.9 if number == best else 0.1 for number in range(3)])
    prints = {"a": "a" * 16, "b": "b" * 16}
    stage = next_stage(grid, rows_of(grid), prints, folder, read_status, write=True)
    for run in stage.runs:
        finish(run, folder)
    ablation = make_table(grid, folder, View())
    assert not ablation.missing
    base, full = all_cells(ablation)
    assert base.tuned == "a: optimizer.lr 0.007374; b: optimizer.lr 0.0004391"
    assert full.tuned == "optimizer.lr 0.007374"
    assert "Each row on each pack tuned with" in " ".join(caption(ablation, headings(ablation)))
    assert ablation.tuning is not None
    assert ablation.tuning.rows["base"].curve()[0] == pytest.approx((0.9 + 0.1 + 0.1) / 3)


def test_an_untuned_table_says_so(tmp_path):
    ablation = complete(tmp_path)
    assert "Not tuned per row." in caption(ablation, headings(ablation))
    assert short_caption(ablation).endswith("Not tuned per row.")
    assert "tuned" not in headings(ablation)


def test_the_grid_file_can_be_read_back(tmp_path):
    first = read_grid(write_grid(tmp_path, tune=TUNE))
    (tmp_path / "again.yaml").write_text(strict_yaml.dump(first.model_dump(mode="json")))
    assert read_grid(tmp_path / "again.yaml") == first
