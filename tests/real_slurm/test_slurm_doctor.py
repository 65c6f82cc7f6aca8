"""`furnace doctor` on a real Slurm: settings, a compute node, and a profile that works."""

import json
import sys
from pathlib import Path

import pytest
from login_study import pack, write_grid
from slurm_cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def doctor(cluster: Cluster, place: Path, *options: str):
    command = (sys.executable, "-m", "furnace_hpc.doctor", "--runs-root", "runs", *options)
    return cluster.run(*command, cwd=place, timeout_s=300)


def test_a_real_cluster_and_node(quiet: Cluster, tmp_path: Path):
    """The profile that doctor writes works."""
    done = doctor(quiet, tmp_path, "--json", "--cluster", "devcluster", "--write-profile", "mine")
    assert done.returncode == 0, done.stdout + done.stderr
    sections = {
        section["title"]: section["checks"] for section in json.loads(done.stdout)["sections"]
    }
    slurm = {check["name"]: check for check in sections["Slurm"]}
    assert slurm["MaxArraySize"]["found"].startswith("10001")
    assert slurm["GPU flag"]["found"] == "sbatch accepts gpus_per_node, gres, gpus_per_task"
    assert slurm["partition a100"]["found"].startswith(
        "4 of 4 nodes usable: 64 cores, 488 GiB, 4 x a100 each"
    )
    job = {check["name"]: check for check in sections["Compute node: Job"]}
    assert job["node"]["found"].startswith("node")
    assert job["cpus-per-task"]["level"] == job["Slurm's commands"]["level"] == "ok"
    machine = {check["name"]: check["level"] for check in sections["Compute node: Machine"]}
    # tests train on CPUs: DS_ACCELERATOR
    assert (machine["gloo all-reduce"], machine["GPUs"]) == ("ok", "warn")
    write_grid(tmp_path)
    pack(tmp_path / "data" / "tridigits")
    dry = quiet.run(
        *(
            sys.executable,
            "-m",
            "furnace_hpc.submit",
            "--grid",
            "study.yaml",
            "--cluster",
            "mine",
            "--dry-run",
        ),
        cwd=tmp_path,
    )
    assert dry.returncode == 0, dry.stderr
    assert "--gpus-per-node=a100:4" in dry.stdout


def test_a_gpu_that_torch_cannot_use_fails(quiet: Cluster, tmp_path: Path):
    own = "name: own\nexecutor: slurm\npartition: a100\nprocesses_per_node: 2\n"
    own += "gpu_type: a100\ncpus_per_task: 1\n"
    (tmp_path / "own.yaml").write_text(own)
    del quiet.environment["DS_ACCELERATOR"]
    try:
        for options in (
            ("--cluster", "own.yaml"),
            ("--cluster", "own.yaml", "--write-profile", "mine"),
        ):
            done = doctor(quiet, tmp_path, "--json", *options)
            assert done.returncode == 1, done.stdout + done.stderr
            sections = {
                section["title"]: section["checks"]
                for section in json.loads(done.stdout)["sections"]
            }
            [gpus] = [
                check for check in sections["Compute node: Machine"] if check["name"] == "GPUs"
            ]
            assert gpus["level"] == "fail"
            assert gpus["found"].startswith(
                "the job was given 0, and torch (CPUs) cannot use all of them"
            )
            assert "DS_ACCELERATOR=cpu trains on the CPU" in gpus["hint"]
    finally:
        quiet.environment["DS_ACCELERATOR"] = "cpu"


def test_a_profile_that_asks_for_too_much_fails(quiet: Cluster, tmp_path: Path):
    wrong = "partition: a100\nnodes: 9\ncpus_per_task: 99\ngpu_type: h100\nprocesses_per_node: 4\n"
    (tmp_path / "bad.yaml").write_text(f"name: bad\nexecutor: slurm\n{wrong}")
    done = doctor(quiet, tmp_path, "--no-job", "--cluster", "bad.yaml")
    assert done.returncode == 1
    assert done.stdout.count("fail  what a run asks") == 3
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "fail  GPU flag" not in done.stdout


def test_a_controller_that_is_away_is_one_line(quiet: Cluster, tmp_path: Path):
    quiet.stop_controller()
    command = (
        sys.executable,
        "-m",
        "furnace_hpc.doctor",
        "--runs-root",
        "runs",
        "--no-job",
        "--write-profile",
        "x",
    )
    done = quiet.run(*command, cwd=tmp_path, timeout_s=300, SLURM_CONF=quiet.impatient())
    assert done.returncode == 2
    assert "fail  controller          does not answer" in done.stdout
    assert (
        done.stderr.splitlines()[-1] == "error: profile 'x' was not written: Slurm does not answer"
    )
    assert not (tmp_path / "slurm").exists()


def test_an_all_reduce_between_two_nodes(quiet: Cluster, tmp_path: Path):
    """Over gloo: the nodes of this cluster are processes of one machine."""
    done = doctor(quiet, tmp_path, "--json", "--no-job", "--two-nodes", "--cluster", "devcluster")
    sections = {
        section["title"]: section["checks"] for section in json.loads(done.stdout)["sections"]
    }
    [check] = sections["Two nodes"]
    assert (check["name"], check["level"]) == ("gloo all-reduce", "ok"), check
    assert " GB/s for 17 MB between " in check["found"]
    assert float(check["found"].split()[0]) > 0
    assert not list((tmp_path / "runs").glob(".doctor-*"))
