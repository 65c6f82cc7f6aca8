"""Trials, then the table: what submit plans, what a follow-up job continues, and a real queue."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from login_study import command, pack, refused, write_grid
from planned_study import planned as plan
from tables_study import finish, notes
from tuned_study import FAILS, TUNE, end_trials, trials_of, tuned_grid

from furnace_hpc import cancel
from furnace_hpc.api.grid_table import make_table
from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.grid import Grid, with_settings
from furnace_hpc.launch.follow_up import plan_next_stage
from furnace_hpc.launch.grids import cancel_grid
from furnace_hpc.launch.planning.plan import Action, Plan, Scope
from furnace_hpc.launch.stalled import unattended_trials
from furnace_hpc.launch.submission import read_scope, record, write_submission
from furnace_hpc.monitor.assignments import JobAssignment
from furnace_hpc.monitor.run_status import observe
from furnace_hpc.runs.code import code_hash
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.journal import Submission
from furnace_hpc.runs.records import declaration
from furnace_hpc.runs.records.declaration import read_declared
from furnace_hpc.runs.state import RunState, RunStatus
from furnace_hpc.tables.declared_plan import plan_lines
from furnace_hpc.tables.view import View

ROOT = Path(__file__).parents[2]
SEARCH = "optimizer.lr (log 0.0003 to 0.03) on seeds 100, 101 by val/digit/accuracy"


def submitted(path: Path, grid: Grid, *rows: str, **chosen) -> Submission:
    """A submission of trials."""
    path.chmod(0o700)
    return write_submission(plan(path, grid, *rows, **chosen))


def followed(submission: Submission) -> Plan | None:
    folder = GridFolder(submission.path.parent.parent)
    return plan_next_stage(submission, folder, observe(folder))


def runs(found: Plan | None) -> list[tuple[str, int]]:
    assert found is not None
    return [(run.spec.variant, run.spec.config.seed) for run in found.to_do]


def test_a_submission_of_trials_names_what_follows(tmp_path):
    first = submitted(tmp_path, tuned_grid(), "full", seeds=(1,))
    assert {row.run_id.split("-")[0] for row in first.rows} == {"full~1", "full~2", "full~3"}
    assert read_scope(first) == Scope(["full"], ["1"], str(tmp_path / "data"), True)
    end_trials(trials_of(tuned_grid())[1], GridFolder(tmp_path / "study"), 0.1, 0.2, 0.3)
    second = write_submission(plan(tmp_path, tuned_grid(), "full", seeds=(1,)))
    assert read_scope(second) is None
    assert [row.run_id.split("-")[:2] for row in second.rows] == [["full", "s1"]]


def test_a_follow_up_job_plans_the_table(tmp_path):
    """Only for rows whose trials have ended, and only in the scope of the submission."""
    submission, folder = (
        submitted(tmp_path, tuned_grid(), seeds=(0, 2)),
        GridFolder(tmp_path / "study"),
    )
    base, full = trials_of(tuned_grid())
    assert followed(submission) is None
    end_trials(base, folder, 0.1, FAILS, 0.3)
    assert runs(followed(submission)) == [("base", 0), ("base", 2)]
    end_trials(full, folder, 0.1, 0.2, 0.3)
    found = followed(submission)
    assert runs(found) == [("base", 0), ("base", 2), ("full", 0), ("full", 2)]
    assert found is not None
    assert {run.spec.config.optimizer.lr for run in found.to_do} == {0.01772}
    assert read_scope(write_submission(found)) is None


SLURM = ClusterProfile(name="site", executor="slurm", partition="p")


def recorded(path: Path, grid: Grid, *rows: str, **chosen) -> None:
    """Submit on Slurm while all trials are in the queue: nothing is started."""
    found = plan(path, grid, *rows, **chosen)
    left = [replace(run, action=Action.LEAVE) for run in found.runs]
    record(replace(found, runs=tuple(left), profile=SLURM))


def test_a_larger_scope_follows_live_trials(tmp_path):
    """The trials of `full` are in the queue for seed 1 when all rows and seeds are wanted."""
    grid, folder = tuned_grid(), GridFolder(tmp_path / "study")
    first = submitted(tmp_path, grid, "full", seeds=(1,))
    second = submitted(tmp_path, grid)
    base, full = trials_of(grid)
    end_trials(base, folder, 0.1, 0.2, 0.3)
    assert runs(followed(second)) == [("base", 0), ("base", 1), ("base", 2)]
    assert runs(followed(first)) == [("base", 0), ("base", 1), ("base", 2)]
    end_trials(full, folder, 0.1, 0.2, 0.3)
    promised = [(row, seed) for row in ("base", "full") for seed in (0, 1, 2)]
    assert runs(followed(first)) == runs(followed(second)) == promised


def test_a_scope_alone_is_recorded_once(tmp_path):
    """All trials are live, so the second submission starts nothing, and is not lost."""
    grid, folder = tuned_grid(), GridFolder(tmp_path / "study")
    first = submitted(tmp_path, grid, seeds=(1,))
    for _ in range(2):
        recorded(tmp_path, grid, "full", seeds=(0, 1, 2))
    assert len(folder.all_submissions()) == 2
    for trials in trials_of(grid):
        end_trials(trials, folder, 0.1, 0.2, 0.3)
    assert runs(followed(first)) == [("base", 1), ("full", 0), ("full", 1), ("full", 2)]


def test_a_scope_of_another_grid_does_not_follow(tmp_path):
    """With `--set` the same grid makes another table, whose trials are others."""
    grid, folder = tuned_grid(), GridFolder(tmp_path / "study")
    first = submitted(tmp_path, grid, seeds=(1,))
    recorded(tmp_path, with_settings(grid, ["steps=7"]))
    for trials in trials_of(grid):
        end_trials(trials, folder, 0.1, 0.2, 0.3)
    assert runs(followed(first)) == [("base", 1), ("full", 1)]


def test_a_cancelled_scope_does_not_follow(tmp_path, monkeypatch):
    grid, folder = tuned_grid(), GridFolder(tmp_path / "study")
    first = submitted(tmp_path, grid, seeds=(1,))
    first.note("intent", name="a", kind="array", base=0, rows=[0])
    recorded(tmp_path, grid)
    monkeypatch.setattr(cancel_grid, "recover_pending_submissions", lambda _: None)
    monkeypatch.setattr(cancel_grid, "_jobs_of", lambda *_: ([], []))
    monkeypatch.chdir(tmp_path)
    cancel.main("study", variant=["full"], runs_dir=tmp_path)
    for trials in trials_of(grid):
        end_trials(trials, folder, 0.1, 0.2, 0.3)
    assert runs(followed(first)) == [("base", 0), ("base", 1), ("base", 2)]


def test_trials_without_a_follow_up_job_are_named(tmp_path):
    found = plan(tmp_path, tuned_grid())
    queued = RunStatus(RunState.QUEUED, 0, 0, "job 5 waits")
    found = replace(found, runs=tuple(replace(run, status=queued) for run in found.runs))
    places = {
        run.folder.run_id: JobAssignment(tmp_path, "5", "6" * run.spec.variant.startswith("base"))
        for run in found.runs
    }
    resolver = observe(found.folder)
    resolver.places = places
    assert unattended_trials(found, resolver) == (
        "no follow-up job waits for trials of full: submit again when they have ended"
    )


def test_a_follow_up_job_keeps_to_new_code(tmp_path):
    """Trials of older code choose nothing, and the table's runs of older code start again."""
    grid, folder = tuned_grid(), GridFolder(tmp_path / "study")
    for trials in trials_of(grid):
        end_trials(trials, folder, 0.1, 0.2, 0.3, code_hash="01der")
    for spec in plan(tmp_path, grid).runs:
        finish(spec.spec, folder, code_hash="01der")
    submission = submitted(tmp_path, grid, new_code=True)
    assert followed(submission) is None
    for trials in trials_of(grid):
        end_trials(trials, folder, 0.1, 0.2, 0.3, code_hash=code_hash())
    found = followed(submission)
    assert found is not None
    assert {run.action for run in found.runs} == {Action.RESTART}
    assert len(found.to_do) == 6


