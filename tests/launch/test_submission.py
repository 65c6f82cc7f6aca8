"""The lock on a grid, and what a submission writes before anything runs."""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml
from login_study import (
    CODE,
    begin,
    dead_holder,
    end,
    finish,
    grid,
    planned,
    read_rows,
    speak_at_once,
    specs,
    tree,
)

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.host import batch, lifecycle
from furnace_hpc.launch import submission
from furnace_hpc.launch.submission import grid_lock, withdraw, write_submission
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.journal import Submission
from furnace_hpc.runs.submitted import SubmissionRow

OLD = "01d01d01d01d"
HOLD = """
import sys
from pathlib import Path
from furnace_hpc.launch.submission import grid_lock
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.config.errors import ConfigError
sys.stdin.readline()
try:
    with grid_lock(GridFolder(Path(sys.argv[1]))):
        print("held", flush=True)
        sys.stdin.readline()
except ConfigError as error:
    print(error, flush=True)
    sys.stdin.readline()
"""


def hold_at_once(folder: GridFolder, count: int) -> tuple[list[str], list[int]]:
    """Return what `count` processes print that take the lock at the same moment, and their ids."""
    return speak_at_once([sys.executable, "-c", HOLD, str(folder.path)], count)


def test_one_of_two_submissions_gets_the_lock(tmp_path):
    """The error of the other one names the holder."""
    folder = GridFolder(tmp_path / "study")
    words, pids = hold_at_once(folder, 2)
    assert words.count("held") == 1
    other = next(word for word in words if word != "held")
    assert other.startswith("grid 'study' is being submitted or run by ")
    # the holder may not have written its name yet
    assert f"process {pids[words.index('held')]} on " in other or "an unknown process" in other
    assert not folder.lock.exists()


def test_the_error_names_the_holder_of_the_lock(tmp_path):
    folder = GridFolder(tmp_path / "study")
    with grid_lock(folder):
        words, _ = hold_at_once(folder, 1)
        assert f"being submitted or run by process {os.getpid()} on " in words[0]
        assert str(folder.lock) in words[0]
    assert hold_at_once(folder, 1)[0] == ["held"]


def test_a_stale_lock_of_a_dead_process_is_taken_over(tmp_path):
    folder = GridFolder(tmp_path)
    folder.lock.write_text(json.dumps(dead_holder()))
    with grid_lock(folder):
        assert json.loads(folder.lock.read_text()) == lifecycle.holder() | {
            "job_id": None,
            "what": "submission",
        }
    assert list(tmp_path.iterdir()) == []


def test_one_of_four_takes_a_stale_lock(tmp_path):
    folder = GridFolder(tmp_path / "study")
    folder.path.mkdir()
    folder.lock.write_text(json.dumps(dead_holder()))
    words, _ = hold_at_once(folder, 4)
    assert words.count("held") == 1
    assert list(folder.path.iterdir()) == []


def test_a_stale_lock_is_taken_over_once(tmp_path, monkeypatch):
    folder = GridFolder(tmp_path)
    folder.lock.write_text(json.dumps(dead_holder()))
    is_alive = lifecycle.is_alive
    asked = []

    def slow(who):
        answer = is_alive(who)
        asked.append(answer)
        if len(asked) == 1:  # meanwhile a live process takes the stale lock over
            folder.lock.write_text(json.dumps(lifecycle.holder()))
        return answer

    monkeypatch.setattr(submission.lifecycle, "is_alive", slow)
    with pytest.raises(ConfigError, match=f"run by process {os.getpid()} on "), grid_lock(folder):
        pass
    assert asked[0] is False
    assert json.loads(folder.lock.read_text()) == lifecycle.holder()


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"host": "node7"}', json.dumps({"host": "node7", "pid": 1, "boot_id": ""})],
)
def test_a_lock_of_an_unknown_holder_is_respected(tmp_path, content):
    folder = GridFolder(tmp_path)
    folder.lock.write_text(content)
    with (
        pytest.raises(ConfigError, match="wait for it to end, or remove .*submit.lock"),
        grid_lock(folder),
    ):
        pass
    assert folder.lock.read_text() == content


def test_the_lock_is_released_after_an_error(tmp_path):
    folder = GridFolder(tmp_path)
    with pytest.raises(KeyError), grid_lock(folder):
        raise KeyError("x")
    assert not folder.lock.exists()


