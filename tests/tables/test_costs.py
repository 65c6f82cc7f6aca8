"""Costs of rows, against hand-worked numbers, and sanity rows."""

import csv
import io
from dataclasses import replace

import pytest
from tables_study import complete, finish, notes, result_of, row, study

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import expand_rows
from furnace_hpc.runs.folder import GridFolder, write_atomically, write_json
from furnace_hpc.runs.records.metrics import MetricsFile
from furnace_hpc.runs.resume_overrides import read_overrides
from furnace_hpc.tables.collect import collect, with_verdicts
from furnace_hpc.tables.notes import describe
from furnace_hpc.tables.output.captions import caption
from furnace_hpc.tables.output.cells import all_cells, headings
from furnace_hpc.tables.output.latex import to_latex
from furnace_hpc.tables.output.render import to_csv, to_markdown
from furnace_hpc.tables.reading.costs import (
    AttemptCosts,
    costs_of_attempts,
    row_costs,
    wide_range,
)
from furnace_hpc.tables.reading.run_files import read_record
from furnace_hpc.tables.statistics.verdicts import Verdict
from furnace_hpc.tables.table import Row


def log(folder, attempt: int, steps) -> None:
    metrics = MetricsFile(folder.metrics(attempt))
    for step in steps:
        metrics.write({"step": step, "kind": "train", "train/loss": 1.0})
    metrics.close()


def attempt(folder, number: int, start_s: float, end_s: float | None, step: int, **more) -> None:
    record = {
        "attempt": number,
        "start_unix_s": start_s,
        "end_unix_s": end_s,
        "step": step,
        "world_size": 2,
        **more,
    }
    write_json(folder.attempt(number), record)


def test_hours_lost_steps_and_goodput_worked_by_hand(tmp_path):
    _, runs = study()
    folder = GridFolder(tmp_path).run(runs[0].run_id)
    # attempt 1: 130 steps, of which 100 are saved. Attempt 2 ends before its first step.
    # Attempt 3: from 100 to 240, saved at 200. Attempt 4: from 200 to the end.
    attempt(folder, 1, 0, 900, 130, gpus=4)
    attempt(folder, 2, 1000, 1100, 0, gpus=4)
    attempt(folder, 3, 2000, 3000, 240, gpus=4)
    attempt(folder, 4, 4000, 5600, 500, gpus=4)
    log(folder, 1, range(10, 131, 10))
    log(folder, 3, range(110, 241, 10))
    log(folder, 4, range(210, 501, 10))
    saved = "".join(
        f'{{"step": {step}, "attempt": {number}}}\n'
        for step, number in ((100, 1), (200, 3), (300, 4))
    )
    write_atomically(folder.saved, saved + '{"step": 4')
    spent = costs_of_attempts(read_record(folder), result_of(runs[0], train_s=1800.0, attempts=4))
    assert spent == AttemptCosts(
        hours=4.0, gpus=True, lost_steps=30 + 40, goodput=0.5, setups="2 processes"
    )
    attempt(folder, 5, 6000, None, 0, gpus=4)
    running = costs_of_attempts(read_record(folder), None)
    assert (running.hours, running.lost_steps, running.goodput) == (4.0, 70, None)


def test_a_restart_at_step_0_loses_all_steps(tmp_path):
    _, runs = study()
    folder = GridFolder(tmp_path).run(runs[0].run_id)
    attempt(folder, 1, 0, 3600, 45)
    attempt(folder, 2, 4000, 7600, 90)
    log(folder, 1, (10, 20, 30, 40))
    log(folder, 2, (10, 20, 30))
    expected = AttemptCosts(
        hours=4.0, gpus=False, lost_steps=45, goodput=None, setups="2 processes"
    )
    assert costs_of_attempts(read_record(folder), None) == expected


def test_a_run_resumed_differently_has_a_footnote(tmp_path):
    ablation = complete(tmp_path)
    assert "resumed" not in notes(ablation)
    run = row(ablation, "base").runs[0]
    zero3 = read_overrides(["deepspeed=zero3", "micro_batch_size=2"])
    attempt(run.folder, 1, 0, 900, 100)
    attempt(run.folder, 2, 900, 950, 0, world_size=8)  # it trained nothing
    attempt(run.folder, 3, 1000, 1100, 200, world_size=1)
    attempt(run.folder, 4, 1200, 1300, 300, world_size=1, overrides=zero3)
    attempt(run.folder, 5, 1400, 1500, 400)
    zero3_so = "1 process, another DeepSpeed file (ZeRO stage 3), micro-batch 2"
    setups = f"2 processes; then 1 process; then {zero3_so}; then 2 processes"
    grid, runs = study()
    text = notes(collect(grid, runs, GridFolder(tmp_path / "study")))
    assert "1 run resumed with another number of processes or another DeepSpeed file" in text
    assert f"{run.run_id} ({setups})" in text


