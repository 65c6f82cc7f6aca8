"""Cuts of the network of a cluster with `--net separate`, each aimed at one run of two nodes."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from real_study import whole_lines
from slurm_cluster import Cluster

TRAINED_STEPS = 20  # of the first attempt, before the cut
HANG_S = 30.0  # hang timeout of a run whose ranks notice the cut first
PATIENT_S = 600.0  # of a run whose cut Slurm must notice first
SEEN_S = 10.0  # from the first step of the next attempt to the end of the cut


class Victim:
    """A run of two nodes that trains, and the cluster that it runs on."""

    def __init__(self, cluster: Cluster, folder: Path, limit_s: float = 420) -> None:
        self.cluster, self.folder = cluster, folder
        self._deadline_s = time.monotonic() + limit_s

    def node(self, rank: int) -> str:
        """The node of that rank in the first attempt. The batch script runs on that of rank 0."""
        lines = whole_lines(self.folder / "verdicts" / f"1-{rank}.jsonl")
        return str(json.loads(lines[0])["host"])

    def steps(self, attempt: int) -> int:
        """Steps that the attempt has reported."""
        path = self.folder / "metrics" / f"{attempt}.jsonl"
        lines = whole_lines(path) if path.exists() else []
        return max((json.loads(line)["step"] for line in lines), default=0)

    def wait_for(self, predicate: Callable[[], object]) -> bool:
        """Wait until it is true, or until the run is done. False: the time was too short."""
        while time.monotonic() < self._deadline_s:
            if predicate() or (self.folder / "result.json").exists():
                return True
            time.sleep(0.2)
        return False

    def until_next_attempt_trains(self) -> None:
        """Wait for the first step of the second attempt, and some seconds more."""
        self.wait_for(lambda: self.steps(2) > 0 or self.steps(3) > 0)
        time.sleep(SEEN_S)


@dataclass(frozen=True)
class Cut:
    """One kind of cut."""

    what: str
    make: Callable[[Victim], None]  # cut, wait, heal
    fewest: int  # attempts, if the cut costs no more than it must
    patient: bool = False  # whether Slurm must notice it before the ranks do


def _blip(victim: Victim) -> None:
    node = victim.node(1)
    victim.cluster.cut_node(node)
    time.sleep(5)
    victim.cluster.heal_node(node)


def _until_restart(rank: int, other: str = "all") -> Callable[[Victim], None]:
    def make(victim: Victim) -> None:
        node = victim.node(rank)
        victim.cluster.cut_node(node, other)
        victim.until_next_attempt_trains()
        victim.cluster.heal_node(node)

    return make


def _isolated(victim: Victim) -> None:
    first, second = victim.node(0), victim.node(1)
    victim.cluster.cut_node(first, second)
    victim.until_next_attempt_trains()
    victim.cluster.heal_node(first)


def _slow(victim: Victim) -> None:
    """Delay and lose packets, or pull the cable again and again if the kernel has no netem."""
    node = victim.node(1)
    if victim.cluster.slow_node(node, "50ms", "2%"):
        time.sleep(20)
        victim.cluster.heal_node(node)
        return
    for _ in range(6):
        victim.cluster.cut_node(node)
        time.sleep(1)
        victim.cluster.heal_node(node)
        time.sleep(2)


def _without_power(rank: int) -> Callable[[Victim], None]:
    def make(victim: Victim) -> None:
        node = victim.node(rank)
        victim.cluster.cut_node(node)
        time.sleep(3)
        victim.cluster.kill_node(node)
        time.sleep(8)
        victim.cluster.heal_node(node)
        victim.cluster.start_node(node)

    return make


def _controller(seconds: float) -> Callable[[Victim], None]:
    def make(victim: Victim) -> None:
        victim.cluster.cut_node("controller")
        time.sleep(seconds)
        victim.cluster.heal_node("controller")

    return make


NODE_CUTS = (
    Cut("rank 1's node, 5 s", _blip, 1),
    Cut("rank 1's node, until the ranks hang", _until_restart(1), 2),
    Cut("the run's two nodes from each other", _isolated, 2),
    Cut("rank 1's node is slow or its cable is loose", _slow, 1),
    Cut("rank 1's node, then its power fails", _without_power(1), 2),
    Cut("rank 0's node, then its power fails", _without_power(0), 2),
    Cut("rank 1's node, until Slurm gives it up", _until_restart(1), 2, patient=True),
    Cut("rank 0's node, until Slurm gives it up", _until_restart(0), 2, patient=True),
    Cut("rank 1's node from the controller", _until_restart(1, "controller"), 2, patient=True),
    Cut("rank 0's node from the controller", _until_restart(0, "controller"), 2, patient=True),
)
CONTROLLER_CUTS = (
    Cut("the controller from all nodes, 8 s", _controller(8), 1),
    Cut("the controller from all nodes, 60 s", _controller(60), 2, patient=True),
)


def read_attempts(run: Path) -> list[dict]:
    """The records of a run's attempts, in their order."""
    files = sorted((run / "attempts").glob("*.json"), key=lambda path: int(path.stem))
    return [json.loads(path.read_text()) for path in files]


def strike(cut: Cut, victim: Victim) -> None:
    """Wait until the run trains, and cut."""
    if victim.wait_for(lambda: victim.steps(1) >= TRAINED_STEPS):
        cut.make(victim)
