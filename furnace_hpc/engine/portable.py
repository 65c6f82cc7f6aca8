"""Prepare a process for a portable run: it must compute as all other machines do."""

import socket

import torch

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.host.portable import ENVIRONMENT, find_problem
from furnace_hpc.model.square_root import round_correctly


def set_up_portable(device: torch.device) -> None:
    """Check the device, the environment and what torch has made of it. Then fix the square roots.

    Raises:
        ConfigError: the rank has a GPU, the process was started without the environment of
            portable runs, or the CPU lacks the instructions.
    """
    if device.type != "cpu":
        raise ConfigError(
            f"the run is portable, which is for CPUs alone, and this rank on "
            f"{socket.gethostname()} has {device}. Submit with --set portable=false, or set "
            "DS_ACCELERATOR=cpu to train on the CPU."
        )
    problem = find_problem()
    if not problem:
        problem = _find_torch_problem()
    if problem:
        raise ConfigError(f"the run is portable, but {problem}.")
    round_correctly(True)


def _find_torch_problem() -> str:
    capability, wanted = torch.backends.cpu.get_cpu_capability(), ENVIRONMENT["ATEN_CPU_CAPABILITY"]
    if capability.lower() != wanted:
        return f"torch uses {capability} on this CPU, wanted {wanted.upper()}. Use another machine"
    if torch.get_num_threads() != 1:
        return f"torch has {torch.get_num_threads()} threads, wanted 1. Set OMP_NUM_THREADS=1"
    return ""
