"""The process group: how ranks find each other, and the collectives of the training."""

import os
import socket
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.engine.ranks import flight_recorder
from furnace_hpc.engine.ranks.devices import RankPlacement, choose_device, find_placement_problems
from furnace_hpc.engine.ranks.interface import set_gloo_interface
from furnace_hpc.engine.ranks.rendezvous import Address, publish, wait_for_address
from furnace_hpc.host.lifecycle import START_S

HANG_TIMEOUT_S = 600.0  # if no config sets it
GROUP_MARGIN_S = 60.0  # collectives time out later than the watchdog, which records more details


@dataclass(frozen=True)
class RankInfo:
    """Identity of a rank, before it has met the others."""

    rank: int
    local_rank: int
    world_size: int
    rendezvous: Path | None
    """File in which rank 0 publishes its address. None: torchrun's MASTER_ADDR and MASTER_PORT."""

    @classmethod
    def from_environment(cls) -> "RankInfo":
        """Read torchrun's variables. Without them this is the only rank."""
        rank, local, world = (int(os.environ.get(name, default)) for name, default in _TORCHRUN)
        return cls(rank, local, world, None)


_TORCHRUN = (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"))


@dataclass(frozen=True)
class PendingMax:
    """The largest values of all ranks, which are perhaps not known yet."""

    values: Any
    """What this rank has sent. The others' values replace it."""
    work: Any = None

    def wait(self) -> tuple[float, ...]:
        """Wait until all ranks have sent theirs. Return the largest."""
        if self.work is not None:
            self.work.wait()
        return tuple(float(value) for value in self.values)


@dataclass(frozen=True)
class Processes:
    """The process group of one attempt, as one rank sees it.

    Values of the host travel over gloo, tensors of the training over the device's own backend.
    """

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    control: Any = None
    """Group for values of the host. It has gloo, so nothing waits for a GPU. None for one rank."""

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is rank 0, which writes the files."""
        return self.rank == 0

    def print_once(self, message: str) -> None:
        """Print on rank 0. A full disk below the log does not end the training."""
        if self.is_rank_zero:
            with suppress(OSError):
                print(message, flush=True)

    def end_start(self, hang_timeout_s: float) -> None:
        """Replace the long time limit of collectives in the start by the one of the training."""
        if self.world_size > 1:
            _set_timeouts(_collective_timeout(hang_timeout_s))

    def barrier(self) -> None:
        """Collective. Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier(group=self.control)

    def all_reduce_max(self, *values: float) -> tuple[float, ...]:
        """Collective. The largest of all ranks, for each value."""
        return self.begin_all_reduce_max(*values).wait()

    def begin_all_reduce_max(self, *values: float) -> "PendingMax":
        """Collective. Begin to find the largest of all ranks, for each value."""
        if self.world_size == 1:
            return PendingMax(values)
        tensor = torch.empty(len(values), dtype=torch.float64)
        shared = tensor.numpy()
        shared[:] = values
        maximum = dist.ReduceOp.MAX
        work = dist.all_reduce(tensor, op=maximum, group=self.control, async_op=True)
        return PendingMax(shared, work)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Collective. Sum a tensor over all ranks, in place, and return it."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """Collective. The values of all ranks in order, on every rank."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def broadcast(self, value: Any) -> Any:
        """Collective. Rank 0's value, on every rank."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]


def init_process_group(
    rank_info: RankInfo, hang_timeout_s: float = HANG_TIMEOUT_S, collectives: Path | None = None
) -> Processes:
    """Collective. Start torch's process group, and DeepSpeed's on top of it.

    The watchdog kills a hung rank after START_S, or after `hang_timeout_s` if that is longer.
    `Processes.end_start` changes this after the first step. Without a watchdog, collectives time
    out a little later. So one rank may work alone for at most that long.

    Args:
        rank_info: of this process.
        hang_timeout_s: time limit of a rank after the first step.
        collectives: beginning of the path to which a hung rank's last collectives are written.

    Raises:
        ConfigError: two ranks have the same GPU.
    """
    device = choose_device(rank_info.local_rank)
    timeout = _collective_timeout(max(START_S, hang_timeout_s))
    _set_environment(rank_info, device, timeout)
    flight_recorder.set_variables(os.environ, collectives)
    import deepspeed

    if device.type == "cpu":
        # Otherwise the first start compiles a C++ operator for inference (90 s, needs ninja).
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if device.type == "cuda" else "gloo"
    with ExitStack() as until_all_met:
        store = _open_store(rank_info, timeout, until_all_met)
        # NCCL's start would fail with a message that names neither ranks nor the fix.
        check_placements(store, RankPlacement.of_this_process(rank_info.rank, device), rank_info)
    if rank_info.world_size > 1:
        set_gloo_interface()
    dist.init_process_group(
        backend,
        store=store,
        rank=rank_info.rank,
        world_size=rank_info.world_size,
        timeout=timeout,
    )
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, timeout=timeout)
    control = None
    if rank_info.world_size > 1:
        # DeepSpeed makes this group when it needs it, with torch's own time limits: 600 s of NCCL.
        deepspeed.utils.groups._get_data_parallel_group()
        control = dist.new_group(backend="gloo", timeout=timeout)
        _set_timeouts(timeout)
    return Processes(rank_info.rank, rank_info.local_rank, rank_info.world_size, device, control)


def _collective_timeout(limit_s: float) -> timedelta:
    """The time limit of collectives, if the watchdog kills a rank after `limit_s`."""
    return timedelta(seconds=limit_s + GROUP_MARGIN_S)


def _set_timeouts(timeout: timedelta) -> None:
    """Set the time limit of later collectives of all groups."""
    c10d = dist.distributed_c10d
    for group in list(c10d._world.pg_map):
        c10d._set_pg_timeout(timeout, group)


def _set_environment(rank_info: RankInfo, device: torch.device, timeout: timedelta) -> None:
    """Set what DeepSpeed and NCCL read. Call it before the import of DeepSpeed."""
    # DeepSpeed uses the GPU with this number. A rank that sees one GPU has number 0.
    gpu_or_rank = rank_info.local_rank if device.index is None else device.index
    os.environ.update(
        RANK=str(rank_info.rank),
        LOCAL_RANK=str(gpu_or_rank),
        WORLD_SIZE=str(rank_info.world_size),
        CROSS_SIZE="1",  # DeepSpeed's checkpoint writers read these three
        CROSS_RANK="0",
        LOCAL_SIZE=os.environ.get("LOCAL_SIZE", str(rank_info.world_size)),
    )
    # Nothing is compiled here. But DeepSpeed imports its Muon for every ZeRO engine, which loads
    # inductor (2 s).
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # NCCL's own monitor would silently abort a rank that is stuck on its GPU after 480 s.
    os.environ.setdefault("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", str(round(timeout.total_seconds())))


def check_placements(store: Store, own: RankPlacement, rank_info: RankInfo) -> None:
    """Collective. Compare the placements of all ranks. Warn if ranks share too few cores.

    It uses the store alone, so it works before the process group exists.

    Raises:
        ConfigError: two ranks have the same GPU.
    """
    if rank_info.rank == 0:
        placements = [own]
        for rank in range(1, rank_info.world_size):
            placements.append(RankPlacement.from_json(store.get(f"furnace/placement-{rank}")))
        problems = find_placement_problems(placements)
        store.set("furnace/shared_gpu", problems.shared_gpu)
        if problems.few_cores:
            with suppress(OSError):  # a full disk below the log
                print(f"WARNING: {problems.few_cores}", flush=True)
    else:
        store.set(f"furnace/placement-{rank_info.rank}", own.to_json())
    shared_gpu = store.get("furnace/shared_gpu").decode()
    if shared_gpu:
        raise ConfigError(shared_gpu)


def destroy_process_group() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _open_store(rank_info: RankInfo, timeout: timedelta, until_all_met: ExitStack) -> Store:
    """Open the store of the process group. Rank 0 serves it, the others connect.

    Ranks that pass the address on to others do so until `until_all_met` ends.
    """
    if rank_info.rendezvous is None and "MASTER_ADDR" in os.environ:  # torchrun
        store: Store = next(
            rendezvous("env://", rank_info.rank, rank_info.world_size, timeout=timeout)
        )[0]
        store.set_timeout(timeout)
        return store
    if rank_info.rank == 0:
        return _serve_store(rank_info, timeout, until_all_met)
    if rank_info.rendezvous is None:
        raise RuntimeError(
            f"rank {rank_info.rank} has no rendezvous. Start it with torchrun, srun or `furnace "
            "submit`."
        )
    (host, port), is_open = wait_for_address(
        rank_info.rendezvous, rank_info.local_rank, rank_info.world_size, timeout.total_seconds()
    )
    until_all_met.enter_context(is_open)
    store = TCPStore(
        host, port, rank_info.world_size, is_master=False, wait_for_workers=False, timeout=timeout
    )
    return store


def _serve_store(rank_info: RankInfo, timeout: timedelta, until_all_met: ExitStack) -> Store:
    """Serve on a port that the system chooses, and publish the address in the rendezvous file."""
    host = "127.0.0.1"
    if rank_info.world_size > 1 and rank_info.rendezvous:
        host = _own_address()
    server = TCPStore(
        host, 0, rank_info.world_size, is_master=True, wait_for_workers=False, timeout=timeout
    )
    if rank_info.rendezvous:
        until_all_met.enter_context(publish(rank_info.rendezvous, Address(host, server.port)))
    store: Store = server
    return store


def _own_address() -> str:
    """The name of this host for its peers: Slurm's node name, or the host name."""
    node = os.environ.get("SLURMD_NODENAME")
    if node:
        return node
    if os.environ.get("SUBMITIT_EXECUTOR") == "local":
        return "127.0.0.1"
    return socket.gethostname()