def test_a_scope_that_others_can_change_is_refused(tmp_path):
    """A follow-up job reads it, and it names the data and the rows."""
    submission = submitted(tmp_path, tuned_grid())
    (submission.path / "scope.json").chmod(0o666)
    with pytest.raises(ConfigError, match=r"scope\.json"):
        read_scope(submission)


def test_cancelled_rows_do_not_continue(tmp_path):
    submission, folder = submitted(tmp_path, tuned_grid()), GridFolder(tmp_path / "study")
    for trials in trials_of(tuned_grid()):
        end_trials(trials, folder, 0.1, 0.2, 0.3)
    ids = [row.run_id for row in submission.rows]
    submission.note("cancelled", runs=[run_id for run_id in ids if run_id.startswith("base~")])
    assert {row for row, _ in runs(followed(submission))} == {"full"}
    submission.note("cancelled", runs=[])
    assert followed(submission) is None


def test_a_changed_grid_is_not_continued(tmp_path, capsys):
    submission, folder = submitted(tmp_path, tuned_grid()), GridFolder(tmp_path / "study")
    for trials in trials_of(tuned_grid()):
        end_trials(trials, folder, 0.1, 0.2, 0.3)
    submitted(tmp_path, tuned_grid({"trials": 4}))
    assert followed(submission) is None
    assert "submit it again to continue" in capsys.readouterr().out


