"""Several runs on one GPU: places, cores, MPS, time slicing. Stand-ins play NVIDIA programs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stand_in_mps import daemons, write_tools

from furnace_hpc.host.shared_node import cores as cores_file
from furnace_hpc.host.shared_node import mps as mps_file
from furnace_hpc.host.shared_node.cores import cores_of, cores_of_places, divide, read_ranges
from furnace_hpc.host.shared_node.part import keep_to_part
from furnace_hpc.host.shared_node.sharing import divide as divide_node
from furnace_hpc.host.shared_node.steps import Share, srun_command, start_step

JOB = {"SLURM_GPUS_ON_NODE": "2", "SLURM_MEM_PER_NODE": "4096", "CUDA_VISIBLE_DEVICES": "2,3"}
ROOT = Path(mps_file.__file__).parents[3]


@pytest.fixture
def tools(tmp_path, monkeypatch):
    def write(**how) -> Path:
        folder = write_tools(tmp_path / "tools", **how)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        monkeypatch.setenv("STAND_IN_MPS", str(folder))
        return folder

    return write


def wait_until(holds, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_steps_on_shared_gpus_overlap(monkeypatch):
    """Each has all GPUs of the job, and a part of its memory. Its rank gets the name of one."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4, 5, 6, 7})
    monkeypatch.setattr(cores_file, "SIBLINGS", "/nowhere/%d")
    share = Share.of_gpus(4, ["2", "3"], JOB | {"SLURM_CPUS_ON_NODE": "8"})
    assert share.options == ["--overlap", "--nodes=1", "--gres=gpu:2", "--mem=1024M"]
    given = [share.variables(place) for place in range(4)]
    assert [one["FURNACE_GPU"] for one in given] == ["2", "3", "2", "3"]
    assert {one["FURNACE_RUNS_PER_GPU"] for one in given} == {"2"}
    assert [one["FURNACE_CORES"] for one in given] == ["0,1", "4,5", "2,3", "6,7"]
    row = {"facts": {"processes_per_node": 1}}
    words = srun_command(share, row, "out", ["--cpus-per-task=2", "--wait=60"], ["rank"])
    assert words[2:] == [
        *share.options,
        "--ntasks=1",
        "--ntasks-per-node=1",
        "--wait=60",
        "--cpu-bind=none",
        "rank",
    ]


def test_a_free_place_is_on_the_least_used_gpu():
    share = Share(5, [], ["0", "1"], overlaps=True)
    taken: list[int] = []
    for _ in range(5):
        taken.append(share.free_place(taken))
    assert [place % 2 for place in taken] == [0, 1, 0, 1, 0]
    assert share.free_place([0, 2, 1]) == 3
    assert share.free_place([1, 3, 0]) == 2
    assert Share(3, [], []).free_place([0, 2]) == 1


def test_an_overlapping_step_gets_all_cores(tmp_path, monkeypatch):
    """With these variables srun would ask for the first cores only."""
    seen = tmp_path / "seen"
    program = ["/bin/sh", "-c", f'echo "$SLURM_CPUS_PER_TASK,$SLURM_HINT" > {seen}']
    environment = {"SLURM_CPUS_PER_TASK": "2", "SLURM_HINT": "nomultithread"}
    row = {"run_dir": str(tmp_path), "run_id": "a"}
    for words, wanted in ((program, "2,nomultithread"), ([*program, "--overlap"], ",")):
        step = start_step(words, environment, row, 1, 0)
        wait_until(lambda step=step: step.exit_code() is not None)
        assert seen.read_text().strip() == wanted


def test_parts_have_whole_cores(tmp_path):
    """If there are enough. Two threads of a core are beside each other."""
    assert read_ranges("0-2,8\n") == [0, 1, 2, 8]
    for cpu in range(8):
        (tmp_path / str(cpu)).write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    cores = cores_of(range(8), str(tmp_path / "%d"))
    assert cores == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert divide(cores, 2) == ["0,4,1,5", "2,6,3,7"]
    assert divide(cores, 3) == ["0,4", "1,5", "2,6,3,7"]
    assert divide(cores, 8) == ["0", "4", "1", "5", "2", "6", "3", "7"]
    assert divide(cores, 9) == []


