"""Variables of the user reach jobs and Slurm's commands; variables of an outer job do not."""

import os
import subprocess

import pytest

from furnace_hpc.slurm.environment import clean_environment, environment_of_jobs

OF_A_JOB = """
SLURM_JOB_ID SLURM_JOBID SLURM_ARRAY_TASK_ID SLURM_PROCID SLURM_LOCALID SLURM_NTASKS
SLURM_NTASKS_PER_NODE SLURM_NNODES SLURM_CPUS_PER_TASK SLURM_CPU_BIND SLURM_CPU_BIND_TYPE
SLURM_TRES_PER_TASK SLURM_GPUS_ON_NODE SLURM_MEM_PER_NODE SLURM_EXPORT_ENV SLURM_JOB_NODELIST
SLURM_STEP_ID SLURM_TIME_FORMAT SLURM_CLUSTER_NAME SLURM_EXIT_ERROR SLURMD_NODENAME SBATCH_PARTITION
SBATCH_ACCOUNT SBATCH_REQUEUE SBATCH_EXPORT SRUN_CPUS_PER_TASK SRUN_DEBUG SALLOC_PARTITION
SQUEUE_FORMAT SQUEUE_STATES SQUEUE_PARTITION SACCT_FORMAT SCANCEL_STATE SINFO_FORMAT PMI_RANK
PMI_SIZE PMI_FD PMIX_RANK PMIX_NAMESPACE PMIX_SERVER_URI OMPI_COMM_WORLD_RANK
OMPI_COMM_WORLD_LOCAL_RANK OMPI_COMM_WORLD_SIZE OMPI_UNIVERSE_SIZE SUBMITIT_EXECUTOR
SUBMITIT_LOCAL_JOB_ID FURNACE_RUN_DIR FURNACE_ATTEMPT RANK LOCAL_RANK GROUP_RANK ROLE_RANK
WORLD_SIZE GROUP_WORLD_SIZE ROLE_WORLD_SIZE ROLE_NAME LOCAL_SIZE CROSS_RANK CROSS_SIZE MASTER_ADDR
MASTER_PORT TORCHELASTIC_RUN_ID TORCHELASTIC_RESTART_COUNT TORCHINDUCTOR_CACHE_DIR TRITON_CACHE_DIR
CUDA_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES GPU_DEVICE_ORDINAL ZE_AFFINITY_MASK
PYTHONDONTWRITEBYTECODE
"""
OF_THE_USER = """
SLURM_CONF SLURM_JWT SLURM_CLUSTERS PATH HOME USER SHELL LANG LC_ALL TMPDIR LD_LIBRARY_PATH
PYTHONPATH VIRTUAL_ENV CONDA_PREFIX MODULEPATH HF_HOME OMP_NUM_THREADS NCCL_DEBUG NCCL_SOCKET_IFNAME
GLOO_SOCKET_IFNAME DS_ACCELERATOR CUDA_HOME CUDA_DEVICE_ORDER CUDA_VISIBLE_DEVICES_OF_MINE
TORCH_HOME SLURMY SLURM MY_SLURM_NOTES SBATCHED SRUNNER PMI PMIXER RANKING RANK_OF_MINE MY_RANK
MY_LOCAL_RANK WORLD_SIZES HELLO_WORLD_SIZE MASTER MASTER_ADDRESS OMPI_MCA_btl SQUEUEZE LOCAL_RANKS
"""
DROPPED, KEPT = OF_A_JOB.split(), OF_THE_USER.split()


@pytest.mark.parametrize("name", DROPPED)
def test_variables_of_jobs_and_ranks_are_dropped(name):
    assert clean_environment({name: "1", "HOME": "/home/me"}) == {"HOME": "/home/me"}


@pytest.mark.parametrize("name", KEPT)
def test_variables_of_the_user_are_kept(name):
    assert clean_environment({name: "1"}) == {name: "1"}


def test_scrubbed_is_a_copy():
    before = {"PATH": "/bin", "SLURM_JOB_ID": "7", "NOTE": "SLURM_JOB_ID", "EMPTY": ""}
    given = dict(before)
    found = clean_environment(given)
    assert found == {"PATH": "/bin", "NOTE": "SLURM_JOB_ID", "EMPTY": ""}
    found["PATH"] = "changed"
    assert given == before
    assert clean_environment(found) == found


@pytest.fixture
def _outer_job(monkeypatch):
    """Set the environment of an interactive job."""
    for name in (*DROPPED, "SLURM_CONF", "RANKING"):
        monkeypatch.setenv(name, f"outer {name}")


@pytest.mark.usefixtures("_outer_job")
def test_environment_inside():
    before = dict(os.environ)
    more = {"FURNACE_RUN_DIR": "runs/x", "ROLE": "new", "RANKING": "mine"}
    with environment_of_jobs(**more):
        inside = dict(os.environ)
    assert inside == clean_environment(before) | more
    assert inside["SLURM_CONF"] == "outer SLURM_CONF"
    assert set(DROPPED) & set(inside) == {"FURNACE_RUN_DIR"}
    assert dict(os.environ) == before


def leave_a_mess() -> None:
    with environment_of_jobs(ROLE="new"):
        os.environ.update(LEFT_BEHIND="1", PATH="changed", SLURM_JOB_ID="8")
        del os.environ["SLURM_CONF"]
        raise KeyError("boom")


@pytest.mark.usefixtures("_outer_job")
def test_environment_is_restored_after_an_error():
    before = dict(os.environ)
    with pytest.raises(KeyError, match="boom"):
        leave_a_mess()
    assert dict(os.environ) == before


@pytest.mark.usefixtures("_outer_job")
def test_commands_inside_get_the_environment():
    with environment_of_jobs(ROLE="new"):
        text = subprocess.run(["env"], capture_output=True, text=True, check=True).stdout
    names = {line.partition("=")[0] for line in text.splitlines()}
    assert {"ROLE", "SLURM_CONF", "RANKING"} <= names
    assert not set(DROPPED) & names
