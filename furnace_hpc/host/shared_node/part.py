"""Keep a rank on its part of the job: the GPU that its run shares, and its own cores.

Slurm gives overlapping steps all GPUs and cores of the job, and srun sets CUDA_VISIBLE_DEVICES.
Standard library only, syntax of Python 3.6.
"""

import os
from typing import MutableMapping

from furnace_hpc.host.shared_node.cores import read_ranges

# Variables of a rank whose run shares its GPU
GPU, CORES = "FURNACE_GPU", "FURNACE_CORES"
RUNS = "FURNACE_RUNS_PER_GPU"  # the largest number of runs on it


def keep_to_part(environment: MutableMapping[str, str]) -> None:
    """Keep this process, and those that it starts, on its GPU and cores. Other ranks keep all."""
    if environment.get(GPU):
        environment["CUDA_VISIBLE_DEVICES"] = environment[GPU]
    cores = environment.get(CORES)
    if not cores:
        return
    try:
        os.sched_setaffinity(0, read_ranges(cores))
    except (OSError, ValueError) as error:
        print(f"this rank is not kept on its cores {cores}: {error}", flush=True)
