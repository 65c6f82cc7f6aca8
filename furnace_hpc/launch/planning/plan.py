"""The types of a plan: its runs, what is done with each, and what their jobs ask for."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.parsing.plural import counted
from furnace_hpc.config.parsing.sbatch_flags import Flag, as_words
from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.host.attempt_spec import AttemptSpec
from furnace_hpc.monitor.forecast.recorded import Forecast
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.records.attempts import AttemptHistory
from furnace_hpc.runs.state import RunStatus, read_status


class Action(StrEnum):
    """What a submission does with one run."""

    START = "start"
    RESUME = "resume"
    RETRY = "retry"
    RESTART = (
        "restart"  # other code or weights, and `--code new`: the old folder moves to `replaced`
    )
    SKIP = "skip"
    LEAVE = "leave"
    WAIT = "wait"  # for the runs that it takes its first weights from
    REFUSE = "refuse"  # no snapshot of the run's code: the whole submission is refused

    @property
    def is_start(self) -> bool:
        """Whether the submission starts the run."""
        return self in (Action.START, Action.RESTART) or self.resumes

    @property
    def resumes(self) -> bool:
        """Whether the run resumes from its checkpoints."""
        return self in (Action.RESUME, Action.RETRY)


class Shape(NamedTuple):
    """What one job asks for. Runs with the same shape share an array."""

    nodes: int
    processes_per_node: int
    timeout_min: int
    partition: str | None
    sbatch: tuple[Flag, ...] = ()  # further flags, of the profile and the grid
    runs_per_node: int = 1  # more than 1: a job has several runs, on one node
    runs_per_gpu: int = 1  # more than 1: a GPU has several runs of one rank

    @classmethod
    def read(cls, fields: Sequence[Any]) -> "Shape":
        """Read the shape of a row in rows.jsonl. JSON has lists for tuples."""
        return cls(*(_hashable(field) for field in fields))

    @property
    def world_size(self) -> int:
        """Number of ranks of a run."""
        return self.nodes * self.processes_per_node

    @property
    def ranks_per_node(self) -> int:
        """Ranks of all runs on a node."""
        return self.processes_per_node * self.runs_per_node

    @property
    def gpus_in_use(self) -> int:
        """GPUs that the ranks of a node use, unless they have several each."""
        return -(-self.ranks_per_node // self.runs_per_gpu)

    def num_jobs(self, num_runs: int) -> int:
        """Number of jobs that so many runs need."""
        return -(-num_runs // self.runs_per_node)

    def describe(self, num_runs: int) -> str:
        """Describe so many runs of this shape: `40 runs in 10 jobs of 4, each 1 node x 1 rank`."""
        runs = counted(num_runs, "run")
        if self.runs_per_node == 1:
            return f"{runs} of {self}"
        jobs = counted(self.num_jobs(num_runs), "job")
        shared = f", {self.runs_per_gpu} per GPU" if self.runs_per_gpu > 1 else ""
        return f"{runs} in {jobs} of {self.runs_per_node}{shared}, each {self}"

    def __str__(self) -> str:
        place = f" on {self.partition}" if self.partition else ""
        flags = "".join(f" {word}" for word in as_words(self.sbatch))
        nodes = counted(self.nodes, "node")
        ranks = counted(self.processes_per_node, "rank")
        return f"{nodes} x {ranks}, {self.timeout_min} min{place}{flags}"


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


@dataclass(frozen=True)
class PlannedRun:
    """One run, its state, and what is done with it."""

    spec: RunSpec
    folder: RunFolder
    status: RunStatus
    files: RunStatus  # state from the run's own files, without Slurm
    action: Action
    why: str
    shape: Shape
    attempt: AttemptSpec  # of its next attempt
    history: AttemptHistory = AttemptHistory()
    # finished run of another name: the run's folder becomes a link to it
    adopts: Path | None = None
    # unfinished run of another name: it stays as it is
    unfinished: Path | None = None

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.shape.world_size

    @property
    def to_do(self) -> bool:
        """Whether the submission starts it."""
        return self.action.is_start


class Scope(NamedTuple):
    """What the user chose of a grid with runs that are submitted later: they stay in this scope.

    These are runs of the table after trials, and runs that start from the weights of others.
    """

    variants: list[str]
    seeds: list[str]
    data_root: str
    adopt: bool
    new_code: bool = False  # whether results and choices of older code do not count
    canary: bool = False  # whether each kind of run starts with a canary
    retry: list[str] = []  # failed runs to retry, if canaries came first
    resume_with: dict[str, Any] = {}  # likewise


@dataclass(frozen=True)
class Plan:
    """A whole submission, before anything is written."""

    grid: Grid
    profile: ClusterProfile
    folder: GridFolder
    runs: tuple[PlannedRun, ...]
    snapshot: str = ""  # hash of the code that new runs begin with
    exclude: tuple[str, ...] = ()  # nodes that get none of the runs
    scope: Scope | None = None  # if runs follow later
    num_waiting: int = 0  # rows (on each pack) whose trials have not chosen values
    tuning: tuple[str, ...] = ()  # lines about choices, for the user
    notes: tuple[str, ...] = ()  # lines about canaries, time limits and the forecast
    forecast: Forecast | None = None  # None if no run of these kinds was measured

    @property
    def to_do(self) -> list[PlannedRun]:
        """The runs that the submission starts."""
        return [run for run in self.runs if run.to_do]

    @property
    def num_later(self) -> int:
        """How much waits: rows for values, and runs for weights."""
        return self.num_waiting + self.counts[Action.WAIT.value]

    @property
    def counts(self) -> Counter[str]:
        """Number of runs per action."""
        return Counter(run.action.value for run in self.runs)

    @property
    def shapes(self) -> dict[Shape, list[int]]:
        """Shape -> indices of its runs. Each becomes one array if the site's limits allow it."""
        shapes: dict[Shape, list[int]] = {}
        for index, run in enumerate(self.runs):
            if run.to_do:
                shapes.setdefault(run.shape, []).append(index)
        return shapes

    @property
    def gpu_hours(self) -> tuple[float, float]:
        """Upper bounds (GPUs x time limit): of one attempt per run, and of all attempts left."""
        once = everything = 0.0
        for run in self.to_do:
            resources = run.spec.resources
            hours = run.attempt.gpus * run.shape.timeout_min / 60
            once += hours
            everything += hours * max(1, resources.max_attempts - run.status.attempt)
        return once, everything

    @property
    def node_hours(self) -> float:
        """Upper bound of one attempt per run. Runs that share a node count it once."""
        return sum(
            shape.num_jobs(len(rows)) * shape.nodes * shape.timeout_min / 60
            for shape, rows in self.shapes.items()
        )


@dataclass(frozen=True)
class Choices:
    """The user's choices for this submission, besides the grid."""

    code_hash: str
    snapshot: str
    data_root: Path
    retry: frozenset[str] = frozenset()
    new_code: bool = False
    resume_with: Mapping[str, Any] = field(default_factory=dict)
    get_status: Callable[[RunFolder], RunStatus] = read_status
    adopt: bool = True
    canary: bool = False  # first one run of each kind, for a few steps
    # the longest time limit of a partition, in minutes. None if it has none, or is not known
    longest_min: Callable[[str | None], int | None] = lambda _: None
