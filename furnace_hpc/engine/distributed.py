"""The process group: who this rank is, how the ranks meet, and the few collectives that the training needs."""

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.engine.devices import RankPlacement, choose_device, problems
from furnace_hpc.host.regular_file import read_regular
from furnace_hpc.runs.folder import write_atomically

HANG_TIMEOUT_S = 600.0  # where no config says
GROUP_MARGIN_S = 60.0  # collectives give up later than the watchdog, which gives the better account


@dataclass(frozen=True)
class RankInfo:
    """Where a rank stands, before it has met the others."""

    rank: int
    local_rank: int
    world_size: int
    rendezvous: Path | None
    """File through which rank 0 tells its address; None: MASTER_ADDR and MASTER_PORT of torchrun."""

    @classmethod
    def of_environment(cls) -> "RankInfo":
        """As torchrun says; alone where it says nothing."""
        rank, local, world = (int(os.environ.get(name, default)) for name, default in _TORCHRUN)
        return cls(rank, local, world, None)


_TORCHRUN = (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"))


@dataclass(frozen=True)
class Processes:
    """The ranks of one attempt, met."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is rank 0, the one that writes."""
        return self.rank == 0

    def say(self, words: str) -> None:
        """Print on rank 0. A log that cannot be written is no reason to end a training."""
        if self.is_rank_zero:
            with suppress(OSError):
                print(words, flush=True)

    def barrier(self) -> None:
        """Collective. Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()

    def all_reduce_max(self, *values: float) -> tuple[float, ...]:
        """Collective. Of each value the largest of all ranks'."""
        if self.world_size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tuple(tensor.tolist())

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Collective. Sum a tensor over all ranks, in place, and return it."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """Collective. All ranks' values in order, on every rank."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """Collective. Rank 0's value, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]


def init_process_group(place: RankInfo, hang_timeout_s: float = HANG_TIMEOUT_S) -> Processes:
    """Collective. Start the process group, and DeepSpeed's on top of it.

    A peer that hangs is the watchdog's business, after `hang_timeout_s`; where there is none, collectives give up a
    little later. So that is also the longest work of one rank alone.
    """
    device = choose_device(place.local_rank)
    os.environ.update(
        RANK=str(place.rank),
        LOCAL_RANK=str(place.local_rank),
        WORLD_SIZE=str(place.world_size),
        CROSS_SIZE="1",  # DeepSpeed's checkpoint writers read these three
        CROSS_RANK="0",
        LOCAL_SIZE=os.environ.get("LOCAL_SIZE", str(place.world_size)),
    )
    # Nothing is compiled here; DeepSpeed imports its Muon for every ZeRO engine, and that would
    # load inductor (2 s).
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    if device.type == "cpu":
        # Otherwise the first start compiles a C++ operator that only inference uses (90 s, needs
        # ninja).
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    timeout = timedelta(seconds=hang_timeout_s + GROUP_MARGIN_S)
    backend = "nccl" if device.type == "cuda" else "gloo"
    # NCCL's own monitor would abort a rank that is stuck on its GPU after 480 s, without a word.
    os.environ.setdefault("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", str(round(timeout.total_seconds())))
    if place.rendezvous or "MASTER_ADDR" not in os.environ:
        store = _store(place, timeout)
        dist.init_process_group(
            backend, store=store, rank=place.rank, world_size=place.world_size, timeout=timeout
        )
    else:
        dist.init_process_group(backend, timeout=timeout)
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, timeout=timeout)
    processes = Processes(place.rank, place.local_rank, place.world_size, device)
    check_places(processes)
    return processes


def check_places(processes: Processes) -> None:
    """Collective. Compare where all ranks are; print a warning where they crowd on a few cores.

    Raises:
        ConfigError: two ranks have one GPU.
    """
    mine = RankPlacement.here(processes.rank, processes.device)
    wrong, crowded = problems(processes.gather(mine))
    if wrong:
        raise ConfigError(wrong)
    if crowded:
        processes.say(f"WARNING: {crowded}")


def destroy_process_group() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _store(place: RankInfo, timeout: timedelta) -> Store:
    """Rank 0 opens a store on a free port and publishes the address; no port is ever guessed."""
    if place.rank == 0:
        host = "127.0.0.1" if place.world_size <= 1 or place.rendezvous is None else _address()
        served = TCPStore(
            host, 0, place.world_size, is_master=True, wait_for_workers=False, timeout=timeout
        )
        if place.rendezvous:
            write_atomically(place.rendezvous, json.dumps({"host": host, "port": served.port}))
        store: Store = served
        return store
    if place.rendezvous is None:
        raise RuntimeError(
            f"rank {place.rank} has no rendezvous: start it by torchrun, srun or submit"
        )
    deadline_s = time.monotonic() + timeout.total_seconds()
    while not place.rendezvous.exists():
        if time.monotonic() > deadline_s:
            raise TimeoutError(
                f"rank 0 did not publish its address in {place.rendezvous} within {timeout}"
            )
        list(place.rendezvous.parent.iterdir())  # lets a network file system look again
        time.sleep(0.05)
    address = json.loads(read_regular(place.rendezvous))
    host, port = address["host"], address["port"]
    peer: Store = TCPStore(
        host, port, place.world_size, is_master=False, wait_for_workers=False, timeout=timeout
    )
    return peer


def _address() -> str:
    """This host as its peers know it; Slurm's node name where there is one."""
    return os.environ.get("SLURMD_NODENAME") or (
        "127.0.0.1" if _is_local() else socket.gethostname()
    )


def _is_local() -> bool:
    return os.environ.get("SUBMITIT_EXECUTOR") == "local"