def test_chosen_values_do_not_change_the_plan(tmp_path, monkeypatch):
    monkeypatch.setattr(declaration, "_now_s", lambda: 1795867200.5)
    grid, folder = tuned_grid(), GridFolder(tmp_path / "study")
    first = submitted(tmp_path, grid)
    for trials in trials_of(grid):
        end_trials(trials, folder, 0.1, 0.2, 0.3)
    table_runs = followed(first)
    assert table_runs is not None
    write_submission(table_runs)
    [entry] = read_declared(folder, grid)
    assert entry.runs_with_results == 0
    ablation = make_table(grid, folder, View())
    assert ablation.declared is not None
    assert ablation.declared.not_submitted == ()
    assert "declared on" not in notes(ablation)
    assert f"Each row tuned with 3 trials of {SEARCH}." in plan_lines(ablation)


def test_a_larger_budget_after_a_look_is_named(tmp_path, monkeypatch):
    grid, folder = tuned_grid(), GridFolder(tmp_path / "study")
    submitted(tmp_path, grid)
    for trials in trials_of(grid):
        end_trials(trials, folder, 0.1, 0.2, 0.3)
    monkeypatch.setattr(declaration, "_now_s", lambda: 1795867200.5)
    more = tuned_grid({"trials": 4})
    submitted(tmp_path, more)
    assert (
        f"The key tune was changed from 3 trials of {SEARCH} to 4 trials of {SEARCH} on "
        f"2026-11-28, after 12 runs had results"
    ) in notes(make_table(more, folder, View()))


def test_a_dry_run_shows_the_trials(tmp_path):
    pack(tmp_path / "data" / "tridigits")
    write_grid(tmp_path, tune=TUNE, variants={"base": {}, "full": {"loss.alpha": 0.5}})
    done = command("submit", tmp_path, "--grid", "study.yaml", "--dry-run", "--cluster", "local")
    assert done.returncode == 0, done.stderr
    assert "12 runs (12 start) on local" in done.stdout
    assert "trials of each row: 1: optimizer.lr 0.007374; 2: optimizer.lr 0.0004391" in done.stdout
    assert "row full on tridigits: tuning 0/6" in done.stdout
    assert "4 runs of the table will follow" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_seeds_of_the_table_are_refused(tmp_path):
    pack(tmp_path / "data" / "tridigits")
    write_grid(tmp_path, tune=TUNE | {"seeds": [1, 100]})
    [line] = refused(tmp_path, "study.yaml")
    assert "tune.seeds [1, 100] and seeds [0, 1] both have 1" in line


REAL = """
name: tuned
base:
  model: {width: 16, num_heads: 2, feedforward: 32, text_layers: 1}
  deepspeed: zero1
  steps: 12
  global_batch_size: 8
  evaluation: {every: 6}
  checkpoint_every: 3
  log_every: 1
seeds: [0]
reference: base
metric: test/digit/accuracy
tune:
  space: {optimizer.lr: {choice: [0.003, 1.0e+30]}}
  trials: 2
  seeds: [100]
variants: {base: {}}
"""


def submit_arguments(place: Path, data: Path) -> list[str]:
    options = ["--grid", str(place / "tuned.yaml"), "--cluster", "local", "--data-root", str(data)]
    return [sys.executable, "-m", "furnace_hpc.submit", *options]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_real_queue_tunes_and_makes_the_table(small_root, tmp_path):
    """It is killed in the first trial. The same command continues, up to the table.

    One of the two learning rates gives infinite losses, so that trial fails.
    """
    (tmp_path / "tuned.yaml").write_text(REAL)
    folder = tmp_path / "runs" / "tuned"
    words = submit_arguments(tmp_path, small_root)
    with subprocess.Popen(words, cwd=tmp_path, start_new_session=True) as process:
        deadline = time.monotonic() + 300
        while not list(folder.glob("base~*/metrics/1.jsonl")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(120) == 130
    assert not (folder / "tuning").exists()

    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    [file] = (folder / "tuning").glob("*.json")
    choice = json.loads(file.read_text())
    assert choice["values"] == {"optimizer.lr": 0.003}
    assert sorted(tried["mean"] is None for tried in choice["trials"]) == [False, True]
    [run] = folder.glob("base-s0-*")
    assert json.loads((run / "spec.json").read_text())["config"]["optimizer"]["lr"] == 0.003
    table = (tmp_path / "results/tuned/table.md").read_text()
    assert "Each row tuned with 2 trials of optimizer.lr (one of 0.003, 1e+30) on seed 100" in table
    assert "1 of 2 trials failed and counts as the worst" in table

    again = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stdout
    status = subprocess.run(
        [sys.executable, "-m", "furnace_hpc.status", "--grid", "tuned"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "3 runs: 2 done, 1 failed; tuning 2/2" in status.stdout
