"""Begin and end attempts: one process gets the next number, leases, decisions by verdicts."""

import itertools
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from login_study import dead_holder, speak_at_once

from furnace_hpc.host import lifecycle
from furnace_hpc.runs.folder import RunFolder, write_json
from furnace_hpc.runs.state import RunState, read_status

SCRIPT = Path(lifecycle.__file__)
BARE = ["python3", "-S", "-I"]  # no site-packages, no environment, no working directory on the path
BEGIN = """
import sys
from furnace_hpc.host import lifecycle
sys.stdin.readline()
try:
    print(lifecycle.begin(sys.argv[1], {"job_id": sys.argv[2] or None}), flush=True)
except lifecycle.Busy as busy:
    print(busy, flush=True)
sys.stdin.readline()
"""


def begin_at_once(run: Path, job_id: str, count: int) -> list[str]:
    """Outputs of `count` processes that begin the run at once and live until all have printed."""
    command = [sys.executable, "-c", BEGIN, str(run), job_id]
    return speak_at_once(command, count)[0]


@pytest.mark.parametrize("job_id", ["", "77_0"])
def test_one_of_eight_begins_and_others_are_busy(tmp_path, job_id):
    words = begin_at_once(tmp_path, job_id, 8)
    assert words.count("1") == 1
    assert all(word == "1" or word.startswith("attempt 1 ") for word in words)
    assert sorted(path.name for path in (tmp_path / "attempts").iterdir()) == ["1.json"]
    assert lifecycle.read_attempt(str(tmp_path), 1)["job_id"] == (job_id or None)


def test_begin_makes_folders_and_record(tmp_path):
    assert lifecycle.begin(str(tmp_path), {"code_hash": "abc"}) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "attempts",
        "logs",
        "metrics",
        "verdicts",
    ]
    record = lifecycle.read_attempt(str(tmp_path), 1)
    assert (record["attempt"], record["code_hash"], record["end_unix_s"]) == (1, "abc", None)
    assert record["holder"] == lifecycle.holder()


def test_live_holder_is_busy_and_named(tmp_path):
    lifecycle.begin(str(tmp_path), {})
    for facts in ({}, {"job_id": "5"}):
        with pytest.raises(
            lifecycle.Busy,
            match=f"attempt 1 is held by process {os.getpid()} on {socket.gethostname()}",
        ):
            lifecycle.begin(str(tmp_path), facts)


def test_dead_holder_frees_the_next_number(tmp_path):
    lifecycle.begin(str(tmp_path), {}, dead_holder())
    assert lifecycle.begin(str(tmp_path), {}) == 2


@pytest.mark.parametrize(
    ("change", "alive"),
    [
        ({}, True),
        ({"pid_start": 1}, False),  # another process has the pid now
        ({"pid_start": None}, False),  # it ended before its start time was read
        ({"boot_id": "another boot"}, False),
        ({"host": "another-host"}, None),
        ({"host": "another-host", "boot_id": "another boot"}, None),
    ],
)
def test_holder_is_host_boot_pid_and_start_time(tmp_path, change, alive):
    who = lifecycle.holder() | change
    assert lifecycle.is_alive(who) is alive
    lifecycle.begin(str(tmp_path), {"job_id": "5"}, who)
    if alive is False:
        assert lifecycle.begin(str(tmp_path), {}) == 2
        return
    with pytest.raises(lifecycle.Busy, match="attempt 1 is held by"):
        lifecycle.begin(str(tmp_path), {"job_id": None})
    if alive is None:
        with pytest.raises(lifecycle.Busy):  # another job may be running on that host
            lifecycle.begin(str(tmp_path), {"job_id": "6"})
        # Slurm restarted the same job
        assert lifecycle.begin(str(tmp_path), {"job_id": "5"}, who) == 2
        assert "Slurm restarted its job" in lifecycle.read_attempt(str(tmp_path), 1)["error"]
        lifecycle.close(str(tmp_path), 2, "given up by --retry lost")
        assert lifecycle.begin(str(tmp_path), {"job_id": None}) == 3


def test_unreadable_record_counts_as_held(tmp_path):
    lifecycle.begin(str(tmp_path), {})
    (tmp_path / "attempts" / "1.json").write_text('{"attempt": 1, "end')
    with pytest.raises(lifecycle.Busy, match="attempt 1 is held by an unknown process"):
        lifecycle.begin(str(tmp_path), {})
    lifecycle.close(str(tmp_path), 1, "given up by --retry lost")
    assert lifecycle.begin(str(tmp_path), {}) == 2


