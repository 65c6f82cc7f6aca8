"""Measurements of a run: peak memory, the machine, and versions of libraries."""

import os
import platform
import resource
import time
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

from furnace_hpc.engine.ranks.distributed import Processes
from furnace_hpc.host.container.start import IMAGE

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


def memory_gib(device: torch.device) -> tuple[float, float | None]:
    """This rank's peaks since its start in 2^30 bytes: allocated and reserved memory of a GPU.

    On a CPU they are resident memory and None.
    """
    if device.type != "cuda":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0 / 2**30, None
    allocated = torch.cuda.max_memory_allocated(device) / 2**30
    return allocated, torch.cuda.max_memory_reserved(device) / 2**30


def peak_memory_gib(processes: Processes) -> tuple[float, float | None]:
    """Collective. The largest peaks of all ranks, as in `memory_gib`."""
    allocated, reserved = memory_gib(processes.device)
    allocated, most = processes.all_reduce_max(allocated, reserved or 0.0)
    return allocated, None if reserved is None else most


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
    """Versions of Python and of the libraries that influence the numbers, and the image."""
    found = {"python": platform.python_version(), **_library_versions()}
    if image := os.environ.get(IMAGE):
        found["image"] = image
    return found


@cache
def _library_versions() -> dict[str, str]:
    """Every checkpoint has them, and each look-up reads files."""
    return {name: version(name) for name in LIBRARIES}
