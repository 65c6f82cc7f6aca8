"""A partition and the kinds of its nodes: which of them can take what a run asks for. Pure."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from furnace_hpc.config.cluster import ClusterProfile


@dataclass(frozen=True)
class NodeKind:
    """Nodes of a partition that are alike."""

    nodes: int
    usable: int  # take jobs now, or will when their jobs end
    cpus: int
    memory_mb: int
    gpus: tuple[tuple[str, int], ...] = ()  # type, number; the type is empty where there is none

    def num_gpus(self, gpu_type: str | None = None) -> int:
        """GPUs of a node that a job gets which asks for this type, or for none; no type is all types."""
        return sum(number for kind, number in self.gpus if not gpu_type or kind in (gpu_type, ""))


@dataclass(frozen=True)
class Partition:
    """One partition. The nodes that it is described by are the most numerous of those with GPUs, else all."""

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
        """Nodes that take jobs now, or will when their jobs end."""
        return sum(kind.usable for kind in self.kinds)

    @property
    def described(self) -> list[NodeKind]:
        """The nodes with the GPUs that most have."""
        by_gpus: dict[tuple[tuple[str, int], ...], list[NodeKind]] = {}
        for kind in self.kinds:
            by_gpus.setdefault(kind.gpus, []).append(kind)
        groups = [group for gpus, group in by_gpus.items() if gpus] or list(by_gpus.values())
        most = [(sum(k.usable for k in group), sum(k.nodes for k in group)) for group in groups]
        return groups[most.index(max(most))] if groups else []

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
        """GPUs of each of these nodes, of the type that it has most of."""
        return self._gpus[1]

    @property
    def gpu_type(self) -> str:
        """That type; empty where there is none."""
        return self._gpus[0]

    @property
    def _gpus(self) -> tuple[str, int]:
        gpus = self.described[0].gpus if self.described else ()
        return max(gpus, key=lambda one: one[1], default=("", 0))

    def refuses(self, profile: ClusterProfile) -> list[str]:
        """What a run asks for that no node has, or too few nodes; empty: it can start."""
        gpu_type = profile.gpu_type if profile.gpu_flag else None
        types = {kind for node in self.kinds for kind, _ in node.gpus}
        unknown = gpu_type is not None and bool(types) and not types & {gpu_type, ""}
        asked = _asked(profile, None if unknown else gpu_type)
        words = (
            [f"nodes {profile.nodes}, there are {self.nodes}"] if profile.nodes > self.nodes else []
        )
        for name, (wish, of_node) in asked.items():
            most = max(map(of_node, self.kinds), default=0)
            if wish > most:
                words.append(f"{name} {wish}, a node has {most}")
        if unknown:
            words.append(f"gpu_type {gpu_type}, nodes have {', '.join(sorted(types))}")
        fit = sum(
            kind.nodes
            for kind in self.kinds
            if all(wish <= of_node(kind) for wish, of_node in asked.values())
        )
        if not words and fit < profile.nodes:
            words.append(
                f"nodes {profile.nodes}, and {fit} of {self.nodes} have all of {', '.join(asked)}"
            )
        return words


def _asked(
    profile: ClusterProfile, gpu_type: str | None
) -> dict[str, tuple[int, Callable[[NodeKind], int]]]:
    """What each node of a run must have: key of the profile -> how much, and where a node has it."""
    ranks = profile.processes_per_node
    gpus = ranks if profile.gpus_per_node is None else profile.gpus_per_node
    wishes: dict[str, tuple[int, Callable[[NodeKind], int]]] = {
        "gpus_per_node": (gpus if profile.gpu_flag else 0, lambda kind: kind.num_gpus(gpu_type)),
        "cpus_per_task x processes_per_node": (
            (profile.cpus_per_task or 0) * ranks,
            lambda kind: kind.cpus,
        ),
        "mem_gb": (profile.mem_gb or 0, lambda kind: kind.memory_mb // 1024),
    }
    return {name: wish for name, wish in wishes.items() if wish[0]}


def node_kinds(nodes: Iterable[tuple[bool, int, int, dict[str, int]]]) -> tuple[NodeKind, ...]:
    """Nodes (usable, cores, MB, GPUs by type) put together where they are alike."""
    found: dict[tuple[int, int, tuple[tuple[str, int], ...]], list[bool]] = {}
    for usable, cpus, memory_mb, gpus in nodes:
        found.setdefault((cpus, memory_mb, tuple(sorted(gpus.items()))), []).append(usable)
    return tuple(NodeKind(len(usable), sum(usable), *kind) for kind, usable in found.items())