def test_failed_write_leaves_no_empty_record(tmp_path):
    code = (
        "import resource, sys; from furnace_hpc.host import lifecycle\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # fails like a full disk\n"
        "lifecycle.begin(sys.argv[1], {})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert "OSError: [Errno 27] File too large" in done.stderr
    assert list((tmp_path / "attempts").iterdir()) == []
    assert lifecycle.begin(str(tmp_path), {}) == 1


def test_transfer_lease_to_another_process(tmp_path):
    with subprocess.Popen(["sleep", "30"]) as process:
        lifecycle.begin(str(tmp_path), {"code_hash": "abc"})
        lifecycle.transfer_lease(str(tmp_path), 1, process.pid)
        record = lifecycle.read_attempt(str(tmp_path), 1)
        assert record["holder"]["pid"] == process.pid
        assert record["code_hash"] == "abc"
        assert lifecycle.is_alive(record["holder"]) is True
        process.kill()
    assert lifecycle.is_alive(record["holder"]) is False


def test_zombie_is_dead():
    process = subprocess.Popen(["sleep", "30"])
    who = lifecycle.holder(process.pid)
    process.kill()
    # dead, but still in the process table
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{process.pid}").exists()
    assert lifecycle.is_alive(who) is False
    process.wait()


def expected(words: tuple[str, ...]) -> tuple[str, str]:
    if not words:
        return "requeue", "infrastructure"
    if "crash" in words:
        return "fail", "crash"
    if set(words) == {"stopped"}:
        return "requeue", "stopped"
    if "peer_lost" in words and "entered" not in words:
        return "requeue", "peer_lost"
    return "fail", "killed"


WORDS = ("done", "stopped", "crash", "peer_lost", "entered")


@pytest.mark.parametrize(
    "words", [w for n in range(4) for w in itertools.combinations_with_replacement(WORDS, n)]
)
def test_decide_by_verdicts(tmp_path, words):
    lifecycle.begin(str(tmp_path), {"world_size": len(words)})
    for rank, word in enumerate(words):
        content = {"verdict": word, "step": 10 + rank, "error": f"error {rank}", "unix_s": -rank}
        write_json(RunFolder(tmp_path).verdict(1, rank), content)
    answer, reason = expected(words)
    assert lifecycle.decide(str(tmp_path), 1, 3) == answer
    record = lifecycle.read_attempt(str(tmp_path), 1)
    assert (record["reason"], record["exit_code"]) == (reason, 3)
    assert record["step"] == (9 + len(words) if words else 0)
    assert record["end_unix_s"] >= record["start_unix_s"]
    if reason == "crash":  # the earliest is the cause, not the lowest rank
        assert (
            record["error"]
            == f"error {max(rank for rank, word in enumerate(words) if word == 'crash')}"
        )
    (tmp_path / "result.json").write_text("{}")
    assert lifecycle.decide(str(tmp_path), 1, 3) == "done"
    assert lifecycle.read_attempt(str(tmp_path), 1)["reason"] == "done"


def test_a_canary_ends_its_job_as_done(tmp_path):
    """The job must not be requeued. The run is interrupted, and the attempt is no used one."""
    lifecycle.begin(str(tmp_path), {"job_id": "5_0", "max_attempts": 1, "stop_after_steps": 20})
    report = {"verdict": "stopped", "signal": "--canary", "step": 20, "error": "", "unix_s": 1.0}
    write_json(RunFolder(tmp_path).verdict(1, 0), report)
    assert lifecycle.decide(str(tmp_path), 1, lifecycle.EXIT_STOPPED) == "done"
    assert lifecycle.read_attempt(str(tmp_path), 1)["reason"] == "canary"
    status = read_status(RunFolder(tmp_path))
    assert (status.state, status.end_reason, status.step) == (RunState.INTERRUPTED, "canary", 20)
    assert lifecycle.begin(str(tmp_path), {"max_attempts": 1}) == 2


def test_decide_ignores_other_and_torn_verdicts(tmp_path):
    lifecycle.begin(str(tmp_path), {})
    for attempt, rank, word in ((1, 0, "stopped"), (11, 0, "crash"), (2, 0, "crash")):
        write_json(
            RunFolder(tmp_path).verdict(attempt, rank), {"verdict": word, "step": 1, "unix_s": 0}
        )
    RunFolder(tmp_path).verdict(1, 1).write_text('{"verd')
    assert lifecycle.decide(str(tmp_path), 1, 85) == "requeue"


def test_an_attempt_that_finished_the_run_gets_its_end(tmp_path):
    """Its host was cut off after the result, and Slurm restarted the job elsewhere."""
    elsewhere = lifecycle.holder() | {"host": "node7"}
    lifecycle.begin(str(tmp_path), {"job_id": "5_0"}, elsewhere)
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(lifecycle.Done):
        lifecycle.begin(str(tmp_path), {"job_id": "6_0"})  # of another job: the host may live
    assert lifecycle.read_attempt(str(tmp_path), 1)["end_unix_s"] is None
    with pytest.raises(lifecycle.Done):
        lifecycle.begin(str(tmp_path), {"job_id": "5_0"})
    record = lifecycle.read_attempt(str(tmp_path), 1)
    assert record["reason"] == "done"
    assert record["end_unix_s"]


def test_a_host_that_comes_back_keeps_the_end(tmp_path):
    """Slurm restarted the job elsewhere, and the next attempt recorded how the first one ended."""
    elsewhere = lifecycle.holder() | {"host": "node7"}
    lifecycle.begin(str(tmp_path), {"job_id": "5_0"}, elsewhere)
    assert lifecycle.begin(str(tmp_path), {"job_id": "5_0"}) == 2
    before = lifecycle.read_attempt(str(tmp_path), 1)
    assert "Slurm restarted its job" in before["error"]
    assert lifecycle.decide(str(tmp_path), 1, 137) == "fail"
    assert lifecycle.read_attempt(str(tmp_path), 1) == before
