"""Only one of two ranks is out of memory: the other one waits for no timeout."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killed_run import new_run

from furnace_hpc.host import lifecycle
from furnace_hpc.launch.local_ranks.controller import rank_variables
from furnace_hpc.runs.code import code_hash

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
WORK = str(Path(__file__).parents[1] / "support" / "oom_work.py")
CONTROLLER = "furnace_hpc.launch.local_ranks.controller"
TIMEOUT_S = 900  # of collectives: much longer than the test may take


def start(launcher: str, logs: Path, environment: dict[str, str]) -> list[subprocess.Popen]:
    """Start two ranks. With the controller they have a launcher that ends the other rank."""
    rank = [sys.executable, WORK]
    if launcher == "controller":
        command = [sys.executable, "-m", CONTROLLER, str(os.getpid()), "2", str(logs), *rank]
        return [subprocess.Popen(command, env=environment)]
    return [subprocess.Popen(rank, env=environment | rank_variables(number)) for number in (0, 1)]


@pytest.mark.parametrize("launcher", ["controller", "none"])
def test_one_rank_out_of_memory(tmp_path, small_data, launcher):
    """The verdict is oom, and the next attempt has half of the micro-batch."""
    changes = {"hang_timeout_s": TIMEOUT_S, "micro_batch_size": 2}
    folder = new_run(tmp_path / "runs", small_data, stage=2, size=2, steps=20, changes=changes)
    facts = {"code_hash": code_hash(), "world_size": 2, "data_dir": str(small_data)}
    assert lifecycle.begin(str(folder), facts) == 1
    environment = os.environ | {
        "FURNACE_RUN_DIR": str(folder),
        "FURNACE_ATTEMPT": "1",
        "SUBMITIT_EXECUTOR": "local",
        "SUBMITIT_LOCAL_NTASKS": "2",
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }
    processes = start(launcher, tmp_path, environment)
    try:
        codes = [process.wait(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    ended_s = time.time()
    verdicts = {verdict["rank"]: verdict for verdict in lifecycle.read_verdicts(str(folder), 1)}
    assert verdicts[1]["verdict"] == "oom"
    assert ended_s - verdicts[1]["unix_s"] < 30
    assert verdicts[0]["verdict"] in ("peer_lost", "entered")  # killed before it could tell
    assert max(codes) > 0
    assert lifecycle.decide(str(folder), 1, max(codes)) == "requeue"
    record = lifecycle.read_attempt(str(folder), 1)
    assert (record["reason"], record["next_overrides"]) == ("oom_halved", {"micro_batch_size": 1})
    assert lifecycle.begin(str(folder), facts) == 2
    assert lifecycle.read_attempt(str(folder), 2)["overrides"] == {"micro_batch_size": 1}