def test_costs_in_the_table(tmp_path):
    ablation = complete(tmp_path)
    costs = row(ablation, "base").costs
    assert costs.hours == pytest.approx(5 * 2 * 80 / 3600)
    assert costs.goodput == pytest.approx(62 / 80)
    assert costs.samples_per_s_each == 125
    assert costs.wall_s == 80
    cells = all_cells(ablation)[0]
    assert (cells.hours, cells.goodput, cells.lost_steps) == ("0.22", "77.5", "0")
    assert headings(ablation)["hours"] == "GPU-hours"
    assert headings(ablation)["samples_per_s_each"] == "samples/s per GPU"


def test_a_busy_hour_does_not_decide_the_costs(tmp_path):
    """The median is shown, and a note names the range."""
    grid, runs = study()
    folder = GridFolder(tmp_path)
    for spec in runs:
        is_slow = (spec.variant, spec.config.seed) == ("full", 4)
        slow = {"train_s": 600.0, "samples_per_s": 25.0, "wall_s": 800.0}
        finish(spec, folder, **(slow if is_slow else {}))
    ablation = collect(grid, runs, folder)
    full = row(ablation, "full")
    assert full.costs.train_s == 62  # of 60, 61, 62, 63, 600
    assert full.costs.wall_s == 80
    assert full.costs.samples_per_s_each == 125
    text = notes(ablation)
    assert (
        "train (s) differs by more than 1.5 times between the runs of a row, so the median may "
        "mislead: full 60.0 to 600.0"
    ) in text
    assert "wall (s) differs by more than 1.5 times" in text
    assert "samples/s differs by more than 1.5 times" in text
    assert "full 12.5 to 125.0" in text
    assert full.costs.ranges["samples_per_s_each"] == (12.5, 125)
    assert all_cells(ablation)[3].marks == "a,b,c,d"  # d: the mark rests on normality
    assert "differs by" not in notes(complete(tmp_path / "even"))


def test_the_range_is_shown_beside_each_median(tmp_path):
    """Also where it is too narrow for a note. The LaTeX table has no room for it."""
    ablation = complete(tmp_path)
    base = row(ablation, "base").costs
    assert base.ranges["train_s"] == (60, 64)
    assert base.ranges["goodput"] == (0.75, 0.8)
    texts = {"train_s": "60.0 to 64.0", "goodput": "75.0 to 80.0"}
    assert base.range_texts() == texts  # other costs are the same in all runs
    assert base.shown()["goodput"] == pytest.approx(77.5)
    text = to_markdown(ablation)
    assert "| 62.0 (60.0 to 64.0) |" in text
    assert "| 77.5 (75.0 to 80.0) |" in text
    assert "Beside a median: lowest and highest run." in text
    first = next(csv.DictReader(io.StringIO(to_csv(ablation))))
    names = ("train_s_min", "train_s", "train_s_max", "mfu_min")
    assert [first[name] for name in names] == ["60.0", "62.0", "64.0", ""]
    assert "60.0 to 64.0" not in to_latex(ablation)
    single = row_costs([result_of(study()[1][0])], 1, [AttemptCosts()])
    assert single.ranges == {}


@pytest.mark.parametrize(
    ("values", "limits"),
    [([10.0, 15.0], None), ([10.0, 15.1], (10.0, 15.1)), ([7.0], None), ([], None), ([0, 0], None)],
)
def test_wide_range(values, limits):
    assert wide_range(values) == limits


# Sanity rows


def test_under_trained_reference_marks_all_differences(tmp_path):
    """A reference is under-trained if a sanity row is better."""
    ablation = complete(tmp_path, sanity=["full", "specific_only"])
    assert ablation.stronger_sanity == ("full",)
    shown = [cells.difference for cells in all_cells(ablation)]
    assert shown[0] == "reference"
    assert all(text.endswith(" (reference under-trained)") for text in shown[1:])
    text = " ".join(caption(ablation, headings(ablation)))
    assert (
        "Reference under-trained: the sanity row full is better than base. Longer training may "
        "give the same differences."
    ) in text
    assert to_markdown(ablation).count("(reference under-trained)") == 3
    latex = to_latex(ablation)
    assert "Reference under-trained: the sanity row" in latex[latex.index(r"\caption") :]
    assert to_csv(ablation).count(",full,") >= 4
    several = replace(ablation, rows=tuple(better(row) for row in ablation.rows))
    assert several.stronger_sanity == ("specific_only", "full")
    text = to_markdown(several)
    assert "the sanity rows specific_only and full are better than base." in text


def better(of: Row) -> Row:
    return of if of.verdict is None else replace(of, verdict=Verdict.BETTER)


def test_reference_better_than_its_sanity_rows(tmp_path):
    ablation = complete(tmp_path, sanity=["specific_only"])
    assert ablation.stronger_sanity == ()
    assert "under-trained" not in to_markdown(ablation)
    grid = ablation.grid.model_copy(update={"direction": "min", "sanity": ("full",)})
    worse = replace(ablation, grid=grid, rows=with_verdicts(ablation.rows, grid))
    assert worse.stronger_sanity == ()


