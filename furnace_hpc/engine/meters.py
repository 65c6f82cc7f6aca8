"""Meters: time of steps, peak memory, and what machine this is."""

import platform
import resource
from importlib.metadata import version
from pathlib import Path

import torch

from furnace_hpc.engine.distributed import Processes

LIBRARIES = ("torch", "deepspeed", "transformers", "numpy", "submitit")


def peak_memory_gib(processes: Processes) -> float:
    """Collective. Peak of the worst rank, in 2^30 bytes: allocated on a GPU, resident on a CPU."""
    if processes.device.type == "cuda":
        mine = float(torch.cuda.max_memory_allocated(processes.device))
    else:
        mine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    return processes.all_reduce_max(mine)[0] / 2**30


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
    """Python and the libraries that decide numbers."""
    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}
