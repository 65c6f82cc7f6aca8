"""Choosing values when trials have ended: ties, failures, retries, and one choice only."""

import json
import shutil
import sys

import pytest
from login_study import begin, dead_holder, speak_at_once
from tuned_study import FAILS, end_trials, folder_at, rows_of, trials_of, tuned_grid

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.trials import Tuned
from furnace_hpc.monitor.tuning import Stage, choose, next_stage
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.records.choice import Choice, path_of, read_choice
from furnace_hpc.runs.state import read_status

BASE, FULL = Tuned("base", "tridigits"), Tuned("full", "tridigits")


def stage(
    folder: GridFolder, write: bool = True, code: str = "", adopt: bool = True, **changes
) -> Stage:
    grid = tuned_grid(**changes)
    prints = {"tridigits": "feed" * 4}
    how = {"write": write, "code_hash": code, "adopt": adopt}
    return next_stage(grid, rows_of(grid), prints, folder, read_status, **how)


def chosen(tmp_path, *results, **changes) -> Choice:
    grid, folder = tuned_grid(**changes), folder_at(tmp_path)
    [trials] = trials_of(grid, "base")
    end_trials(trials, folder, *results)
    found = choose(trials, folder, read_status)
    assert isinstance(found, Choice), found
    return found


def test_the_best_mean_over_seeds_wins(tmp_path):
    choice = chosen(tmp_path, [0.9, 0.1], [0.6, 0.62], [0.5, 0.5])
    assert (choice.trial, choice.best) == (2, pytest.approx(0.61))
    assert choice.values == {"optimizer.lr": 0.0004391}
    assert [tried.results for tried in choice.trials] == [(0.9, 0.1), (0.6, 0.62), (0.5, 0.5)]


def test_the_lowest_loss_wins(tmp_path):
    grid, folder = tuned_grid({"metric": "val/digit/loss"}), folder_at(tmp_path)
    [trials] = trials_of(grid, "base")
    end_trials(trials, folder, 0.1, 0.2, 0.3)
    for trial, loss in zip(trials.trials, (0.5, 0.4, 0.6), strict=True):
        for run in trial.runs:
            file = folder.run(run.run_id).result
            content = json.loads(file.read_text())
            file.write_text(json.dumps(content | {"metrics": {"val/digit/loss": loss}}))
    found = choose(trials, folder, read_status)
    assert isinstance(found, Choice)
    assert (found.trial, found.direction) == (2, "min")


def test_of_equal_trials_the_first_wins(tmp_path):
    assert chosen(tmp_path, 0.3, 0.7, 0.7).trial == 2


@pytest.mark.parametrize("worst", [FAILS, [0.99, FAILS], [0.99, float("nan")]])
def test_a_failed_trial_is_the_worst(tmp_path, worst):
    choice = chosen(tmp_path, worst, 0.2, 0.1)
    assert choice.trial == 2
    assert [tried.trial for tried in choice.failed] == [1]
    assert "is nan" in choice.failed[0].failures[0]


def test_a_row_whose_trials_all_failed_is_refused(tmp_path):
    """It plans its trials, for --retry failed, and the other row continues."""
    folder = folder_at(tmp_path)
    base, full = trials_of(tuned_grid())
    end_trials(base, folder, FAILS, FAILS, FAILS)
    end_trials(full, folder, 0.1, 0.2, 0.3)
    found = stage(folder)
    assert found.waiting[BASE].startswith("all 3 trials failed, so no values can be chosen (base~1")
    assert "the loss is nan" in found.waiting[BASE]
    assert not path_of(folder, base).exists()
    assert [run.variant for run in found.runs] == [run.variant for run in base.runs] + 3 * ["full"]


def test_trials_come_first_then_the_table(tmp_path):
    folder = folder_at(tmp_path)
    base, full = trials_of(tuned_grid())
    first = stage(folder)
    assert list(first.runs) == base.runs + full.runs
    assert first.waiting == {BASE: "tuning 0/6", FULL: "tuning 0/6"}
    assert "12 runs of the table will follow" in first.lines(12)[-1]
    end_trials(full, folder, 0.1, 0.2, 0.3)
    end_trials(base, folder, 0.1)
    then = stage(folder)
    assert then.waiting == {BASE: "tuning 2/6"}
    assert [run.variant for run in then.runs] == [run.variant for run in base.runs] + 3 * ["full"]
    assert {run.config.optimizer.lr for run in then.runs if run.variant == "full"} == {0.01772}


def test_an_interrupted_trial_has_not_ended(tmp_path):
    folder = folder_at(tmp_path)
    base, _ = trials_of(tuned_grid())
    end_trials(base, folder, 0.1, 0.2)
    begin(base.trials[2].runs[0], folder, who=dead_holder())
    assert choose(base, folder, read_status) == "tuning 4/6"


def test_a_dry_run_chooses_and_writes_nothing(tmp_path):
    folder = folder_at(tmp_path)
    base, _ = trials_of(tuned_grid())
    end_trials(base, folder, 0.1, 0.2, 0.3)
    assert stage(folder, write=False).choices[BASE].trial == 3
    assert not folder.tuning.exists()


