"""Describe a partition and its kinds of nodes, and decide whether they can take a run."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.sections.resources import Resources
from furnace_hpc.launch.planning.shared_nodes import runs_per_gpu, runs_per_node


@dataclass(frozen=True)
class NodeKind:
    """Nodes of a partition with the same cores, memory and GPUs."""

    nodes: int
    usable: int  # take jobs now, or when their jobs end
    cpus: int
    memory_mb: int
    gpus: tuple[tuple[str, int], ...] = ()  # type, number; the type is empty if Slurm names none

    def num_gpus(self, gpu_type: str | None = None) -> int:
        """GPUs that a job gets on such a node if it asks for this type, or for any type."""
        return sum(number for kind, number in self.gpus if not gpu_type or kind in (gpu_type, ""))


@dataclass(frozen=True)
class Partition:
    """One partition. Its most frequent nodes with GPUs describe it, or all nodes without GPUs."""

    name: str
    is_default: bool
    is_up: bool
    max_min: int | None
    grace_s: int
    preempt_mode: str
    kinds: tuple[NodeKind, ...] = ()

    @property
    def nodes(self) -> int:
        """All nodes."""
        return sum(kind.nodes for kind in self.kinds)

    @property
    def usable(self) -> int:
        """Nodes that take jobs now, or when their jobs end."""
        return sum(kind.usable for kind in self.kinds)

    @property
    def described(self) -> list[NodeKind]:
        """The nodes with the GPUs that most nodes have."""
        by_gpus: dict[tuple[tuple[str, int], ...], list[NodeKind]] = {}
        for kind in self.kinds:
            by_gpus.setdefault(kind.gpus, []).append(kind)
        groups = [group for gpus, group in by_gpus.items() if gpus] or list(by_gpus.values())
        return max(groups, key=_size, default=[])

    @property
    def cpus(self) -> int:
        """Cores of the smallest of these nodes."""
        return min((kind.cpus for kind in self.described), default=0)

    @property
    def memory_mb(self) -> int:
        """Memory of the smallest of these nodes."""
        return min((kind.memory_mb for kind in self.described), default=0)

    @property
    def gpus(self) -> int:
        """GPUs of each of these nodes, of its most frequent type."""
        return self._gpus[1]

    @property
    def gpu_type(self) -> str:
        """That type. Empty if Slurm names none."""
        return self._gpus[0]

    @property
    def _gpus(self) -> tuple[str, int]:
        gpus = [one for kind in self.described[:1] for one in kind.gpus]
        return max(gpus, key=lambda one: one[1], default=("", 0))

    def refuses(self, profile: ClusterProfile) -> list[str]:
        """What a run asks for that no node has, or too few nodes have. Empty if it can start."""
        problems = []
        types = {kind for node in self.kinds for kind, _ in node.gpus}
        gpu_type = profile.gpu_type
        is_unknown = bool(gpu_type and profile.gpu_flag and types) and not types & {gpu_type, ""}
        if is_unknown or not profile.gpu_flag:
            gpu_type = None
        needs = _needs(profile, gpu_type)
        if profile.nodes > self.nodes:
            problems.append(f"nodes {profile.nodes}, there are {self.nodes}")
        for need in needs:
            most = max(map(need.of_node, self.kinds), default=0)
            if need.amount > most:
                problems.append(f"{need.key} {need.amount}, a node has {most}")
        if is_unknown:
            problems.append(f"gpu_type {profile.gpu_type}, nodes have {', '.join(sorted(types))}")
        fitting = sum(kind.nodes for kind in self.kinds if all(n.is_met_by(kind) for n in needs))
        if not problems and fitting < profile.nodes:
            keys = ", ".join(need.key for need in needs)
            problems.append(
                f"nodes {profile.nodes}, but only {fitting} of {self.nodes} have enough of {keys}"
            )
        return problems


class Need(NamedTuple):
    """What each node of a run must have."""

    key: str  # of the profile
    amount: int
    of_node: Callable[[NodeKind], int]

    def is_met_by(self, kind: NodeKind) -> bool:
        """Whether such a node has enough."""
        return self.amount <= self.of_node(kind)


def runs_of_job(profile: ClusterProfile) -> tuple[int, int]:
    """Runs of a job and of a GPU, as in a submission. 1 if a node is too small for the number."""
    try:
        return runs_per_node(profile, Resources()), runs_per_gpu(profile, Resources())
    except ConfigError:
        return 1, 1


def _needs(profile: ClusterProfile, gpu_type: str | None) -> list[Need]:
    runs, per_gpu = runs_of_job(profile)
    ranks, gpus = profile.processes_per_node * runs, profile.gpus_per_node
    if gpus is None:
        gpus = -(-ranks // per_gpu)
    if not profile.gpu_flag:
        gpus = 0
    cpus = (profile.cpus_per_task or 0) * ranks
    cores = "cpus_per_task x processes_per_node" + " x runs_per_node" * (runs > 1)
    needs = [
        Need("gpus_per_node", gpus, lambda kind: kind.num_gpus(gpu_type)),
        Need(cores, cpus, lambda kind: kind.cpus),
        Need("mem_gb", profile.mem_gb or 0, lambda kind: kind.memory_mb // 1024),
    ]
    return [need for need in needs if need.amount]


def _size(group: list[NodeKind]) -> tuple[int, int]:
    return sum(kind.usable for kind in group), sum(kind.nodes for kind in group)


def node_kinds(nodes: Iterable[tuple[bool, int, int, dict[str, int]]]) -> tuple[NodeKind, ...]:
    """Group equal nodes, given as (usable, cores, MB, GPUs by type)."""
    found: dict[tuple[int, int, tuple[tuple[str, int], ...]], list[bool]] = {}
    for usable, cpus, memory_mb, gpus in nodes:
        found.setdefault((cpus, memory_mb, tuple(sorted(gpus.items()))), []).append(usable)
    return tuple(NodeKind(len(usable), sum(usable), *kind) for kind, usable in found.items())
