"""Measurements of a run: peak memory, the machine, and versions of libraries."""

import platform
import resource
from importlib.metadata import version
from pathlib import Path

import torch

from furnace_hpc.engine.ranks.distributed import Processes

LIBRARIES = ("torch", "deepspeed", "transformers", "numpy", "submitit")


def peak_memory_gib(processes: Processes) -> float:
    """Collective. Largest peak of all ranks in 2^30 bytes.

    It is allocated memory on a GPU, resident memory on a CPU.
    """
    if processes.device.type == "cuda":
        own = float(torch.cuda.max_memory_allocated(processes.device))
    else:
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    return processes.all_reduce_max(own)[0] / 2**30


def device_name(device: torch.device) -> str:
    """Model of the GPU or CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.partition(":")[2].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.machine()


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that influence the numbers."""
    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}
