"""Choose a rank's device, and find ranks of a node that share a GPU or too few cores."""

import json
import os
import socket
import sys
from dataclasses import dataclass
from typing import NamedTuple

import torch

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.host.gpu_check import EXIT_UNUSABLE, allocated_gpus
from furnace_hpc.host.shared_node.part import RUNS

FOR_CONTEXTS = 0.05  # part of a shared GPU's memory that torch's allocator does not count


@dataclass(frozen=True)
class RankPlacement:
    """Host, GPU and cores of one rank."""

    rank: int
    host: str
    gpu: str
    """Unique id. Empty if the rank is on the CPU."""
    cores: frozenset[int]
    num_threads: int

    @classmethod
    def of_this_process(cls, rank: int, device: torch.device) -> "RankPlacement":
        """Where this process runs."""
        gpu = ""
        if device.type == "cuda":
            gpu = str(torch.cuda.get_device_properties(device).uuid)
        threads = int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads())
        return cls(rank, socket.gethostname(), gpu, frozenset(os.sched_getaffinity(0)), threads)

    def to_json(self) -> str:
        """Text that `from_json` reads."""
        return json.dumps([self.rank, self.host, self.gpu, sorted(self.cores), self.num_threads])

    @classmethod
    def from_json(cls, text: str | bytes) -> "RankPlacement":
        """Read what `to_json` has made."""
        rank, host, gpu, cores, num_threads = json.loads(text)
        return cls(rank, host, gpu, frozenset(cores), num_threads)


class PlacementProblems(NamedTuple):
    """Problems of the ranks' placement. Each is empty if there is none."""

    shared_gpu: str
    """An error: two ranks have the same GPU."""
    few_cores: str
    """A warning: all ranks of a host share fewer cores than they have threads."""


def choose_device(local_rank: int) -> torch.device:
    """Return this rank's GPU, or the CPU. If a rank sees only one GPU, the launcher has chosen it.

    Raises:
        ConfigError: there are fewer GPUs than ranks, or torch cannot use the GPUs that were given.
    """
    cpu = torch.device("cpu")
    if os.environ.get("DS_ACCELERATOR") == "cpu":  # DeepSpeed's own variable
        return cpu
    if not torch.cuda.is_available():
        gpus = allocated_gpus(os.environ)
        if gpus:
            raise ConfigError(
                f"this rank was given GPUs {gpus}, and torch {torch.__version__} can use none. "
                f"Check nvidia-smi on {socket.gethostname()}, and that torch is a CUDA build. Set "
                "DS_ACCELERATOR=cpu to train on the CPU."
            )
        return cpu
    count = torch.cuda.device_count()
    if count > 1 and local_rank >= count:
        raise ConfigError(
            f"local rank {local_rank} has no GPU: it sees {count} GPUs on {socket.gethostname()}. "
            "Request as many GPUs per node as processes_per_node."
        )
    index = local_rank if count > 1 else 0
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    _limit_memory(device)
    return device


def _limit_memory(device: torch.device) -> None:
    """Keep a rank that shares its GPU to its part of the memory.

    Otherwise `micro_batch_size: auto`, or torch's cache, could take what the other runs need.
    """
    runs = int(os.environ.get(RUNS) or 1)
    if runs > 1:
        torch.cuda.set_per_process_memory_fraction((1 - FOR_CONTEXTS) / runs, device)


def find_placement_problems(placements: list[RankPlacement]) -> PlacementProblems:
    """Compare the placements of all ranks. Only the first problem of each kind is returned."""
    by_host: dict[str, list[RankPlacement]] = {}
    for placement in placements:
        by_host.setdefault(placement.host, []).append(placement)
    shared = [_shared_gpu(host, by_host[host]) for host in sorted(by_host)]
    few = [_few_cores(host, by_host[host]) for host in sorted(by_host)]
    return PlacementProblems(next(filter(None, shared), ""), next(filter(None, few), ""))


def _shared_gpu(host: str, placements: list[RankPlacement]) -> str:
    rank_of_gpu: dict[str, int] = {}
    for placement in placements:
        gpu = placement.gpu
        if gpu and gpu in rank_of_gpu:
            return (
                f"ranks {rank_of_gpu[gpu]} and {placement.rank} on {host} have the same GPU "
                f"({gpu}). Request as many GPUs per node as processes_per_node, and do not set "
                "CUDA_VISIBLE_DEVICES in a setup line."
            )
        rank_of_gpu[gpu] = placement.rank
    return ""


def _few_cores(host: str, placements: list[RankPlacement]) -> str:
    cores = frozenset[int]().union(*(placement.cores for placement in placements))
    threads = sum(placement.num_threads for placement in placements)
    all_shared = all(placement.cores == cores for placement in placements)
    if len(placements) > 1 and len(cores) < threads and all_shared:
        return (
            f"all {len(placements)} ranks on {host} share the cores {sorted(cores)}, but have "
            f"{threads} threads. The cause is the binding of an outer job or a missing "
            "--cpus-per-task. Set cpus_per_task in the profile."
        )
    return ""


# The host runs this before a run begins, to check the GPUs of the job.
if __name__ == "__main__":
    try:
        choose_device(0)
    except ConfigError as error:
        print(error)
        sys.exit(EXIT_UNUSABLE)
