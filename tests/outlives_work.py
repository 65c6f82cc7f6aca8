"""A test run that somebody ends in the middle: test_outlives.py starts it, with all that tests start."""

import os
import subprocess
import time
from pathlib import Path

import pytest
from forked_ranks import forked
from local_study import command, wait_for_step, write_grid

from slurm import Cluster, wait_until


def _waits(rank: int) -> None:
    time.sleep(600)


@pytest.mark.slurm
def test_waits_for_its_end(cluster: Cluster, tmp_path: Path, small_root: Path):
    job = cluster.run("sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 900 & sleep 901").stdout.strip()
    detached = "setsid sleep 902 & disown; trap '' TERM; while true; do sleep 903; done"
    subprocess.Popen(["bash", "-c", detached], start_new_session=True)
    grid = write_grid(tmp_path, 100_000, "{first: {}}")
    with (tmp_path / "log").open("w") as log, forked(2, _waits):
        subprocess.Popen(command(grid, small_root), cwd=tmp_path, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        wait_for_step(grid, "first", 2)
        wait_until(lambda: cluster.run("squeue", "-h", "-j", job, "-o", "%T").stdout == "RUNNING\n", 30, "the job")
        ready = Path(os.environ["READY"])
        ready.with_suffix(".new").write_text(str(cluster.folder))
        ready.with_suffix(".new").rename(ready)
        time.sleep(600)