def test_a_submission_writes_grid_specs_and_rows(tmp_path):
    asked = grid()
    runs = specs()
    folder = GridFolder(tmp_path / "study")
    finish(runs[2], folder)
    plan = planned(tmp_path, asked)
    written = write_submission(plan).path
    assert written == folder.submissions / "1"
    assert Grid.model_validate(yaml.safe_load(folder.grid.read_text())) == asked
    rows = read_rows(written)
    assert [row["row"] for row in rows] == [0, 1, 2, 3]
    assert [row["run_id"] for row in rows] == [run.run_id for run in runs]
    assert [row["to_do"] for row in rows] == [True, True, False, True]
    assert {path.name for path in folder.path.iterdir()} >= {"grid.yaml", "submissions", "code"}
    assert not folder.run(runs[0].run_id).path.exists()
    for row, run in zip(rows, runs, strict=True):
        assert row["run_dir"] == str(folder.run(run.run_id).path.resolve())
        offset, length = row["spec_at"]
        text = (written / "specs.jsonl").read_bytes()[offset : offset + length].decode()
        assert RunSpec.model_validate_json(text) == run
        assert row["facts"]["code_hash"] == CODE
        assert SubmissionRow.from_line(json.dumps(row)).attempt.record() == row["facts"]
        assert batch._find_row(str(written), "row", row["row"]) == row
    assert write_submission(plan).path == folder.submissions / "2"
    assert not list(folder.path.rglob(".*"))


def test_an_open_attempt_of_a_dead_launcher_is_closed(tmp_path):
    """Then any node can begin the next one."""
    folder = GridFolder(tmp_path / "study")
    run = begin(specs()[0], folder, dead_holder())
    write_submission(planned(tmp_path, grid()))
    record = lifecycle.read_attempt(str(run.path), 1)
    assert (record["reason"], record["error"]) == (
        "killed",
        "its launcher died and reported no end",
    )
    assert record["end_unix_s"] is not None


def test_a_withdrawn_submission_restores_old_runs(tmp_path):
    changes = {"variants": {"base": {}}, "seeds": [0]}
    folder = GridFolder(tmp_path / "study")
    run = finish(specs(**changes)[0], folder, code=OLD)
    before = tree(run.path)
    plan = planned(tmp_path, grid(**changes), new_code=True)
    withdraw(plan, write_submission(plan))
    assert tree(run.path) == before
    assert not folder.submissions.exists()


def test_submissions_made_at_once_get_distinct_numbers(tmp_path):
    folder = GridFolder(tmp_path / "study")
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: folder.new_submission(), range(40)))
    assert sorted(int(path.name) for path in made) == list(range(1, 41))
    (folder.submissions / "notes").mkdir()
    assert folder.new_submission().name == "41"


def test_new_code_moves_the_old_folder_away(tmp_path):
    changes = {"variants": {"base": {}}, "seeds": [0]}
    spec, folder = specs(**changes)[0], GridFolder(tmp_path / "study")
    run = finish(spec, folder, code=OLD)
    before = tree(run.path)
    write_submission(planned(tmp_path, grid(**changes), new_code=True))
    aside = folder.replaced / f"{spec.run_id}.1"
    assert tree(aside) == before
    assert not run.path.exists()  # it is made when the run begins
    end(begin(spec, folder, code=OLD), "crash")
    again = tree(run.path)
    write_submission(planned(tmp_path, grid(**changes), new_code=True))
    assert tree(folder.replaced / f"{spec.run_id}.2") == again
    assert tree(aside) == before


def test_the_journal_ignores_a_torn_line(tmp_path):
    journal = Submission(tmp_path)
    assert journal.sbatch_calls() == []
    journal.note("intent", name="a", kind="array", base=2, rows=[2, 5])
    journal.note("intent", name="b", kind="array", base=0, rows=[9])
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"unix_s": 1, "event": "subm')
    assert [(call.name, call.outcome) for call in journal.sbatch_calls()] == [
        ("a", "doubtful"),
        ("b", "doubtful"),
    ]
    journal.note("submitted", name="a", job_id="7")
    journal.note("refused", name="b", error="no")
    first, second = journal.sbatch_calls()
    assert (first.outcome, first.elements) == ("submitted", {2: "7_0", 5: "7_3"})
    assert (second.outcome, second.job_id) == ("refused", "")
    (tmp_path / "rows.jsonl").write_text('{"run_id": "x"}\n{"run_id": "y"}\n')
    assert journal.cancelled() == set()
    journal.note("cancelled", runs=["x"])
    assert journal.cancelled() == {"x"}
    journal.note("cancelled", runs=[])
    assert journal.cancelled() == {"x", "y"}


@pytest.mark.parametrize("line", ['{"run_id": ', "[]", '{"row": 1}', "null"])
def test_a_damaged_row_is_one_error(tmp_path, line):
    (tmp_path / "rows.jsonl").write_text(line + "\n")
    with pytest.raises(ConfigError, match="rows.jsonl is damaged .*: move the folder .* away"):
        _ = Submission(tmp_path).rows