def test_cores_are_divided_if_slurm_binds_the_job(monkeypatch):
    """Else other jobs of the node could be on the same cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5, 6, 7})
    monkeypatch.setattr(cores_file, "SIBLINGS", "/nowhere/%d")
    assert cores_of_places(2, {"SLURM_CPUS_ON_NODE": "4"}) == ["4,5", "6,7"]
    assert cores_of_places(2, {"SLURM_CPUS_ON_NODE": "2"}) == []
    assert cores_of_places(2, {}) == []


def test_a_rank_keeps_to_its_part(capsys):
    usable = os.sched_getaffinity(0)
    one = min(usable)
    environment = {"FURNACE_GPU": "3", "FURNACE_CORES": str(one), "CUDA_VISIBLE_DEVICES": "2,3"}
    try:
        keep_to_part(environment)
        assert os.sched_getaffinity(0) == {one}
        assert environment["CUDA_VISIBLE_DEVICES"] == "3"
        keep_to_part({"FURNACE_CORES": "4000"})
        assert "this rank is not kept on its cores 4000" in capsys.readouterr().out
    finally:
        os.sched_setaffinity(0, usable)
    alone = {"CUDA_VISIBLE_DEVICES": "2,3"}
    keep_to_part(alone)
    assert alone == {"CUDA_VISIBLE_DEVICES": "2,3"}


def test_runs_are_alone_unless_asked(tools):
    tools()
    assert divide_node(2, 1, JOB, False).share == Share.of(2, JOB)
    enough = divide_node(2, 2, JOB, False)
    assert (enough.share, enough.facts) == (Share.of(2, JOB), {"gpus": 1, "runs_per_gpu": 1})
    assert divide_node(4, 2, {}, False).share == Share.of(4, {})  # no GPU


def test_without_mps_runs_use_time_slicing(tools):
    folder = tools(has_mps=False)
    found = divide_node(4, 2, JOB, False)
    assert (found.share.places, found.share.gpus, found.mps) == (4, ["2", "3"], None)
    reason = "time slicing: the node has no nvidia-cuda-mps-control"
    assert found.facts == {"gpu_sharing": reason}
    assert found.line == f"up to 2 runs use one GPU at the same time, with {reason}"
    (folder / "nvidia-smi").unlink()
    assert "nvidia-smi does not list the job's GPUs" in divide_node(4, 2, JOB, False).line
    assert "ranks run in a container" in divide_node(4, 2, JOB, True).line
    assert divide_node(6, 2, JOB, False).share.places == 4  # fewer GPUs than planned


def test_an_exclusive_gpu_has_one_run(tools):
    tools(mode="Exclusive_Process", has_mps=False)
    found = divide_node(4, 2, JOB, False)
    assert found.share == Share.of(2, JOB)
    assert found.line == (
        "one run per GPU: its compute mode is Exclusive_Process, and there is no MPS: the node has "
        "no nvidia-cuda-mps-control"
    )
    assert found.facts == {"gpus": 1, "runs_per_gpu": 1, "gpu_sharing": found.line}
    # the site's own daemon serves it
    own = divide_node(4, 2, JOB | {"CUDA_MPS_PIPE_DIRECTORY": "/site"}, False)
    assert (own.share.places, own.facts, own.mps) == (4, {"gpu_sharing": "MPS"}, None)


def test_mps_serves_the_gpus_of_the_job(tools):
    """They are named by UUIDs, because MPS gives its GPUs other numbers."""
    folder = tools(mode="Exclusive_Process")
    found = divide_node(4, 2, JOB, False)
    try:
        [(gpus, pipe)] = daemons(folder)
        assert gpus == "GPU-00000002,GPU-00000003"
        assert found.share.gpus == gpus.split(",")
        assert found.variables["CUDA_MPS_PIPE_DIRECTORY"] == pipe
        assert found.variables["CUDA_VISIBLE_DEVICES"] == gpus
        assert found.facts == {"gpu_sharing": "MPS"}
        private = Path(pipe).parent
        assert private.stat().st_mode & 0o777 == 0o700
        assert list(mps_file._processes(str(private)))
    finally:
        found.mps.close()
    assert not private.exists()
    assert not list(mps_file._processes(str(private)))


def test_a_broken_mps_is_named(tools):
    folder = tools()
    (folder / "broken").touch()
    found = divide_node(4, 2, JOB, False)
    assert found.facts["gpu_sharing"] == (
        "time slicing: nvidia-cuda-mps-control -d exits with 1: no MPS here"
    )
    assert found.mps is None


def test_a_deaf_daemon_is_killed(tools, monkeypatch):
    folder = tools()
    (folder / "deaf").touch()
    mps = mps_file.start_mps(["GPU-00000000"])
    private = Path(mps.variables["CUDA_MPS_PIPE_DIRECTORY"]).parent
    mps.close()
    assert not private.exists()
    assert not list(mps_file._processes(str(private)))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_daemon_ends_with_the_program_of_the_job(tools, number):
    folder = tools()
    script = (
        "import time; from furnace_hpc.host.shared_node.mps import start_mps; "
        "start_mps(['GPU-00000000']); print('started', flush=True); time.sleep(60)"
    )
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", script], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "started\n"
    [(_, pipe)] = daemons(folder)
    assert Path(pipe).exists()
    process.send_signal(number)
    process.communicate()
    wait_until(lambda: not Path(pipe).parent.exists())
    assert not list(mps_file._processes(str(Path(pipe).parent)))
