"""The status and cancel commands on a local study, without Slurm."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from login_study import (
    begin,
    command,
    dead_holder,
    end,
    finish,
    grid,
    planned,
    specs,
    tree,
    without_controller,
)

from furnace_hpc.config.grids.grid import with_settings
from furnace_hpc.host import lifecycle
from furnace_hpc.launch.submission import record, write_submission
from furnace_hpc.monitor.grid_status import overview
from furnace_hpc.monitor.run_status import batch_log
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.journal import Submission
from furnace_hpc.runs.records.metrics import MetricsFile
from furnace_hpc.runs.state import RunState

DONE, RUNNING, FAILED, NEW = RUNS = [spec.run_id for spec in specs()]
QUEUE_ENDED = "the queue on this machine has ended; run `furnace submit` again"
ERROR = "RuntimeError: [bold]x[/red] " + "long " * 60 + "end"


@pytest.fixture
def folder(tmp_path) -> GridFolder:
    """A grid that was submitted: one run is done, one running, one has crashed, one is new."""
    write_submission(planned(tmp_path / "runs", grid()))
    folder, runs = GridFolder(tmp_path / "runs" / "study"), specs()
    finish(runs[0], folder)
    metrics = MetricsFile(begin(runs[1], folder).metrics(1))
    metrics.write(
        {
            "step": 10,
            "kind": "train",
            "train/loss": 0.5,
            "step_time_s": 4.5,
            "samples_per_s": 1234.5,
            "model_tflop_s": 1.5,
            "mfu": 0.25,
            "data_wait_s": 0.45,
        }
    )
    metrics.close()
    end(begin(runs[2], folder), "crash", error=ERROR)
    return folder


def give(folder: GridFolder, name: str, *arguments: str) -> tuple[int, str, str]:
    """Run the command on this grid."""
    done = command(name, folder.path.parent.parent, "--grid", folder.path.name, *arguments)
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, done.stdout, done.stderr


def refused(folder: GridFolder, name: str, *arguments: str) -> str:
    """The one line of an error, which changes nothing."""
    before = tree(folder.path)
    code, said, complaint = give(folder, name, *arguments)
    assert (code, said, tree(folder.path)) == (2, "", before)
    [line] = complaint.splitlines()
    return line.removeprefix("error: ")


def test_status_prints_one_line_per_run(folder):
    before = tree(folder.path)
    code, said, complaint = give(folder, "status")
    assert (code, complaint) == (0, "")
    head, *lines, summary = [re.split("  +", line.rstrip()) for line in said.splitlines()]
    assert head == [
        *("run", "state", "attempt", "step", "loss", "samples/s"),
        *("MFU", "data wait", "left", "job", "reason"),
    ]
    assert lines == [
        [RUNNING, "running", "1", "10/40", "0.5000", "1,234", "25 %", "10 %", "2 min 15 s"],
        [FAILED, "failed", "1", "9/40", "1.000", ERROR],
        [NEW, "new", "0/40", QUEUE_ENDED],
        [DONE, "done", "1", "9/40", "1.000"],
    ]
    assert summary == ["4 runs: 1 new, 1 running, 1 done, 1 failed"]
    assert tree(folder.path) == before


@contextmanager
def queue_of(folder: GridFolder, what: str = "queue") -> Iterator[None]:
    """This process works on the grid, as a queue does."""
    folder.lock.write_text(json.dumps(lifecycle.holder() | {"what": what}))
    try:
        yield
    finally:
        folder.lock.unlink()


def test_runs_wait_for_the_queue_on_this_machine(folder):
    """Also those that it will resume or retry. Plans do not change: the queue plans too."""
    with queue_of(folder):
        _, said, _ = give(folder, "status")
        [line] = [line for line in said.splitlines() if line.startswith(NEW)]
        assert re.split("  +", line)[1] == "queued"
        assert f"waits in the queue of process {os.getpid()} on " in line
        assert said.splitlines()[-1] == "4 runs: 1 queued, 1 running, 1 done, 1 failed"
        states = [run.status.state for run in planned(folder.path.parent, grid()).runs]
        assert states == [RunState.DONE, RunState.RUNNING, RunState.FAILED, RunState.NEW]
        retried = planned(folder.path.parent, grid(), retry=frozenset({"failed"}))
        write_submission(retried)
        assert "4 runs: 2 queued, 1 running, 1 done" in give(folder, "status")[1]
    assert "4 runs: 1 new, 1 running, 1 done, 1 failed" in give(folder, "status")[1]
    with queue_of(folder, "submission"):
        assert "4 runs: 1 new, 1 running, 1 done, 1 failed" in give(folder, "status")[1]


def test_a_queue_on_another_host_may_still_run(folder):
    """Its process cannot be seen from here, so nothing tells that it has ended."""
    folder.lock.write_text(json.dumps(lifecycle.holder() | {"host": "node7", "what": "queue"}))
    said = give(folder, "status")[1]
    assert QUEUE_ENDED not in said
    assert f"may wait in the queue of process {os.getpid()} on node7. Look at it there" in said


@pytest.mark.parametrize("command_line", ["status --watch", "track --to tensorboard --follow"])
def test_no_run_runs_and_the_queue_continues(folder, command_line):
    """It plans the next stage of a tuned grid, or repeats a run. The commands wait for it."""
    pytest.importorskip("tensorboard", reason="needs the package tensorboard")
    end(folder.run(RUNNING), "crash")
    finish(specs()[3], folder)
    name, *options = command_line.split()
    words = [sys.executable, "-m", "furnace_hpc", name, "--grid", "study", *options]
    with (
        queue_of(folder),
        subprocess.Popen(
            [*words, *(["--every", "1"] if name == "track" else [])],
            cwd=folder.path.parent.parent,
            stdout=subprocess.PIPE,
            env=without_controller(folder.path.parent.parent),
            text=True,
        ) as child,
    ):
        assert child.stdout.readline()
        time.sleep(2)
        is_waiting = child.poll() is None
        folder.lock.write_text("{}")
        child.communicate(timeout=60)
    assert (is_waiting, child.returncode) == (True, 0)


def test_json_is_in_the_order_of_the_grid(folder):
    code, said, complaint = give(folder, "status", "--json")
    assert (code, complaint) == (0, "")
    rows = json.loads(said)
    assert [row["run"] for row in rows] == RUNS
    assert [row["state"] for row in rows] == ["done", "running", "failed", "new"]
    root = folder.path.relative_to(folder.path.parent.parent)
    assert rows[1] == {
        "run": RUNNING,
        "state": "running",
        "attempt": 1,
        "step": 10,
        "steps": 40,
        "loss": 0.5,
        "samples_per_s": 1234.5,
        "model_tflop_s": 1.5,
        "mfu": 0.25,
        "data_wait": 0.1,
        "left_s": 135.0,
        "job_id": None,
        "reason": "",
        "last_end": "",
        "log": str(root / RUNNING / "logs" / "1-0.log"),
    }
    assert (rows[2]["reason"], rows[2]["last_end"]) == (ERROR, "attempt 1: crash")
    assert (rows[3]["loss"], rows[3]["log"]) == (None, "")


def test_watch_ends_when_no_run_can_change(folder):
    end(folder.run(RUNNING), "stopped")
    code, said, complaint = give(folder, "status", "--watch")
    assert (code, complaint) == (0, "")
    summary, head, *_, last = said.splitlines()
    assert summary == last == "4 runs: 1 new, 1 done, 1 interrupted, 1 failed"
    assert head.startswith("run ")


def test_runs_of_the_newest_settings_are_shown(folder):
    write_submission(planned(folder.path.parent, with_settings(grid(), ["steps=7"])))
    shown = json.loads(give(folder, "status", "--json")[1])
    assert [(row["state"], row["steps"]) for row in shown[:4]] == [("new", 7)] * 4
    assert not {row["run"] for row in shown[:4]} & set(RUNS)
    assert [row["run"] for row in shown[4:]] == [RUNNING], (
        "the one of other settings that still runs"
    )
    write_submission(planned(folder.path.parent, grid(seeds=[1])))
    assert [row["run"] for row in json.loads(give(folder, "status", "--json")[1])] == RUNS


def test_runs_on_another_cluster_are_unknown(folder):
    send(folder, "5", 3)
    code, said, complaint = give(folder, "status")
    assert (code, complaint) == (0, "")
    assert re.search(
        rf"^{NEW} +unknown .* 5_3 +submitted as job 5_3; Slurm does not answer: ",
        said,
        re.MULTILINE,
    )
    summary = said.splitlines()[-1]
    assert summary.startswith(
        "4 runs: 1 running, 1 done, 1 failed, 1 unknown. Slurm does not answer: "
    )
    code, said, complaint = give(folder, "cancel")
    assert (code, said) == (1, "")
    [line] = complaint.splitlines()
    assert re.match("error: Slurm does not answer: squeue: No such file or directory. ", line)


def send(folder: GridFolder, job_id: str, row: int) -> Path:
    """Write to the journal that this row was submitted to Slurm. Returns the job's batch log."""
    submission = Submission(folder.all_submissions()[-1])
    submission.note("intent", name="x", kind="array", base=0, rows=[row])
    submission.note("submitted", name="x", job_id=job_id)
    return batch_log(submission.path, f"{job_id}_{row}")


