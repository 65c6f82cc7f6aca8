"""What a table says about epochs, and about runs that stopped early."""

import csv
import io
from pathlib import Path

from login_study import pack, planned
from tables_study import GRID, finish, study

from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.launch.submission import write_submission
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.tables.collect import collect
from furnace_hpc.tables.output.captions import caption
from furnace_hpc.tables.output.render import to_runs_csv
from furnace_hpc.tables.reading.submitted import submitted_runs
from furnace_hpc.tables.table import Ablation

BASE = {"deepspeed": "zero1", "evaluation": {"every": 100, "select": "last"}}
ROWS = {"base": {}, "full": {"loss.alpha": 0.5}}


def measured(ablation: Ablation) -> str:
    return next(line for line in caption(ablation, ()) if line.startswith("Measured at"))


def in_epochs(place: Path, submit: bool, **base: object) -> Ablation:
    """A table in epochs. 3,000 samples are 93.75 steps of 32."""
    asked = Grid.model_validate(GRID | {"base": BASE | {"epochs": 2} | base, "variants": ROWS})
    pack(place / "data/tridigits", splits={"train": 3000, "val": 8, "test": 8})
    if submit:
        write_submission(planned(place, asked, data_root=place / "data"))
    folder = GridFolder(place / "study")
    for spec in planned(place, asked, data_root=place / "data").runs:
        finish(spec.spec, folder)
    return collect(asked, submitted_runs(asked, folder).runs, folder)


def test_captions_have_steps_and_epochs(tmp_path):
    ablation = in_epochs(tmp_path, submit=True)
    assert measured(ablation) == "Measured at the last step (188, 2 epochs)."
    assert not ablation.rows[1].missing
    assert [change.key for change in ablation.rows[1].changes] == ["loss.alpha"]


def test_captions_with_one_epoch_and_a_choice(tmp_path):
    select = {"every": 10, "select": "best"}
    ablation = in_epochs(tmp_path, submit=True, epochs=1, evaluation=select)
    assert measured(ablation) == (
        "Measured at the step with the best val/digit/accuracy, evaluated every 10 of 94 steps "
        "(1 epoch)."
    )


def test_captions_without_a_submission(tmp_path):
    """The steps follow from data that the table does not read."""
    ablation = in_epochs(tmp_path, submit=False)
    assert measured(ablation) == "Measured at the last step (2 epochs)."


def test_captions_in_steps_are_as_before(tmp_path):
    grid, runs = study(base=BASE | {"steps": 500}, variants=ROWS)
    ablation = collect(grid, runs, GridFolder(tmp_path / "study"))
    assert measured(ablation) == "Measured at the last step (500)."


def stopped(place: Path, steps: dict[str, list[int]]) -> Ablation:
    """A table with early stopping. `steps`: row -> steps of its runs by seed, 500 if not given."""
    rule = {"steps": 500, "early_stopping": {"patience": 2}}
    grid, runs = study(base=GRID["base"] | rule, variants=ROWS, seeds=[0, 1, 2])
    folder = GridFolder(place / "study")
    for spec in runs:
        at = dict(enumerate(steps.get(spec.variant, []))).get(spec.config.seed, 500)
        finish(spec, folder, steps=at, stopped_early=at < 500)
    return collect(grid, runs, folder)


def test_a_note_names_rows_that_stopped_early(tmp_path):
    ablation = stopped(tmp_path, {"base": [300], "full": [200, 500, 400]})
    notes = [note for note in ablation.notes if "stopped early" in note.text]
    assert [note.text for note in notes] == [
        "stopped early, so the lengths of training differ: base 1 of 3 runs, at step 300, "
        "full 2 of 3 runs, at steps 200 to 400"
    ]
    assert notes[0].variants == ("base", "full")
    assert measured(ablation) == (
        "Measured at the step with the best val/digit/accuracy, evaluated every 100 of 500 steps "
        "(early stopping with patience 2)."
    )


def test_no_note_if_no_run_stopped(tmp_path):
    ablation = stopped(tmp_path, {})
    assert not any("stopped early" in note.text for note in ablation.notes)


def test_runs_csv_says_which_runs_stopped_early(tmp_path):
    lines = csv.DictReader(io.StringIO(to_runs_csv(stopped(tmp_path, {"full": [200, 500]}))))
    found = {(line["variant"], line["seed"]): line["stopped_early"] for line in lines}
    assert found["full", "0"] == "True"
    assert found["full", "1"] == found["base", "0"] == "False"
