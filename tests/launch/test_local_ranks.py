"""Ranks of the local queue, with real processes and an engine that imports no torch."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from stub_engine import write_run, write_snapshot

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.launch.local_ranks import jobs
from furnace_hpc.launch.local_ranks.jobs import (
    FRESH,
    Job,
    RankStarter,
    Task,
    rank_environment,
    ranks_of,
)

PROFILE = ClusterProfile(name="c", executor="local")
PATIENCE_S = 60
# A queue for a process of its own: it starts one run and waits.
QUEUE = """
import sys, time
from pathlib import Path
sys.path.insert(0, {support!r})
from test_local_ranks import Place
with Place(Path({folder!r})) as place:
    job = place.start({name!r}, 2)
    while True:
        place.starter.poll()
        time.sleep(0.05)
"""


class Place:
    """A snapshot, run folders and a starter."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.code = folder / "runs" / "grid" / "code" / "0123456789ab"
        if not self.code.exists():
            write_snapshot(folder)
        self.submission = folder / "runs" / "grid" / "submissions" / "1"
        self.submission.mkdir(parents=True, exist_ok=True)
        os.environ["STUB"] = str(folder)
        self.starter = RankStarter(PROFILE, self.submission)
        self.notes: list[str] = []

    def __enter__(self) -> "Place":
        self.starter.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.starter.__exit__(None, None, None)

    def start(self, name: str, num_ranks: int = 1, **shared: str) -> Job:
        run = write_run(self.code, name)
        own = {
            "FURNACE_RUN_DIR": str(run),
            "FURNACE_ATTEMPT": "1",
            "SUBMITIT_LOCAL_NTASKS": str(num_ranks),
        }
        environment = rank_environment(self.code, 1) | {"CUDA_VISIBLE_DEVICES": ""} | shared
        return self.starter.start(Task(name, self.code, num_ranks, environment, own, False))

    def wait(self, *running: Job) -> list[int | None]:
        """Return the exit codes of these jobs."""

        def all_ended() -> bool:
            self.notes += self.starter.poll()
            for job in running:
                job.poll()
            return all(job.exit_code is not None for job in running)

        wait_until(all_ended)
        return [job.exit_code for job in running]

    def rank(self, name: str, rank: int = 0) -> dict:
        """Return what a rank has seen. Wait until it has started."""
        file = self.code.parent.parent / name / f"rank-{rank}.json"

        def has_started() -> bool:
            self.notes += self.starter.poll()
            return file.exists()

        wait_until(has_started)
        return json.loads(file.read_text())

    @property
    def servers(self) -> list[int]:
        return [int(line) for line in (self.folder / "preloads").read_text().split()]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.delenv(FRESH, raising=False)
    monkeypatch.setenv("STUB", str(tmp_path))
    with Place(tmp_path) as made:
        yield made


def test_two_runs_are_forks_of_one_server(place: Place):
    first, second = place.start("ok-1", 2), place.start("ok-2")
    assert (first.pid, second.pid) == (None, None)  # the server still imports
    assert place.wait(first, second) == [0, 0]
    assert len(place.servers) == 1
    assert place.notes == []
    ranks = [place.rank("ok-1", 0), place.rank("ok-1", 1), place.rank("ok-2")]
    assert [rank["controller"] for rank in ranks] == [first.pid, first.pid, second.pid]
    assert [rank["command"] for rank in ranks] == [
        f"furnace rank {rank}: {run}" for run, rank in (("ok-1", 0), ("ok-1", 1), ("ok-2", 0))
    ]
    assert [rank["world"] for rank in ranks] == [2, 2, 1]
    assert {rank["code"] for rank in ranks} == {str(place.code / "furnace_hpc/engine/loop.py")}
    log = place.code.parent.parent / "ok-1" / "logs" / "1-0.log"
    lines = log.read_text().splitlines()
    assert "run ok-1, attempt 1, rank 0 of 2" in lines
    assert "[rank 1] run ok-1, attempt 1, rank 1 of 2" in lines
    # as in a fresh process: INT stays blocked, the training unblocks the others
    for rank in ranks:
        assert {int(signal.SIGINT), int(signal.SIGTERM), int(signal.SIGHUP)} <= {*rank["blocked"]}
        assert int(signal.SIGCHLD) not in rank["blocked"]


def test_fork_and_fresh_process_see_the_same(place: Place, monkeypatch: pytest.MonkeyPatch):
    place.wait(place.start("ok-fork", 2))
    place.starter._fresh = True
    place.wait(place.start("ok-fresh", 2))
    for rank in (0, 1):
        fork, fresh = place.rank("ok-fork", rank), place.rank("ok-fresh", rank)
        assert "furnace_hpc.launch.rank_main" in fresh["command"]
        assert fork["environment"].pop("FURNACE_RUN_DIR").endswith("ok-fork")
        assert fresh["environment"].pop("FURNACE_RUN_DIR").endswith("ok-fresh")
        for name in ("environment", "blocked", "code", "world", "attempt"):
            assert fork[name] == fresh[name], name


