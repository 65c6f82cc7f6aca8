"""A test run that test_outlives.py kills in the middle. It starts everything that tests start."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked_ranks import forked
from slurm_cluster import Cluster, wait_until
from slurm_study import Study
from small_disk import small_file_system


def _waits(rank: int) -> None:
    time.sleep(600)


@pytest.mark.slurm
def test_waits_for_its_end(cluster: Cluster, tmp_path: Path):
    job = cluster.run(
        "sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 900 & sleep 901"
    ).stdout.strip()
    detached = "setsid sleep 902 & disown; trap '' TERM; while true; do sleep 903; done"
    subprocess.Popen(["bash", "-c", detached], start_new_session=True)
    study = Study(cluster, tmp_path, variants=("waits",), profile={"executor": "local"})
    command = [
        sys.executable,
        "-m",
        "furnace_hpc.submit",
        "--grid",
        "study.yaml",
        "--cluster",
        "dev",
    ]
    with (
        (tmp_path / "log").open("w") as log,
        forked(2, _waits),
        small_file_system(tmp_path / "small"),
    ):
        subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        study.wait_for_starts(1)
        wait_until(
            lambda: cluster.run("squeue", "-h", "-j", job, "-o", "%T").stdout == "RUNNING\n",
            30,
            "the job",
        )
        ready = Path(os.environ["READY"])
        ready.with_suffix(".new").write_text(str(cluster.folder))
        ready.with_suffix(".new").rename(ready)
        time.sleep(600)
