"""What a plan is made of: runs, what will be done with each, and what their jobs ask for."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.state import RunStatus, read_status


class Action(StrEnum):
    """What a submission does with one run."""

    START = "start"
    RESUME = "resume"
    RETRY = "retry"
    RESTART = "restart"  # other code, --code new: what is there is put aside
    SKIP = "skip"
    LEAVE = "leave"
    # begun by other code that is not there any more: the whole submission is refused
    REFUSE = "refuse"


class Shape(NamedTuple):
    """What one job asks for. Runs of one shape go into one array."""

    nodes: int
    processes_per_node: int
    timeout_min: int
    partition: str | None

    @property
    def world_size(self) -> int:
        """Ranks of a job."""
        return self.nodes * self.processes_per_node

    def __str__(self) -> str:
        place = f" on {self.partition}" if self.partition else ""
        return (
            f"{self.nodes} nodes x {self.processes_per_node} ranks, {self.timeout_min} min{place}"
        )


@dataclass(frozen=True)
class PlannedRun:
    """One run, its state, and what will be done with it."""

    spec: RunSpec
    folder: RunFolder
    status: RunStatus
    files: RunStatus  # what its own files said, without Slurm
    action: Action
    why: str
    nodes: int
    processes_per_node: int
    facts: dict[str, Any]
    # folder of a finished run of another name, to which the run's folder becomes a link
    adopts: Path | None = None
    # folder of an unfinished run of another name, which is left alone
    unfinished: Path | None = None

    @property
    def shape(self) -> "Shape":
        """What its job asks for."""
        wish = self.spec.resources
        return Shape(self.nodes, self.processes_per_node, wish.timeout_min, wish.partition)

    @property
    def world_size(self) -> int:
        """Ranks of the run."""
        return self.shape.world_size

    @property
    def to_do(self) -> bool:
        """Whether the submission starts it."""
        return self.action in (Action.START, Action.RESUME, Action.RETRY, Action.RESTART)


@dataclass(frozen=True)
class Plan:
    """A whole submission, before anything is done."""

    grid: Grid
    profile: ClusterProfile
    folder: GridFolder
    runs: tuple[PlannedRun, ...]
    snapshot: str = ""  # hash of the code that new runs begin with
    exclude: tuple[str, ...] = ()  # nodes that get none of the runs

    @property
    def to_do(self) -> list[PlannedRun]:
        """The runs that will be started."""
        return [run for run in self.runs if run.to_do]

    @property
    def counts(self) -> Counter[str]:
        """Number of runs per action."""
        return Counter(run.action.value for run in self.runs)

    @property
    def shapes(self) -> dict[Shape, list[int]]:
        """Shape -> indices of its runs: one array each, where the site's limits allow it."""
        shapes: dict[Shape, list[int]] = {}
        for index, run in enumerate(self.runs):
            if run.to_do:
                shapes.setdefault(run.shape, []).append(index)
        return shapes

    @property
    def bill(self) -> tuple[float, float]:
        """Most GPU-hours (GPUs asked for x time limit) of one attempt of each run; and of all attempts it may have."""
        once = everything = 0.0
        for run in self.to_do:
            hours = (
                self.profile.gpus(run.nodes, run.processes_per_node)
                * run.spec.resources.timeout_min
                / 60
            )
            once += hours
            everything += hours * max(1, run.spec.resources.max_attempts - run.status.attempt)
        return once, everything


@dataclass(frozen=True)
class Choices:
    """What the user asked of this submission, beside the grid."""

    code_hash: str
    snapshot: str
    data_root: Path
    retry: frozenset[str] = frozenset()
    new_code: bool = False
    resume_with: Mapping[str, Any] = field(default_factory=dict)
    get_status: Callable[[RunFolder], RunStatus] = read_status
    adopt: bool = True