def test_each_environment_has_a_server(place: Place):
    """Libraries read their variables when they are imported."""
    first, second = place.start("ok-1"), place.start("ok-2", MKL_CBWR="COMPATIBLE")
    third = place.start("ok-3")
    assert place.wait(first, second, third) == [0, 0, 0]
    assert len(place.servers) == 2
    assert place.rank("ok-2")["environment"]["MKL_CBWR"] == "COMPATIBLE"
    assert "MKL_CBWR" not in place.rank("ok-3")["environment"]
    fourth = place.start("ok-4", MKL_CBWR="AVX2")  # the oldest idle server makes room
    assert place.wait(fourth) == [0]
    assert len(place.starter._servers) == jobs.MAX_SERVERS


@pytest.mark.parametrize(("name", "code"), [("dies", 137), ("segv", 139), ("exits", 7)])
def test_a_crash_ends_only_its_own_run(place: Place, name: str, code: int):
    """The other rank of the run is killed, as srun does. Other runs continue."""
    other = place.start("waits-other")
    place.rank("waits-other")
    crashed = place.start(name, 2)
    [got] = place.wait(crashed)
    assert got == max(code, 137)  # the other rank was killed
    assert psutil.pid_exists(place.rank("waits-other")["pid"])
    assert place.wait(place.start("ok")) == [0]
    assert len(place.servers) == 1
    other.terminate()
    assert place.wait(other) == [85]


def test_runs_survive_the_end_of_the_server(place: Place):
    before = place.start("waits")
    place.rank("waits")
    os.kill(place.servers[0], signal.SIGKILL)
    after = place.start("ok")  # sent to the old server, or to a new one
    assert place.wait(after) == [0]
    assert place.wait(place.start("ok-2")) == [0]
    assert len(place.servers) == 2
    before.terminate()
    assert place.wait(before) == [85]
    assert (place.code.parent.parent / "waits" / "stopped-0").exists()


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("thread", "the rank server has 2 threads"),
        ("exit", "the rank server has ended (see its log in the submission)"),
    ],
)
def test_what_cannot_be_forked_is_a_fresh_process(
    place: Place, monkeypatch: pytest.MonkeyPatch, how: str, why: str
):
    monkeypatch.setenv("STUB_PRELOAD", how)
    assert place.wait(place.start("ok", 2)) == [0]
    assert place.notes == [f"ok starts as a fresh process, because {why}"]
    assert "furnace_hpc.launch.rank_main" in place.rank("ok", 1)["command"]
    assert place.wait(place.start("ok-2")) == [0]
    assert len(place.servers) == 1  # it is not tried again


def test_variable_turns_forks_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(FRESH, "1")
    with Place(tmp_path) as place:
        job = place.start("ok")
        assert job.pid is not None
        assert place.wait(job) == [0]
    assert not (tmp_path / "preloads").exists()


def test_kill_of_a_job_that_is_not_forked_yet(place: Place, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STUB_PRELOAD", "sleep")
    first, second = place.start("ok-1"), place.start("ok-2")
    wait_until((place.folder / "preloads").exists)
    [server] = place.servers
    for job in (first, second):
        place.starter.kill(job)
    assert (first.exit_code, second.exit_code) == (137, 137)
    assert not psutil.pid_exists(server)


@pytest.mark.parametrize("fresh", ["0", "1"])
def test_kill_ends_controller_and_ranks(place: Place, fresh: str):
    place.starter._fresh = fresh == "1"
    job = place.start("waits", 2)
    ranks = [place.rank("waits", rank)["pid"] for rank in (0, 1)]
    assert job.pid is not None
    assert [rank.pid for rank in ranks_of(job.pid)] == ranks
    place.starter.kill(job)
    assert place.wait(job) == [137]
    wait_until(lambda: not any(map(is_running, ranks)))


@pytest.mark.parametrize("fresh", ["0", "1"])
def test_killed_queue_leaves_no_process(tmp_path: Path, fresh: str):
    """Its ranks get TERM, so that they save."""
    write_snapshot(tmp_path)
    script = QUEUE.format(support=str(Path(__file__).parent), folder=str(tmp_path), name="waits")
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = os.environ | {FRESH: fresh, "STUB": str(tmp_path), "PYTHONPATH": path}
    queue = subprocess.Popen([sys.executable, "-c", script], env=environment)
    run = tmp_path / "runs" / "grid" / "waits"
    wait_until(lambda: (run / "rank-1.json").exists())
    below = psutil.Process(queue.pid).children(recursive=True)
    assert len(below) == 4 - int(fresh)  # server, controller and two ranks
    queue.kill()
    queue.wait()
    wait_until(lambda: not any(is_running(process.pid) for process in below))
    assert (run / "stopped-0").exists()
    assert (run / "stopped-1").exists()


def test_requests_wait_while_the_socket_is_full(tmp_path: Path):
    """Many runs are requested while the server imports torch. None may be lost."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    ours.setblocking(False)
    server = jobs._Server(0, ours)
    for number in range(200):
        task = Task(f"run-{number}", tmp_path, 1, {}, {}, False)
        server.request(Job(task, number), tmp_path)
    assert server.unsent
    seen = []
    while server.unsent or len(seen) < 200:
        seen.append(json.loads(theirs.recv(jobs.MAX_MESSAGE))["number"])
        assert server.receive() == []  # it sends what is left
    assert seen == list(range(200))
    ours.close()
    theirs.close()


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
