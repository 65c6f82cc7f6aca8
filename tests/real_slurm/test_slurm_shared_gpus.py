"""Several runs on one GPU of a real Slurm, whose GPUs are simulated."""

import os
import sys
from pathlib import Path

import pytest
from slurm_cluster import Cluster, wait_until
from slurm_study import Study
from stand_in_mps import daemons, write_tools
from test_slurm_shared_nodes import SHARED, kill_rank

from furnace_hpc.host.shared_node.cores import read_ranges

TWO = SHARED | {"runs_per_node": None, "runs_per_gpu": 2, "gpus_per_node": 2}
# The stand-in for Python. The real `batch.py launch` gives the rank its GPU and its cores.
NOTE = (
    'case " $* " in *"/batch.py launch "*) exec {python} "$@" ;; *rank_main*) '
    'echo "$(basename "$FURNACE_RUN_DIR") $SLURM_JOB_ID $CUDA_VISIBLE_DEVICES '
    "$(sed -n 's/^Cpus_allowed_list:\\t//p' /proc/self/status) "
    '${{CUDA_MPS_PIPE_DIRECTORY:-none}} ${{FURNACE_CORES:-none}}" '
    '>> "$(dirname "$FURNACE_RUN_DIR")/given" ;; esac'
)


def shared_gpus(cluster: Cluster, place: Path, *variants: str, seeds: int = 1, **changes) -> Study:
    study = Study(cluster, place, variants=variants, seeds=seeds, profile=TWO | changes)
    python, note = place / "python", NOTE.format(python=sys.executable)
    python.write_text(python.read_text().replace("\n", f"\n{note}\n", 1))
    return study


def given(study: Study) -> list[list[str]]:
    """Run, job, GPU, cores, folder of MPS and planned cores of each start."""
    return [line.split() for line in (study.folder / "given").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.slurm
def test_four_runs_share_two_gpus(quiet: Cluster, tmp_path: Path):
    """They run at the same time, two on each GPU. Each stops, ends and resumes alone."""
    study = shared_gpus(quiet, tmp_path, "waits", "waits2", seeds=2)
    said = study.submitted("--dry-run")
    assert "4 runs in 1 job of 4, 2 per GPU, each 1 node x 1 rank, 60 min" in said
    assert "at most 2.0 GPU-hours" in said
    assert "at most 1.0 node-hours" in said
    assert "#SBATCH --gpus-per-node=a100:2" in said
    study.submitted()
    study.wait_for_starts(4)
    assert study.states() == {"running": 4}
    assert sorted(gpu for _, _, gpu, *_ in given(study)) == ["0", "0", "1", "1"]
    assert len({job for _, job, *_ in given(study)}) == 1
    [record] = study.attempts("waits-s0")
    assert (record["gpus"], record["runs_per_gpu"], record["runs_per_node"]) == (0.5, 2, 4)
    assert record["gpu_sharing"].startswith("time slicing: ")
    quiet.run("scancel", "--signal=USR2", str(record["job_id"]))
    study.wait_for_starts(8)
    assert study.attempts("waits2-s1")[0]["reason"] == "stopped"
    kill_rank(study, "waits-s1")
    study.wait_for(running=3, queued=1)
    (study.folder / "release").touch()
    study.wait_for(done=4)
    assert [len(study.attempts(name)) for name in ("waits-s0", "waits-s1")] == [2, 3]


@pytest.mark.slow
@pytest.mark.slurm
def test_a_job_has_one_mps_daemon(quiet: Cluster, tmp_path: Path):
    """It ends with a requeued job, and with one that has finished. Runs have their own cores."""
    tools = write_tools(tmp_path / "tools")
    setup = [*SHARED["setup"], f"export STAND_IN_MPS={tools}", f"export PATH={tools}:$PATH"]
    half = len(os.sched_getaffinity(0)) // 2
    changes = {"gpus_per_node": 1, "setup": setup, "cpus_per_task": half}
    study = shared_gpus(quiet, tmp_path, "waits", seeds=2, **changes)
    study.submitted()
    study.wait_for_starts(2)
    [(gpus, pipe)] = daemons(tools)
    assert gpus == "GPU-00000000"
    assert {(gpu, folder) for _, _, gpu, _, folder, _ in given(study)} == {(gpus, pipe)}
    first, second = (set(read_ranges(cores)) for _, _, _, cores, *_ in given(study))
    assert first
    assert not first & second
    [record] = study.attempts("waits-s0")
    assert record["gpu_sharing"] == "MPS"
    assert quiet.run("scontrol", "requeue", str(record["job_id"])).returncode == 0
    wait_until(lambda: not Path(pipe).exists(), 60, "the end of the daemon")
    study.wait_for_starts(4)
    assert len(daemons(tools)) == 2
    (study.folder / "release").touch()
    study.wait_for(done=2)
    wait_until(lambda: not Path(daemons(tools)[1][1]).exists(), 60, "the end of the daemon")
