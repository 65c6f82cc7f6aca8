"""The state of a run from its files and its newest job, and the rows that remain to submit."""

import os
import re

import pytest
from login_study import CODE, begin, end, specs
from status_study import LARGE, RUNS, SMALL, answer, see, send, submit

from furnace_hpc.host import lifecycle
from furnace_hpc.launch.follow_up import close_attempts, remaining_rows
from furnace_hpc.monitor.job_cache import JobCache
from furnace_hpc.monitor.run_status import StatusResolver, batch_log
from furnace_hpc.runs.folder import GridFolder, RunFolder, write_json
from furnace_hpc.runs.state import RunState, RunStatus, read_status


@pytest.fixture
def folder(tmp_path) -> GridFolder:
    return GridFolder(tmp_path / "study")


def attempt(folder: GridFolder, row: int, job_id: str, *verdicts: str) -> RunFolder:
    """An attempt of that job on a node that cannot be seen. It has no end without verdicts."""
    run = folder.run(RUNS[row])
    lifecycle.begin(
        str(run.path), {"code_hash": CODE, "job_id": job_id}, lifecycle.holder() | {"host": "node7"}
    )
    if verdicts:
        end(run, *verdicts)
    return run


# Slurm's state and reason. The attempt of that job: never started, open, or its ranks' verdict.
# The run's state and reason.
TABLE = """
PENDING NewReason           never    queued       job 5_0 waits (NewReason)
PENDING None                never    queued       job 5_0 waits
REQUEUE_HOLD  open  queued  job 5_0 was requeued and is held: run `furnace submit` to release it
PENDING NewReason           open     queued       job 5_0 waits (NewReason)
PENDING NewReason           stopped  queued       job 5_0 waits (NewReason)
RUNNING None                never    running      is starting
RUNNING None                open     running      -
CONFIGURING None            never    running      its nodes are being prepared
SUSPENDED None              open     running      suspended by Slurm; other jobs use its nodes
NODE_FAIL NodeDown          open     interrupted  a node failed
TIMEOUT TimeLimit           open     interrupted  killed at its time limit
CANCELLED by 1000           open     interrupted  cancelled by user id 1000
CANCELLED None              open     interrupted  cancelled
OUT_OF_MEMORY OutOfMemory   open     failed       out of memory
OUT_OF_MEMORY OutOfMemory  entered  failed  out of memory; a rank reported no end (exit code 1)
OUT_OF_MEMORY OutOfMemory   hang     failed       out of memory; hang
FAILED NonZeroExitCode      hang     interrupted  hang
NODE_FAIL NodeDown  entered  interrupted  a node failed; a rank reported no end (exit code 1)
GONE                        open     interrupted  Slurm no longer lists job 5_0
CANCELLED by 1000           stopped  interrupted  cancelled by user id 1000; stopped
CANCELLED by 0              crash    failed       ValueError: no
CANCELLED by 0  never  new  job 5_0 was cancelled by user id 0 before the run started
TIMEOUT TimeLimit           stopped  interrupted  killed at its time limit; stopped
NODE_FAIL NodeDown          crash    failed       ValueError: no
GONE                        stopped  interrupted  stopped
FOO None                    open     unknown      job 5_0: unknown Slurm state 'FOO'
"""
LINES = [re.split("  +", line) for line in TABLE.split("\n") if line]


@pytest.mark.parametrize(("word", "began", "state", "reason"), LINES)
def test_state_from_job_and_attempt(folder, word, began, state, reason):
    submit(folder, {"5": range(4)})
    if began != "never":
        attempt(folder, 0, "5_0", *() if began == "open" else (began,))
    status = see(folder, answer(_5_0=word))
    assert (status.state, status.reason or "-", status.job_id) == (RunState(state), reason, "5_0")
    assert (status.end_reason == "oom") is word.startswith("OUT_OF_MEMORY")


