"""Runs that another tool's files lack, cut off, or hold without the metric."""

import numpy as np
import pytest
from foreign_runs import BASE, BIG, long_lines, table_of, values_of, wide_lines, write_csv

from furnace_hpc.tables.output.cells import all_cells
from furnace_hpc.tables.output.report import to_html
from furnace_hpc.tables.output.verdict import verdict
from furnace_hpc.tables.statistics.verdicts import Verdict


def notes_of(ablation) -> str:
    return " ".join(note.text for note in ablation.notes)


def test_a_run_without_a_line_is_missing(tmp_path):
    """Deleting the line of a crashed run earns no verdict."""
    whole = table_of(write_csv(tmp_path / "whole.csv", wide_lines()))
    assert whole.rows[1].verdict is Verdict.BETTER
    lines = [line for line in wide_lines() if (line["variant"], line["seed"]) != ("big", 2)]
    ablation = table_of(write_csv(tmp_path / "runs.csv", lines))
    (row,) = ablation.compared
    assert (row.n, row.n_expected, row.verdict) == (3, 4, Verdict.UNDECIDED)
    assert row.gaps == "1 of 4 missing"
    assert "missing: big-s2 (no line in the files)" in notes_of(ablation)


def test_an_infinite_value_does_not_change_the_unit(tmp_path):
    """The cells were shares, and the footnote on failed runs was in percent."""
    lines = [
        {"variant": line["variant"], "seed": line["seed"]}
        | {"accuracy": line["acc"], "accuracy2": line["acc"] - 0.1}
        for line in wide_lines()
    ]
    lines[-1] |= {"accuracy": "inf", "accuracy2": "inf"}
    ablation = table_of(write_csv(tmp_path / "runs.csv", lines), metric="accuracy")
    assert all_cells(ablation)[0].mean == "80.12"
    assert ablation.rows[1].gaps == "1 of 4 failed"
    assert "from 0.0 to 100.0" in notes_of(ablation)
    assert "1 of 8 runs without a finite value" in to_html(ablation)
    assert "1 of 8 runs without a finite value" in verdict(ablation)
    assert "all 8 runs done" not in to_html(ablation)
    several = table_of(tmp_path / "runs.csv", metric="accuracy", more_metrics=("accuracy2",))
    assert all_cells(several)[0].further[0].mean == "70.12"


def test_rows_without_common_seeds_lack_nothing(tmp_path):
    lines = [
        line | {"seed": line["seed"] + 100 * (line["variant"] == "big")} for line in wide_lines()
    ]
    ablation = table_of(write_csv(tmp_path / "runs.csv", lines))
    assert ablation.missing == []
    assert "no common seed" in notes_of(ablation)


def test_a_run_without_the_metric_is_missing(tmp_path):
    lines = [
        line
        for line in long_lines()
        if (line["variant"], line["seed"], line["metric"]) != ("big", 1, "acc")
    ]
    ablation = table_of(write_csv(tmp_path / "runs.csv", lines))
    assert [run.run_id for run in ablation.missing] == ["big-s1"]
    assert ablation.rows[1].gaps == "1 of 4 failed"


def test_empty_cells_of_a_history_are_not_logged(tmp_path):
    lines = []
    for line in wide_lines():
        run = f"{line['variant']}-s{line['seed']}"
        lines += [{"_step": 1, "run": run, "acc": line["acc"]}, {"_step": 2, "run": run, "acc": ""}]
    for line in lines:
        line |= {"variant": line["run"][:-3], "seed": line["run"][-1]}
    ablation = table_of(write_csv(tmp_path / "runs.csv", lines))
    assert values_of(ablation) == {"base": BASE, "big": BIG}


def test_runs_that_end_early_are_named(tmp_path):
    lines = [line | {"_step": 1000} for line in wide_lines()]
    lines[1]["_step"] = 100
    ablation = table_of(write_csv(tmp_path / "runs.csv", lines))
    assert "values of other steps than the last one (1,000): base, seed 1 at 100" in notes_of(
        ablation
    )
    lines[1]["_step"] = 1000
    even = table_of(write_csv(tmp_path / "even.csv", lines))
    assert "other steps" not in notes_of(even)


def test_the_column_of_packs_is_no_setting(tmp_path):
    lines = [
        {
            "run_id": f"{pack}{line['variant']}{line['seed']}",
            "metrics.acc": line["acc"],
            "params.variant": line["variant"],
            "params.seed": line["seed"],
            "params.dataset": pack,
        }
        for pack in ("a", "b")
        for line in wide_lines()
    ]
    ablation = table_of(write_csv(tmp_path / "runs.csv", lines), pack="dataset")
    assert "settings differ" not in notes_of(ablation)


@pytest.mark.parametrize("gain", [0.002, 0.05])
def test_equal_differences_in_fp32_are_no_proof(tmp_path, gain):
    """Trackers write fp32. The rounding of equal gains must not count as their spread."""
    base = [float(np.float32(value)) for value in (0.8, 0.82)]
    big = [float(np.float32(value)) for value in (0.8 + gain, 0.82 + gain)]
    lines = [
        {"variant": row, "seed": seed, "acc": value}
        for row, values in (("base", base), ("big", big))
        for seed, value in enumerate(values)
    ]
    ablation = table_of(write_csv(tmp_path / "runs.csv", lines))
    (row,) = ablation.compared
    assert row.difference is not None
    assert (row.difference.interval, row.verdict) == (None, Verdict.UNDECIDED)


@pytest.mark.parametrize(("metric", "factor"), [("accuracy", 100), ("mape", 4)])
def test_values_beyond_0_and_1_have_no_bounds(tmp_path, metric, factor):
    lines = [
        {"variant": line["variant"], "seed": line["seed"], metric: factor * line["acc"]}
        for line in wide_lines()
    ]
    lines[5][metric] = ""
    ablation = table_of(write_csv(tmp_path / "runs.csv", lines), metric=metric)
    assert ablation.rows[1].gaps == "1 of 4 failed"
    assert "could be" not in notes_of(ablation)
