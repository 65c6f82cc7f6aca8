"""The state of runs whose jobs they share, and the cancel of one of them."""

import json
from dataclasses import replace

import pytest
from login_study import begin, end, finish, specs
from status_study import RUNS, answer, see, submit

from furnace_hpc.host.budget_limits import gpu_hours
from furnace_hpc.launch.follow_up import remaining_rows
from furnace_hpc.launch.grids import cancel_grid
from furnace_hpc.launch.planning.plan import Shape
from furnace_hpc.monitor.forecast.progress import lines_below
from furnace_hpc.monitor.grid_status import overview
from furnace_hpc.monitor.job_cache import newest_jobs
from furnace_hpc.monitor.run_status import StatusResolver
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.records.attempts import Attempt
from furnace_hpc.runs.state import RunState
from furnace_hpc.slurm.accounting import _ledger_hours

ELSEWHERE = {"host": "elsewhere", "boot_id": "", "pid": 1, "pid_start": 1}


@pytest.fixture
def folder(tmp_path):
    """Rows 0 and 1 share job 5_0, rows 2 and 3 share job 5_1."""
    folder = GridFolder(tmp_path / "study")
    made = submit(folder, {})
    shape = Shape(1, 1, 60, None, runs_per_node=2)
    rows = [json.loads(line) for line in (made.path / "rows.jsonl").read_text().splitlines()]
    for row in rows:
        row |= {"shape": shape, "facts": {"max_attempts": 20, "runs_per_node": 2}}
    (made.path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (made.path / "profile.json").write_text('{"retries": 2}')
    made.note("intent", name="5", kind="array", base=0, rows=[0, 1, 2, 3], runs_per_node=2)
    made.note("submitted", name="5", job_id="5")
    return folder


def submission(folder):
    return cancel_grid.submissions(folder)[0]


def start(folder, row: int, job: str):
    return begin(specs()[row], folder, ELSEWHERE, job_id=job)


def test_both_runs_of_a_job_are_seen(folder):
    known = answer(_5_0="RUNNING", _5_1="PENDING Resources")
    start(folder, 0, "5_0")
    assert [see(folder, known, row).state for row in range(4)] == [
        RunState.RUNNING,
        RunState.RUNNING,
        RunState.QUEUED,
        RunState.QUEUED,
    ]
    jobs = newest_jobs(folder)
    assert [len(jobs[job].follows) for job in ("5_0", "5_1")] == [2, 2]


def test_a_run_that_another_job_started(folder):
    """Its state is that of the job that runs it."""
    start(folder, 3, "5_0")
    status = see(folder, answer(_5_0="RUNNING", _5_1="PENDING Resources"), 3)
    assert (status.state, status.job_id) == (RunState.RUNNING, "5_0")
    status = see(folder, answer(_5_0="NODE_FAIL", _5_1="COMPLETED"), 3)
    assert (status.state, status.end_reason) == (RunState.INTERRUPTED, "node_fail")
    # its own job, which still waits, does not start it: the other one may run it yet
    run = folder.run(RUNS[3])
    end(run, "peer_lost")
    assert see(folder, answer(_5_0="COMPLETED", _5_1="PENDING Resources"), 3).state == "queued"


def test_a_crashed_run_stays_failed_in_a_live_job(folder):
    end(start(folder, 0, "5_0"), "crash")
    for word in ("RUNNING", "PENDING BeginTime", "COMPLETED"):
        assert see(folder, answer(_5_0=word), 0).state is RunState.FAILED
    assert see(folder, answer(_5_0="RUNNING"), 1).state is RunState.RUNNING


def test_a_cancelled_run_of_a_live_job(folder):
    submission(folder).note("cancelled", runs=[RUNS[1]])
    known = answer(_5_0="PENDING Resources", _5_1="PENDING Resources")
    status = see(folder, known, 1)
    assert (status.state, status.reason) == (RunState.NEW, "cancelled before it started")
    assert see(folder, known, 0).state is RunState.QUEUED
    start(folder, 1, "5_0")
    assert see(folder, answer(_5_0="RUNNING"), 1).state is RunState.RUNNING


@pytest.mark.parametrize(
    ("words", "chosen", "jobs", "asked"),
    [
        ({"_5_0": "RUNNING", "_5_1": "PENDING Resources"}, [1], [], [1]),
        ({"_5_0": "RUNNING", "_5_1": "PENDING Resources"}, [0, 1], [], [0, 1]),
        ({"_5_0": "RUNNING", "_5_1": "PENDING Resources"}, [1, 2, 3], ["5_1"], [1]),
        ({"_5_0": "RUNNING", "_5_1": "PENDING Resources"}, [2], [], [2]),
        ({"_5_0": "COMPLETED", "_5_1": "RUNNING"}, [0, 2], [], [2]),
    ],
)
def test_cancel_leaves_the_neighbours(folder, monkeypatch, words, chosen, jobs, asked):
    """A waiting job is cancelled if all its runs are. A running one reads the journal."""
    resolver = StatusResolver(folder, answer(**words))
    monkeypatch.setattr(cancel_grid, "observe", lambda folder, needs_answer: resolver)
    found = cancel_grid._jobs_of(folder, {RUNS[row] for row in chosen}, whole=False)
    assert found == (jobs, [RUNS[row] for row in asked])
    whole, none = cancel_grid._jobs_of(folder, set(RUNS), whole=True)
    assert none == []
    assert whole == [job for job in ("5_0", "5_1") if words[f"_{job}"] != "COMPLETED"]


def test_only_interrupted_rows_are_submitted_again(folder):
    finish(specs()[0], folder)
    end(start(folder, 1, "5_0"), "crash")
    end(start(folder, 2, "5_0"), "entered", exit_code=137)
    start(folder, 3, "5_0")
    resolver = StatusResolver(folder, answer(_5_0="NODE_FAIL", _5_1="COMPLETED"))
    left = remaining_rows(submission(folder), folder, 2, resolver)
    assert left == {Shape(1, 1, 60, None, (), 2): [2, 3]}


def test_hours_of_a_shared_node_count_once():
    """Without GPUs the ledger counts jobs, so each run counts its part."""
    facts = {"start_unix_s": 0.0, "end_unix_s": 3600.0, "runs_per_node": 4}
    runs = [Attempt(attempt=number, **facts) for number in range(4)]
    assert sum(map(_ledger_hours, runs)) == 1.0
    runs = [Attempt(attempt=number, gpus=2, **facts) for number in range(4)]
    assert sum(map(_ledger_hours, runs)) == 8.0
    runs = [Attempt(attempt=number, gpus=0.5, **facts) for number in range(4)]
    assert sum(map(_ledger_hours, runs)) == 2.0
    assert gpu_hours([run.model_dump() for run in runs], 0) == 2.0


def test_status_names_how_runs_share_gpus(folder):
    known = {"gpus": 0.5, "gpu_sharing": "time slicing: the node has no nvidia-cuda-mps-control"}
    for row in range(2):
        begin(specs()[row], folder, ELSEWHERE, job_id="5_0", **known)
    lines = overview(folder)[0]
    assert lines_below(folder, lines) == []
    lines = [
        replace(line, status=see(folder, answer(_5_0="RUNNING"), row))
        for row, line in enumerate(lines)
    ]
    assert lines_below(folder, lines) == [
        f"2 running runs with runs_per_gpu: {known['gpu_sharing']}"
    ]