def test_a_later_retry_does_not_change_a_choice(tmp_path):
    folder = folder_at(tmp_path)
    base, _ = trials_of(tuned_grid())
    end_trials(base, folder, 0.1, 0.2, FAILS)
    assert stage(folder).choices[BASE].trial == 2
    before = path_of(folder, base).read_bytes()
    end_trials(base, folder, 0.1, 0.2, 0.9)
    assert stage(folder).choices[BASE].trial == 2
    assert path_of(folder, base).read_bytes() == before
    path_of(folder, base).unlink()
    assert stage(folder).choices[BASE].trial == 3


RENAMED = {"variants": {"base": {}, "whole": {"loss.alpha": 0.5}}}
WHOLE = Tuned("whole", "tridigits")


def test_a_renamed_row_keeps_its_choice(tmp_path):
    """Its name is no part of its trials. A retry after the choice changes nothing here either."""
    folder = folder_at(tmp_path)
    base, full = trials_of(tuned_grid())
    for trials in (base, full):
        end_trials(trials, folder, 0.1, 0.2, 0.3)
    before = stage(folder).choices[FULL]
    end_trials(full, folder, 0.9, 0.2, 0.3)
    planned = stage(folder, write=False, **RENAMED)
    assert planned.choices[WHOLE] == before.model_copy(update={"row": "whole"})
    assert [run.variant for run in planned.runs] == ["base"] * 3 + ["whole"] * 3
    assert len(list(folder.tuning.iterdir())) == 2
    assert stage(folder, **RENAMED).waiting == {}
    [file] = folder.tuning.glob("whole-*.json")
    assert json.loads(file.read_text())["row"] == "whole"
    assert stage(folder, code="0ther", **RENAMED).waiting[WHOLE] == "tuning 0/6"


def test_no_adopt_tunes_a_renamed_row_again(tmp_path):
    folder = folder_at(tmp_path)
    for trials in trials_of(tuned_grid()):
        end_trials(trials, folder, 0.1, 0.2, 0.3)
    stage(folder)
    assert stage(folder, adopt=False, **RENAMED).waiting == {WHOLE: "tuning 0/6"}
    [file] = folder.tuning.glob("full-*.json")
    file.write_text("{")
    assert stage(folder, **RENAMED).waiting == {WHOLE: "tuning 0/6"}


def test_new_code_sets_an_old_choice_aside(tmp_path):
    folder = folder_at(tmp_path)
    base, full = trials_of(tuned_grid())
    for trials in (base, full):
        end_trials(trials, folder, 0.1, 0.2, 0.3)
    assert len(stage(folder).choices) == 2
    assert stage(folder, code="c0dec0de").waiting == {}
    assert stage(folder, code="0ther", write=False).waiting == {
        BASE: "tuning 0/6",
        FULL: "tuning 0/6",
    }
    assert len(list(folder.tuning.iterdir())) == 2
    assert len(stage(folder, code="0ther").waiting) == 2
    assert len(list(folder.tuning.iterdir())) == 2  # until there is a new choice
    for run in base.runs:
        shutil.rmtree(folder.run(run.run_id).path)
    end_trials(base, folder, 0.3, 0.2, 0.1, code_hash="0ther")
    assert stage(folder, code="0ther").choices[BASE].trial == 1
    names = sorted("".join(path.suffixes) for path in folder.tuning.iterdir())
    assert names == [".1.json", ".json", ".json"]


def test_another_space_is_another_choice(tmp_path):
    folder = folder_at(tmp_path)
    for trials in trials_of(tuned_grid()):
        end_trials(trials, folder, 0.1, 0.2, 0.3)
    assert not stage(folder).waiting
    assert len(stage(folder, tune={"trials": 4}).waiting) == 2


WRITE = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from tuned_study import folder_at, trials_of, tuned_grid
from furnace_hpc.monitor.tuning import choose
from furnace_hpc.runs.records.choice import write_choice
from furnace_hpc.runs.state import read_status
folder, [trials, _] = folder_at(Path(sys.argv[1])), trials_of(tuned_grid())
choice = choose(trials, folder, read_status)
sys.stdin.readline()
import os
mine = choice.model_copy(update={"trial": 1 + os.getpid() % 3})
mine = mine.model_copy(update={"values": mine.trials[mine.trial - 1].values})
print(write_choice(folder, trials, mine).trial, flush=True)
sys.stdin.readline()
"""


def test_many_processes_write_one_choice(tmp_path):
    """Each wants another trial. All of them return the one that is written."""
    folder = folder_at(tmp_path)
    base, _ = trials_of(tuned_grid())
    end_trials(base, folder, 0.1, 0.2, 0.3)
    words, _ = speak_at_once([sys.executable, "-c", WRITE, str(tmp_path), *sys.path], 4)
    choice = read_choice(folder, base)
    assert choice is not None
    assert words == [str(choice.trial)] * 4
    assert [path.name for path in folder.tuning.iterdir()] == [path_of(folder, base).name]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"values": {"optimizer.lr": 1.0}}, "has other values than the trials of row 'base'"),
        ({"trial": 9}, "has other values than the trials of row 'base'"),
        ({"format": "x"}, "is damaged"),
    ],
)
def test_a_changed_choice_is_refused(tmp_path, change, words):
    folder = folder_at(tmp_path)
    base, _ = trials_of(tuned_grid())
    end_trials(base, folder, 0.1, 0.2, 0.3)
    stage(folder)
    file = path_of(folder, base)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ConfigError, match=f"{file.name} {words}.*Move it away"):
        stage(folder)