def test_logs_of_the_newest_attempt(folder):
    run = folder.run(FAILED)
    begin(specs()[2], folder)
    written = {"1-0": "old", "2-0": "a\nb\nc", "2-1": "a\nb\nc", "2-10": "last", "2-2": "d"}
    for name, text in written.items():
        (run.logs / f"{name}.log").write_text(text + "\n")
    send(folder, "5", 2).write_text("module: loaded\n")
    code, said, complaint = give(folder, "status", "--logs", FAILED[:7], "--lines", "2")
    assert (code, complaint) == (0, "")
    blocks = re.findall(
        r"^==> \S*/(\S+\.\S+?)(: same as above)?$\n((?:(?!==>).*\n)*)", said, re.MULTILINE
    )
    assert blocks == [
        ("5_2_0_log.out", "", "module: loaded\n"),
        ("2-0.log", "", "b\nc\n"),
        ("2-1.log", ": same as above", ""),
        ("2-2.log", "", "d\n"),
        ("2-10.log", "", "last\n"),
    ]


def test_a_new_run_has_no_logs(folder):
    assert give(folder, "status", "--logs", NEW) == (
        0,
        f"run {NEW} has no logs yet, because it has not started\n",
        "",
    )


def test_unknown_and_ambiguous_names_of_runs(folder):
    assert refused(folder, "status", "--logs", "base") == (
        f"2 runs begin with 'base': give more of the name: {DONE}, {RUNNING}"
    )
    assert refused(folder, "status", "--logs", "bsae-s0").startswith("unknown run 'bsae-s0'; ")
    assert refused(folder, "status", "--logs", f"{DONE}0").startswith(
        f"unknown run '{DONE}0'; did you mean {DONE!r}?"
    )