def test_runs_that_are_missing_show_no_under_training(tmp_path):
    """The better runs may be those that remain. A view decides nothing either."""
    ablation = complete(tmp_path, sanity=["full"])
    assert ablation.stronger_sanity == ("full",)
    grid = ablation.grid
    rows = [replace(row, runs=row.runs[:4]) for row in ablation.rows]
    gap = replace(rows[3].runs[0], value=None, result=None)
    rows[3] = replace(rows[3], runs=(gap, *rows[3].runs[1:]))
    assert replace(ablation, rows=with_verdicts(tuple(rows), grid)).stronger_sanity == ()
    view = replace(ablation, rows=tuple(replace(row, verdict=None) for row in ablation.rows))
    assert view.stronger_sanity == ()


@pytest.mark.parametrize(
    ("name", "why"),
    [("ful", "which is not a row; did you mean 'full'"), ("base", "which is the reference")],
)
def test_sanity_must_name_rows(name, why):
    with pytest.raises(ConfigError, match=f"sanity contains {name!r}") as error:
        study(sanity=[name])
    assert why in str(error.value)


def test_sanity_changes_no_run():
    assert [r.run_id for r in study(sanity=["full"])[1]] == [r.run_id for r in study()[1]]
    assert len(expand_rows(study(sanity=["full"])[0])) == 4


# Damaged files


@pytest.mark.parametrize("content", [b'{"format": 1, "run_id": "ba', b"", b"\xff\xfe\x00"])
def test_incomplete_result_is_named_and_not_counted(tmp_path, content):
    grid, runs = study()
    folder = GridFolder(tmp_path)
    for spec in runs:
        finish(spec, folder)
    folder.run(runs[0].run_id).result.write_bytes(content)
    ablation = collect(grid, runs, folder)
    (missing,) = ablation.missing
    assert "result.json is incomplete or damaged. Remove it and submit" in describe(missing)
    assert row(ablation, "base").n == 4
    assert "incomplete or damaged" in notes(ablation)


def test_speed_and_energy_by_hand(tmp_path):
    """Medians over runs and a sum of joules. Columns are shown only if a run knows them."""
    grid, runs = study()
    folder = GridFolder(tmp_path / "study")
    assert not {"mfu", "energy_kj", "data_wait"} & headings(complete(tmp_path / "old")).keys()
    for number, spec in enumerate(runs):
        speed = {"model_tflop_s": 100.0 + number, "mfu": 0.25, "energy_j": 1500.0}
        finish(spec, folder, train_s=60.0, data_wait_s=6.0, **speed)
    ablation = collect(grid, runs, folder)
    costs = row(ablation, "base").costs
    assert (costs.model_tflop_s, costs.mfu, costs.data_wait) == (102.0, 0.25, 0.1)
    assert costs.energy_kj == 7.5
    titles = headings(ablation)
    names = ("model_tflop_s", "mfu", "data_wait", "energy_kj")
    assert [titles[name] for name in names] == [
        *("TFLOP/s per GPU", "MFU (%)", "data wait (%)", "energy (kJ)")
    ]
    cells = all_cells(ablation)[0]
    assert [getattr(cells, name) for name in names] == ["102", "25.0", "10.0", "7.5"]
    text = " ".join(caption(ablation, titles))
    assert "MFU: model FLOPs divided by the GPU's dense peak" in text
    run = row(ablation, "base").runs[0]
    finish(run.spec, folder, energy_j=None)
    assert row(collect(grid, runs, folder), "base").costs.energy_kj is None, "a part is unknown"


def test_half_the_micro_batch_has_a_footnote(tmp_path):
    ablation = complete(tmp_path)
    run = row(ablation, "base").runs[0]
    halved = {"reason": "oom_halved", "next_overrides": {"micro_batch_size": 4}}
    attempt(run.folder, 1, 0, 900, 0, **halved)
    attempt(run.folder, 2, 1000, 1100, 500, overrides={"micro_batch_size": 4})
    grid, runs = study()
    text = notes(collect(grid, runs, GridFolder(tmp_path / "study")))
    assert "out of memory, so the micro-batch was halved at the same global batch" in text
    assert f"{run.run_id} (to 4 after step 0)" in text


def test_different_sizes_of_auto_have_a_footnote(tmp_path):
    auto = {"base": {"deepspeed": "zero1", "micro_batch_size": "auto"}}
    grid, runs = study(**auto)
    folder = GridFolder(tmp_path / "study")
    for spec in runs:
        finish(spec, folder, micro_batch_size=8)
    assert "micro_batch_size auto" not in notes(collect(grid, runs, folder))
    finish(runs[1], folder, micro_batch_size=4)
    text = notes(collect(grid, runs, folder))
    assert "micro_batch_size auto chose different sizes" in text
    assert f"4 in 1 run ({runs[1].run_id}); 8 in 19 runs" in text
