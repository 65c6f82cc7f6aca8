"""The guard of a batch script: it ends an srun that outlives its ranks or its attempt."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from slurm_cluster import wait_until

from furnace_hpc.host import lifecycle
from furnace_hpc.host.steps import guard

NOW = 1000.0  # of the monotonic clock
# srun and its helper, a copy of its process
SRUN = "import os, time; os.fork(); time.sleep(120)"
WATCH = """
import sys
from furnace_hpc.host.steps import guard
guard.LOOK_S, guard.VERDICTS_S = 0.1, 0.2
guard.watch(sys.argv[1], 1, int(sys.argv[2]))
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with one open attempt."""
    lifecycle.begin(str(tmp_path), {})
    return tmp_path


def report(run: Path, *verdicts: str, unix_s: float) -> None:
    lines = [
        json.dumps({"rank": rank, "verdict": word, "unix_s": unix_s})
        for rank, word in enumerate(verdicts)
    ]
    (run / "verdicts" / "1-0.jsonl").write_text("\n".join(lines) + "\n")


def looks(run: Path, *ages_s: float) -> list[str]:
    """Return the guard's reasons, a minute apart. The clocks start at the last verdict."""
    watching = guard.Guard(str(run), 1)
    return [watching.reason(NOW + age_s, age_s) for age_s in ages_s]


@pytest.mark.parametrize("verdicts", [(), ("entered", "entered"), ("stopping", "stopping")])
def test_living_ranks_are_left_alone(run, verdicts):
    report(run, *verdicts, unix_s=0)
    assert looks(run, 0, 600, 6000) == ["", "", ""]


@pytest.mark.parametrize("word", ["hang", "crash", "done", "stopped"])
def test_srun_may_outlive_a_rank_by_three_minutes(run, word):
    report(run, "entered", word, unix_s=0)
    reasons = looks(run, 60, 120, 180, 240)
    assert reasons[:3] == ["", "", ""]
    assert reasons[3] == f"rank 1 ended 240 s ago ({word}), and srun still waits"


def test_a_wrong_clock_of_a_node_gives_a_minute(run):
    report(run, "hang", unix_s=-86400)
    assert looks(run, 0, 59)[1] == ""
    assert "rank 0 ended 86460 s ago" in looks(run, 0, 60)[1]


def test_a_newer_attempt_ends_srun_at_once(run):
    report(run, "entered", unix_s=0)
    (run / "attempts" / "2.json").write_text("{}")
    assert looks(run, 1) == ["a newer attempt has replaced attempt 1"]


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A shell that runs srun and prints its exit code."""
    program = tmp_path / "srun"
    program.symlink_to(sys.executable)
    words = ["bash", "-c", '"$1" -c "$2"; echo "exit code $?"', "bash", str(program), SRUN]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(guard.find_sruns(process.pid)) == 2, 20, "srun and its helper")
    found = guard.find_sruns(process.pid)
    yield process
    for one in found:
        try:
            os.kill(one.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.communicate(timeout=20)


@pytest.mark.parametrize("keep_helper", [True, False])
def test_the_helper_lives_on_if_it_is_wanted(shell, keep_helper):
    """It asks the controller to end the step."""
    main, helper = guard.find_sruns(shell.pid)
    assert helper.parent == main.pid
    guard.end_srun(shell.pid, keep_helper)
    assert shell.stdout.readline() == "exit code 137\n"
    assert psutil.pid_exists(main.pid) is False
    if keep_helper:
        assert psutil.Process(helper.pid).status() != psutil.STATUS_ZOMBIE
    else:
        wait_until(lambda: not psutil.pid_exists(helper.pid), 10, "the end of the helper")


def test_srun_itself_may_be_named(shell):
    main = guard.find_sruns(shell.pid)[0]
    assert guard.find_sruns(main.pid)[0] == main


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ("hang", "batch.py: srun is ended: rank 0 ended "),
        ("replaced", "batch.py: srun is ended: a newer attempt has replaced attempt 1\n"),
    ],
)
def test_watch_ends_srun_and_says_why(run, shell, ends, said):
    words = [sys.executable, "-c", WATCH, str(run), str(shell.pid)]
    watching = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        time.sleep(0.5)
        assert watching.poll() is None
        if ends == "hang":
            report(run, "hang", "entered", unix_s=time.time() - 200)
        else:
            (run / "attempts" / "2.json").write_text("{}")
        assert watching.communicate(timeout=20)[0].startswith(said)
        assert shell.stdout.readline() == "exit code 137\n"
    finally:
        watching.kill()


def test_watch_ends_with_its_shell(run):
    shell = subprocess.Popen(["sleep", "0.5"])
    words = [sys.executable, "-c", WATCH, str(run), str(shell.pid)]
    watching = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    shell.wait(timeout=20)
    assert watching.communicate(timeout=20)[0] == ""
    assert watching.returncode == 0
