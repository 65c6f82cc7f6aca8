"""Make the environment of jobs and of Slurm's commands: without variables of an outer job.

A grid is often submitted from inside a job, such as an interactive session or a notebook. `sbatch
--export=ALL` would copy that job's SLURM_*, rank variables and CPU binding into every new job. They
would change where and how the new job runs.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from furnace_hpc.host.access import GROUP_ACCESS

# Slurm's commands need the first four to reach the cluster. The last lets a group write the runs.
KEPT = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_CLUSTERS", GROUP_ACCESS}
_PREFIXES = (
    # of a job, and defaults of Slurm's commands
    *(
        "SLURM",
        "SLURMD",
        "SBATCH",
        "SRUN",
        "SALLOC",
        "SQUEUE",
        "SACCT",
        "SCANCEL",
        "SINFO",
        "SCONTROL",
    ),
    # other launchers
    *("PMI", "PMIX", "OMPI_COMM_WORLD", "OMPI_UNIVERSE", "SUBMITIT", "FURNACE", "TORCHELASTIC"),
    # compiler caches per job
    *("TORCHINDUCTOR", "TRITON_CACHE"),
)
_RANK = re.compile("(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)")
_NAMES = {
    # torch's and MPI's ranks
    *("MASTER_ADDR", "MASTER_PORT", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE", "ROLE_NAME"),
    # set for Furnace's commands; jobs set it after their profile's setup lines
    "PYTHONSAFEPATH",
    # set in containers; every rank would compile torch and DeepSpeed again at each start
    "PYTHONDONTWRITEBYTECODE",
    # devices of the outer job
    *("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK"),
}
_PREFIX = re.compile(f"({'|'.join(_PREFIXES)})_")


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Copy an environment without variables of a job, of a rank, or of Slurm's commands."""
    return {name: value for name, value in environment.items() if not _is_left_out(name)}


def dropped_defaults(environment: Mapping[str, str]) -> list[str]:
    """List the variables with the user's own defaults for sbatch that jobs do not get.

    Inside a job SLURM_* describe that job, and are no defaults of the user.
    """
    prefixes = ("SBATCH_",) if "SLURM_JOB_ID" in environment else ("SBATCH_", "SLURM_")
    names = (name for name in environment if name.startswith(prefixes))
    return sorted(name for name in names if _is_left_out(name))


def _is_left_out(name: str) -> bool:
    if name in KEPT:
        return False
    return name in _NAMES or bool(_PREFIX.match(name) or _RANK.fullmatch(name))


def absolute_folders(search_path: str) -> list[str]:
    """List a PYTHONPATH's absolute folders. An empty entry would mean the working directory."""
    return [place for place in search_path.split(os.pathsep) if place.startswith("/")]


@contextmanager
def environment_of_jobs(**more: str) -> Iterator[None]:
    """Replace this process's environment by the clean one and `more` for a while.

    For libraries that run commands.
    """
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(clean_environment(before) | more)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
