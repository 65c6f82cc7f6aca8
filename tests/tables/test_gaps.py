"""Missing and failed runs: they block bold and star, and bound the difference."""

import math

import pytest
from tables_study import accuracy_of, fail, finish, notes, row, study

from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.tables.collect import collect
from furnace_hpc.tables.metric import Metric
from furnace_hpc.tables.output.cells import all_cells
from furnace_hpc.tables.output.latex import to_latex
from furnace_hpc.tables.output.render import to_csv, to_markdown
from furnace_hpc.tables.output.report import to_html
from furnace_hpc.tables.table import Ablation


def table(path, gaps: dict[tuple[str, int], str], **changes) -> Ablation:
    """A study whose runs in `gaps` have failed, diverged (value NaN) or never started."""
    grid, runs = study(**changes)
    folder = GridFolder(path / "study")
    for spec in runs:
        match gaps.get((spec.variant, spec.config.seed)):
            case "failed":
                fail(spec, folder, "FloatingPointError: the loss is not finite")
            case "diverged":
                finish(spec, folder, accuracy=math.nan)
            case None:
                finish(spec, folder)
    return collect(grid, runs, folder)


def cells_of(ablation: Ablation, variant: str):
    return next(cells for cells in all_cells(ablation) if cells.variant == variant)


def test_failed_runs_block_bold_and_star(tmp_path):
    """The three runs that remain would be bold and starred."""
    whole = cells_of(table(tmp_path / "whole", {}), "full")
    assert whole.best
    assert "*" in whole.difference
    gaps = {("full", 0): "failed", ("full", 3): "diverged"}
    ablation = table(tmp_path / "gaps", gaps)
    full = cells_of(ablation, "full")
    assert not full.best
    assert "*" not in full.difference
    assert full.spread.endswith("(2 of 5 failed)")
    assert cells_of(ablation, "consistency_only").best
    assert "*" in cells_of(ablation, "consistency_only").difference
    for write in (to_markdown, to_latex, to_html):
        assert "(2 of 5 failed)" in write(ablation)


def test_a_missing_run_of_the_reference_blocks_stars(tmp_path):
    ablation = table(tmp_path, {("base", 2): "new"})
    assert cells_of(ablation, "base").spread.endswith("(1 of 5 missing)")
    assert not any("*" in cells.difference for cells in all_cells(ablation))
    assert cells_of(ablation, "full").best


def test_failed_and_missing_runs_are_told_apart(tmp_path):
    ablation = table(tmp_path, {("full", 0): "failed", ("full", 1): "new", ("full", 2): "new"})
    assert row(ablation, "full").gaps == "1 of 5 failed, 2 missing"
    assert row(ablation, "base").gaps == ""


def test_bound_of_the_difference_worked_by_hand(tmp_path):
    """A failed run has an accuracy between 0 and 1."""
    ablation = table(tmp_path, {("full", 0): "failed"})
    values = {run.run_id: accuracy_of(run.spec) for run in ablation.runs}
    base = sum(values[run.run_id] for run in row(ablation, "base").runs)
    full = sum(values[run.run_id] for run in row(ablation, "full").runs[1:])
    low, high = 100 * (full - base) / 5, 100 * (full + 1 - base) / 5
    assert (
        f"if missing and failed runs had values from 0.0 to 100.0, the difference to base could "
        f"be: full {low:+.1f} to {high:+.1f}"
    ) in notes(ablation)
    assert notes(ablation).count("could be") == 1
    assert "could be" in to_csv(ablation)
    nothing = table(tmp_path / "none", {("full", seed): "new" for seed in range(5)})
    assert "could be" not in notes(nothing)


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("test/digit/accuracy", (0, 1)),
        ("test/genre/f1_macro@text", (0, 1)),
        ("test/consistency/recall_at_1_there@text+image", (0, 1)),
        ("test/genre/map", (0, 1)),
        ("test/digit/loss", None),
        ("test/genre/d_prime", None),
        ("mape", None),
    ],
)
def test_metrics_with_limits(name, limits):
    assert Metric(name, "max").limits == limits