def test_a_hang_whose_job_still_runs_is_shown(folder):
    """Nodes that cannot reach each other: their ranks have ended, and srun waits."""
    submit(folder, {"5": range(4)})
    run = attempt(folder, 0, "5_0")
    running = answer(_5_0="RUNNING None")
    run.metrics(1).write_text('{"step": 3}\n')
    verdict = {"rank": 1, "step": 3, "unix_s": 1.0}
    write_json(run.verdict(1, 1), verdict | {"verdict": "hang", "error": "rank 1 is stuck"})
    assert see(folder, running).reason == ""  # it has written metrics within the last minute
    os.utime(run.metrics(1), (1, 1))
    status = see(folder, running)
    assert status.state is RunState.RUNNING
    assert status.reason == "hang: rank 1 is stuck; its job still runs"
    write_json(run.verdict(1, 1), verdict | {"verdict": "stopping"})
    assert see(folder, running).reason == ""


@pytest.mark.parametrize("reason", ["launch failed requeued held", "launch_failed_requeued_held"])
def test_a_held_job_names_the_command_that_helps(folder, reason):
    """Slurm holds jobs after a failed launch. `furnace submit` releases them."""
    submit(folder, {"5": range(4)})
    status = see(folder, answer(_5_0=f"PENDING {reason}"))
    assert status.reason == f"job 5_0 waits ({reason}: run `furnace submit` to release it)"


@pytest.mark.parametrize(
    ("log", "line"),
    [
        (None, "there is no {}. Check "),
        ("\n \n", "{} is empty"),
        ("loading\nmodule: no\n\n", "module: no"),
    ],
)
def test_last_line_of_the_batch_log_is_shown(folder, log, line):
    """For a job that ended before its run started."""
    path = batch_log(submit(folder, {"5": range(4)}).path, "5_0")
    if log is not None:
        path.write_text(log)
    status = see(folder, answer(_5_0="FAILED NonZeroExitCode"))
    assert status.state is RunState.INTERRUPTED
    assert status.reason.startswith(
        f"job 5_0 ended before the run started (its job failed): {line.format(path)}"
    )


def test_without_an_answer_only_an_own_end_is_certain(folder):
    submit(folder, {"5": range(4)})
    attempt(folder, 1, "5_1")
    attempt(folder, 2, "5_2", "crash")
    away = JobCache(failures=1, error="no route. Try again in a minute")
    states = [see(folder, away, row) for row in range(4)]
    assert [status.state.value for status in states] == ["unknown", "unknown", "failed", "unknown"]
    assert states[0].reason == "submitted as job 5_0; no route"
    assert see(folder, JobCache()).reason == "submitted as job 5_0; Slurm does not list it now"


def test_a_gone_job_that_was_cancelled_is_cancelled(folder):
    """The journal says so if Slurm no longer lists the job."""
    made = submit(folder, {"5": range(4)})
    attempt(folder, 1, "5_1")
    runs = [spec.run_id for spec in specs()]
    for named, cancelled in ((runs[1:3], [2]), ([], [0, 2, 3])):  # an empty list means all
        made.note("cancelled", runs=named)
        states = {row: see(folder, answer(**{f"_5_{row}": "GONE"}), row) for row in range(4)}
        assert [
            row
            for row in states
            if states[row].reason == f"job 5_{row} was cancelled before the run started"
        ] == cancelled
        assert all(states[row].state is RunState.NEW for row in cancelled)
        assert states[1].state is RunState.INTERRUPTED


def test_a_row_of_a_later_wave_waits_for_its_job(folder):
    made = submit(folder, {"5": [0], "6": ()})
    attempt(folder, 1, "4_1", "stopped")
    for word in ("PENDING Dependency", "RUNNING"):
        status = see(folder, answer(_6=word), row=2)
        assert (status.state, status.reason) == (
            RunState.QUEUED,
            "waits for a later wave, which job 6 submits",
        )
    dead = answer(_6="CANCELLED by 1000")
    assert see(folder, dead, row=2).reason == "follow-up job 6 is gone; run `furnace submit` again"
    assert [see(folder, dead, row).state.value for row in (1, 2)] == ["interrupted", "new"]
    assert see(folder, JobCache(failures=1, error="no route"), 2).state is RunState.UNKNOWN
    once = JobCache(missing={"6": 100.0}, answered_unix_s=100.0)
    assert see(folder, once, 2).reason == "to be submitted by job 6; Slurm does not list it now"
    made.note("cancelled", runs=[])
    assert see(folder, answer(_6="PENDING"), row=2) == RunStatus(
        RunState.NEW, 0, 0, "cancelled before it was submitted"
    )


