"""Measurements of a run: peak memory, the machine, and versions of libraries."""

import platform
import resource
import time
from importlib.metadata import version
from pathlib import Path

import torch

from furnace_hpc.engine.ranks.distributed import Processes

LIBRARIES = ("torch", "deepspeed", "transformers", "numpy", "submitit")


class StepClock:
    """Measure the time of training steps, from boundary to boundary.

    A GPU still works when the calls of a step have returned. So a reading waits for the device. To
    cost nothing, the clock is read only where training pauses or a record is written.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._since_s: float | None = None
        """Time of the last reading. None while the clock is stopped."""

    def start(self) -> None:
        """Start the clock, unless it runs."""
        if self._since_s is None:
            self._since_s = time.perf_counter()

    def lap(self) -> float:
        """Return the seconds since the last reading or the start. The clock continues."""
        if self._since_s is None:
            return 0.0
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        since_s, self._since_s = self._since_s, time.perf_counter()
        return self._since_s - since_s

    def stop(self) -> float:
        """Return the seconds since the last reading or the start. The clock stops."""
        seconds = self.lap()
        self._since_s = None
        return seconds


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
