"""Which device and which cores a rank has, and whether the ranks of a node are in each other's way."""

import os
import socket
import sys
from dataclasses import dataclass

import torch

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.host.gpu_check import EXIT_UNUSABLE, given


@dataclass(frozen=True)
class RankPlacement:
    """Where one rank is."""

    rank: int
    host: str
    gpu: str  # its unique id; none on a CPU
    cores: frozenset[int]
    num_threads: int

    @classmethod
    def here(cls, rank: int, device: torch.device) -> "RankPlacement":
        """This process's place."""
        gpu = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""
        threads = int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads())
        return cls(rank, socket.gethostname(), gpu, frozenset(os.sched_getaffinity(0)), threads)


def choose_device(local_rank: int) -> torch.device:
    """This rank's GPU, or the CPU. Where a rank sees one GPU only, the launcher has chosen: it is number 0.

    Raises:
        ConfigError: fewer GPUs than ranks; or GPUs were given, and torch can use none.
    """
    if os.environ.get("DS_ACCELERATOR") == "cpu":  # DeepSpeed's own word for it
        return torch.device("cpu")
    if not torch.cuda.is_available():
        if visible := given(os.environ):
            raise ConfigError(
                f"this rank was given GPUs {visible}, and torch {torch.__version__} can use none: look at nvidia-smi "
                f"on {socket.gethostname()}, and whether torch is a CUDA build; DS_ACCELERATOR=cpu trains on the CPU"
            )
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if count > 1 and local_rank >= count:
        raise ConfigError(
            f"local rank {local_rank} has no GPU: {socket.gethostname()} shows {count} to it: ask for as many GPUs per "
            f"node as processes_per_node"
        )
    device = torch.device("cuda", local_rank if count > 1 else 0)
    torch.cuda.set_device(device)
    return device


def problems(places: list[RankPlacement]) -> tuple[str, str]:
    """What is wrong with the ranks' GPUs, and what is slow about their cores; empty where nothing is."""
    wrong = crowded = ""
    for host in sorted({place.host for place in places}):
        here = [place for place in places if place.host == host]
        gpus: dict[str, int] = {}
        for place in here:
            if place.gpu and place.gpu in gpus:
                wrong = wrong or (
                    f"ranks {gpus[place.gpu]} and {place.rank} on {host} have one GPU ({place.gpu}): ask for as many "
                    f"GPUs per node as processes_per_node, and set CUDA_VISIBLE_DEVICES in no setup line"
                )
            gpus[place.gpu] = place.rank
        cores = frozenset[int]().union(*(place.cores for place in here))
        wanted = sum(place.num_threads for place in here)
        if len(here) > 1 and len(cores) < wanted and all(place.cores == cores for place in here):
            crowded = crowded or (
                f"all {len(here)} ranks on {host} share the cores {sorted(cores)}, and want {wanted}: a binding of an "
                f"outer job, or a missing --cpus-per-task; set cpus_per_task in the profile"
            )
    return wrong, crowded


# whether the GPUs of this job can be used: the host asks before a run begins
if __name__ == "__main__":
    try:
        choose_device(0)
    except ConfigError as error:
        print(error)
        sys.exit(EXIT_UNUSABLE)
