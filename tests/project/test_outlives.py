"""No process outlives a test run that is killed: no daemon of Slurm, job, rank or fork server."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from end_with import MARK
from slurm_cluster import wait_until

WORK = Path(__file__).parents[1] / "support" / "outlives_work.py"
KINDS = {
    "munged",
    "mariadbd",
    "slurmctld",
    "slurmdbd",
    "slurmd",
    "slurmstepd",
    "sleep",
    "unshare",
    "bash",
}


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.distributed
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_ended_leaves_nothing(number: signal.Signals, tmp_path: Path):
    ready, log = tmp_path / "ready", tmp_path / "log"
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", WORK]
    with log.open("w") as file:
        run = subprocess.Popen(
            command, env=os.environ | {"READY": str(ready)}, stdout=file, stderr=file, cwd=tmp_path
        )
    try:
        wait_until(lambda: ready.exists() or run.poll() is not None, 200, "the inner run")
        if not ready.exists() and "no Slurm here" in log.read_text():
            pytest.skip("no Slurm here")
        assert ready.exists(), log.read_text()[-3000:]
        folder = Path(ready.read_text())
        [token] = {
            pairs[MARK]
            for pairs in environments().values()
            if str(folder) in pairs.get("SLURM_CONF", "")
        }
        of_run = [
            psutil.Process(pid) for pid, pairs in environments().items() if pairs.get(MARK) == token
        ]
        # slurmstepd has no mark
        of_run += [child for process in of_run for child in process.children(recursive=True)]
        assert {process.name() for process in of_run} >= KINDS
        words = [" ".join(process.cmdline()) for process in of_run]
        assert any("forkserver" in line for line in words)
        assert any("stand_in_rank" in line for line in words)
        mount = str(next(folder.parent.parent.glob("test_waits*/small")))
        assert mount in Path("/proc/mounts").read_text()
        run.send_signal(number)
        run.wait(30)
        wait_until(
            lambda: not [one for one in of_run if one.is_running()], 40, "the end of all processes"
        )
        wait_until(lambda: mount not in Path("/proc/mounts").read_text(), 20, "the end of a mount")
        wait_until(lambda: not folder.exists(), 20, "the end of the cluster's folder")
        assert not [pid for pid, pairs in environments().items() if pairs.get(MARK) == token]
    finally:
        run.kill()


def environments() -> dict[int, dict[str, str]]:
    found = {}
    for process in psutil.process_iter():
        try:
            found[process.pid] = process.environ()
        except psutil.Error:
            continue
    return found