def test_the_latest_start_or_submission_counts(folder):
    submit(folder, {"5": range(4)})
    attempt(folder, 0, "5_0", "stopped")
    by_hand = begin(specs()[0], folder)
    assert see(folder, answer(_5_0="NODE_FAIL")) == read_status(by_hand)
    assert read_status(by_hand).state is RunState.RUNNING
    submit(folder, {"7": [1], "8": ()}, to_do=[1])
    both = answer(_5_1="NODE_FAIL", _7_1="PENDING", _5_2="RUNNING")
    assert [see(folder, both, row).job_id for row in (1, 2)] == ["7_1", "5_2"]


def test_remaining_rows(folder):
    """Rows that were never submitted, and interrupted ones within the budget of retries."""
    made = submit(folder, {"5": [0, 1, 2], "6": ()})
    attempt(folder, 0, "5_0")
    attempt(folder, 1, "5_1", "crash")
    attempt(folder, 2, "5_2", "stopped")
    states = {"_6": "RUNNING", "_5_0": "NODE_FAIL", "_5_1": "FAILED", "_5_2": "CANCELLED by 1000"}
    for retries in (0, 1, 2):
        left = remaining_rows(made, folder, retries, StatusResolver(folder, answer(**states)))
        assert left == ({SMALL: [0], LARGE: [3]} if retries else {LARGE: [3]})
    close_attempts(made, folder, StatusResolver(folder, answer(**states)))
    closed = read_status(folder.run(RUNS[0]))
    assert (closed.state, closed.reason, closed.end_reason) == (
        RunState.INTERRUPTED,
        "a node failed",
        "node_fail",
    )
    send(made, "8", [0])
    assert remaining_rows(
        made, folder, 1, StatusResolver(folder, answer(**states, _8_0="PREEMPTED"))
    ) == {LARGE: [3]}
    submit(folder, {"9": [3]}, to_do=[3])
    assert (
        remaining_rows(made, folder, 1, StatusResolver(folder, answer(**states, _9_3="NODE_FAIL")))
        == {}
    )


@pytest.mark.parametrize(("word", "left"), [("TIMEOUT", [0]), ("PREEMPTED", [0]), ("FAILED", [])])
def test_stops_by_slurm_are_no_retries(folder, word, left):
    """At a site that does not requeue jobs, follow-up jobs start such runs again."""
    made = submit(folder, {"5": range(4)})
    for number in "678":
        send(made, number, [0])
    attempt(folder, 0, "8_0", "stopped")
    others = {f"_5_{row}": "RUNNING" for row in (1, 2, 3)}
    resolver = StatusResolver(folder, answer(**others, _8_0=word))
    assert remaining_rows(made, folder, 2, resolver) == ({SMALL: left} if left else {})
    # The job has begun no attempt: only `retries` ends that.
    send(made, "9", [0])
    resolver = StatusResolver(folder, answer(**others, _8_0=word, _9_0=word))
    assert remaining_rows(made, folder, 2, resolver) == {}


def test_out_of_memory_is_recorded_and_not_retried(folder):
    """Runs that may still be running are not submitted again either."""
    made = submit(folder, {"5": range(4)})
    attempt(folder, 0, "5_0")
    known = answer(_5_0="OUT_OF_MEMORY", _5_1="RUNNING", _5_2="PENDING", _5_3="FOO")
    assert remaining_rows(made, folder, 9, StatusResolver(folder, known)) == {}
    assert remaining_rows(made, folder, 9, StatusResolver(folder, JobCache(failures=1))) == {}
    close_attempts(made, folder, StatusResolver(folder, known))
    closed = read_status(folder.run(RUNS[0]))
    assert (closed.state, closed.reason, closed.end_reason) == (
        RunState.FAILED,
        "out of memory",
        "oom",
    )