@pytest.mark.parametrize("name", ["status", "cancel"])
def test_an_unknown_grid_is_an_error_of_one_line(tmp_path, name):
    other = GridFolder(tmp_path / "runs" / "stduy")
    code, said, complaint = give(other, name)
    assert (code, said) == (2, "")
    assert complaint == (
        "error: grid 'stduy' has no submissions in runs/stduy. Give the --runs-root "
        "that it was submitted with, or the path of the grid's file\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lock", ["none", "stale", "torn", "5"])
def test_cancel_without_jobs_changes_nothing(folder, lock):
    if lock != "none":
        folder.lock.write_text(json.dumps(dead_holder()) if lock == "stale" else lock)
    before = tree(folder.path)
    assert give(folder, "cancel") == (0, "nothing is running or waiting\n", "")
    assert tree(folder.path) == before


def test_cancel_of_a_queue_on_another_host(folder):
    folder.lock.write_text(json.dumps(lifecycle.holder() | {"host": "node7", "what": "queue"}))
    assert (
        refused(folder, "cancel") == "a queue on node7 runs this grid: run `furnace cancel` there"
    )


def test_cancel_of_a_queue_on_this_machine(folder):
    with subprocess.Popen(["sleep", "60"]) as queue:
        try:
            folder.lock.write_text(json.dumps(lifecycle.holder(queue.pid) | {"what": "queue"}))
            words = "a queue on this machine can only be stopped whole: omit --variant"
            assert refused(folder, "cancel", "--variant", "base") == words
            assert queue.poll() is None
            code, said, complaint = give(folder, "cancel")
            assert (code, complaint) == (0, "")
            assert said.startswith(
                f"asked the queue of process {queue.pid} on {lifecycle.holder()['host']} to stop; "
            )
            assert queue.wait(30) == -signal.SIGTERM
        finally:
            queue.kill()
    assert give(folder, "cancel")[1] == "nothing is running or waiting\n"


def test_a_renamed_row_is_listed_once(tmp_path):
    """Its new folder is a link to the folder of the old name. The newest name is listed."""
    old = grid(seeds=[0])
    renamed = grid(seeds=[0], variants={"base": {}, "both": {"loss.alpha": 0.5, "loss.beta": 0.3}})
    folder = GridFolder(tmp_path / "runs" / "study")
    write_submission(planned(tmp_path / "runs", old))
    for spec in specs(seeds=[0]):
        finish(spec, folder)
    for asked, names in ((renamed, ["base", "both"]), (old, ["base", "full"])):
        record(planned(tmp_path / "runs", asked))
        lines, _ = overview(folder)
        assert [line.run_id.split("-")[0] for line in lines] == names
        assert {line.status.state for line in lines} == {RunState.DONE}
