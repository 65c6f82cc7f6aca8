"""The environment that jobs and Slurm's commands get: the user's own, without what an outer job left in it.

A grid is often submitted from inside a job (an interactive session, a notebook). That job's SLURM_*, rank variables and
CPU binding would be copied into every new job by `sbatch --export=ALL`, and change where and how it runs.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from furnace_hpc.host.access import GROUP_ACCESS

# How clients find and enter the cluster; whether the group may write the runs.
KEPT = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_CLUSTERS", GROUP_ACCESS}
# Slurm's own (of a job, and the defaults of its commands), other launchers', torch's ranks, per-job
# compiler caches.
_LEFT_OUT = re.compile(
    r"^(SLURMD?|SBATCH|SRUN|SALLOC|SQUEUE|SACCT|SCANCEL|SINFO|SCONTROL|PMI|PMIX|OMPI_COMM_WORLD|OMPI_UNIVERSE|SUBMITIT|FURNACE|"
    r"TORCHELASTIC|TORCHINDUCTOR|TRITON_CACHE)_"
    r"|^(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)$|^(MASTER_ADDR|MASTER_PORT|LOCAL_SIZE|CROSS_RANK|CROSS_SIZE|ROLE_NAME|"
    # the commands' own, and jobs set it after the lines of their profile's setup
    r"PYTHONSAFEPATH|"
    # of containers: every rank would compile torch and DeepSpeed anew, at each start
    r"PYTHONDONTWRITEBYTECODE|"
    r"CUDA_VISIBLE_DEVICES|ROCR_VISIBLE_DEVICES|GPU_DEVICE_ORDINAL|ZE_AFFINITY_MASK)$"
)


def scrubbed(environment: Mapping[str, str]) -> dict[str, str]:
    """A copy without what belongs to one job, one rank, or to how one person likes Slurm's commands to print."""
    return {
        name: value
        for name, value in environment.items()
        if name in KEPT or not _LEFT_OUT.match(name)
    }


def absolute_folders(search_path: str) -> list[str]:
    """The folders of a PYTHONPATH without relative ones: an empty one is the working directory."""
    return [place for place in search_path.split(os.pathsep) if place.startswith("/")]


@contextmanager
def environment_of_jobs(**more: str) -> Iterator[None]:
    """Inside, this process's environment is the scrubbed one and `more`: for libraries that start commands."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(scrubbed(before) | more)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
