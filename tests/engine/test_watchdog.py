"""Hung ranks: stacks in the log, activity in the verdict, killed within the limit."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from local_study import attempt, command, run_folder, submit, wait_for_step, write_grid

from furnace_hpc.host import lifecycle
from furnace_hpc.launch.local_ranks.jobs import ranks_of
from furnace_hpc.runs.folder import RunFolder

WORK = str(Path(__file__).parents[1] / "support" / "hang_work.py")
T = 2.0  # seconds, less than a config allows


def work(folder: Path, how: str, start_s: float = 60) -> tuple[int, float, str]:
    """Run a rank. Return its exit code, seconds between its last line and its end, and its log."""
    lifecycle.begin(str(folder), {})
    log = RunFolder(folder).log(1, 0)
    with log.open("w") as file:
        rank = [sys.executable, WORK, str(folder), how, str(T), str(start_s)]
        code = subprocess.run(rank, stdout=file, stderr=file, timeout=60, check=False).returncode
    ended, text = time.time(), log.read_text()
    silent = [
        ended - float(line.split()[2]) for line in text.splitlines() if line.startswith("hangs at ")
    ]
    return code, max(silent, default=0.0), text


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Any]]:
    """How -> the folder and what `work` or `freeze` returned.

    All ranks run at the same time, because each sleeps most of its time.
    """
    ways = {"sleeps": 60.0, "holds": 60.0, "start": T + 3, "works": 60.0, "saves": 60.0}
    place = tmp_path_factory.mktemp("ranks")
    with ThreadPoolExecutor() as pool:
        ends = {how: pool.submit(work, place / how, how, start_s) for how, start_s in ways.items()}
        ends["frozen"] = pool.submit(freeze, place / "frozen")
        yield lambda how: (place / how, ends[how].result())


def freeze(folder: Path) -> int:
    """Stop a rank for longer than the limit, and continue it. Return its exit code."""
    lifecycle.begin(str(folder), {})
    with RunFolder(folder).log(1, 0).open("w") as log:
        rank = subprocess.Popen(
            [sys.executable, WORK, str(folder), "sleeps", str(T), "60"], stdout=log, stderr=log
        )
        while "hangs at " not in RunFolder(folder).log(1, 0).read_text():
            assert rank.poll() is None
            time.sleep(0.05)
        rank.send_signal(signal.SIGSTOP)
        time.sleep(T + 1)  # less than faulthandler's delay
        rank.send_signal(signal.SIGCONT)
        return rank.wait(10)


def test_hung_rank(ranks):
    folder, (code, silent_s, log) = ranks("sleeps")
    assert (code, T - T / 4 - 0.5 < silent_s < T + 5) == (lifecycle.EXIT_HANG, True), silent_s
    assert "HANG: no progress for 2 s in step 8. Stacks of all threads:" in log
    assert "in hang" in log
    assert lifecycle.decide(str(folder), 1, code) == "requeue"
    record = lifecycle.read_attempt(str(folder), 1)
    error = (
        "rank 0 made no progress for 2 s in step 8; the stacks of its threads are in logs/1-0.log"
    )
    assert (record["reason"], record["step"], record["error"]) == ("hang", 7, error)


def test_stuck_interpreter(ranks):
    """If the watchdog's own thread is stuck, faulthandler ends the rank."""
    folder, (code, silent_s, log) = ranks("holds")
    assert (code, T - T / 4 - 0.5 < silent_s < T + 5) == (1, True), silent_s
    assert "Timeout (" in log
    assert "in hang" in log
    lifecycle.decide(str(folder), 1, code)
    record = lifecycle.read_attempt(str(folder), 1)
    assert (record["reason"], record["error"].partition(";")[0]) == (
        "hang",
        "its interpreter was stuck",
    )


def test_stopped_and_continued_rank(ranks):
    """The rank records that it was frozen, and its host is suspected."""
    folder, code = ranks("frozen")
    assert code == lifecycle.EXIT_HANG
    lifecycle.decide(str(folder), 1, lifecycle.EXIT_HANG)
    record = lifecycle.read_attempt(str(folder), 1)
    assert record["error"].startswith("rank 0 was frozen for 2 s in step ")
    assert record["blamed"] == [socket.gethostname()]


def test_start_has_its_own_limit(ranks):
    _, (code, silent_s, log) = ranks("start")
    assert (code, T + 2.5 < silent_s < T + 8) == (lifecycle.EXIT_HANG, True), silent_s
    assert "no progress for 5 s in the start" in log


@pytest.mark.parametrize("how", ["works", "saves"])
def test_no_hang(ranks, how):
    folder, (code, _, log) = ranks(how)
    assert (code, log) == (0, "")
    [verdict] = lifecycle.read_verdicts(str(folder), 1)
    assert (verdict["verdict"], verdict["step"]) == ("done", 7)


def saved_steps(folder: Path) -> list[int]:
    """The steps of the run's checkpoints, in their order."""
    path = RunFolder(folder).saved
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["step"] for line in lines]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_stopped_rank_of_a_run(small_root: Path, tmp_path: Path):
    """All ranks end within the limit, and the next submission resumes the run."""
    limit_s = 8
    grid = write_grid(tmp_path, 60, "{first: {}}")
    options = ("--set", "resources.processes_per_node=2", "--set", f"hang_timeout_s={limit_s}")
    queue = subprocess.Popen(
        command(grid, small_root, *options), cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    wait_for_step(grid, "first", 13)
    folder = run_folder(grid, "first")
    while not saved_steps(folder):
        time.sleep(0.05)  # until the test's time limit
    children = psutil.Process(queue.pid).children(recursive=True)
    stopped = ranks_of(attempt(folder, 1)["holder"]["pid"])[1]
    os.kill(stopped.pid, signal.SIGSTOP)
    since = time.monotonic()
    gone, alive = psutil.wait_procs(children, timeout=limit_s + 20)
    took_s = time.monotonic() - since
    for process in alive:
        process.kill()
    assert alive == []
    assert len(gone) >= 4  # the rank server, a controller and two ranks
    assert limit_s - 1 < took_s < limit_s + 5
    queue.wait(30)
    record = attempt(folder, 1)
    assert record["reason"] == "hang"
    assert record["error"].startswith(f"rank 0 made no progress for {limit_s} s in ")
    assert record["error"].endswith(
        "logs/1-0.log; 1 ranks reported no end: look at their logs first"
    )
    assert 13 <= record["step"] < 60
    log = (folder / "logs/1-0.log").read_text()
    assert "HANG: " in log
    # it was waiting for the other rank
    assert re.search(r"File .*/(torch/distributed|deepspeed)/", log), log
    newest = saved_steps(folder)[-1]
    continued = submit(grid, small_root, *options)
    assert continued.returncode == 0, continued.stderr
    assert f"resumed after step {newest}" in (folder / "logs/2-0.log").read_text()
    assert attempt(folder, 2)["reason"] == "done"
