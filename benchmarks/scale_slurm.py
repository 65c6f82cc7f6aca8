"""A simulated Slurm in virtual time: nodes that fail, arrays, dependencies and requeues.

It reads batch scripts as sbatch does, and answers squeue, sacct, sinfo and scontrol in their
formats. What a job does is up to a `Runner`. Nothing here knows Furnace.
"""

import heapq
import random
import re
import shlex
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import log, sqrt
from typing import Protocol

MIN_JOB_AGE_S = 300  # squeue --states=all lists ended jobs for so long
NO_EXIT = "0:0"


class Runner(Protocol):
    """What jobs do on their nodes."""

    def begin(self, element: "Element") -> float | None:
        """Start. Return the seconds until it ends by itself, or None if it has ended at once."""

    def end(self, element: "Element", cause: str) -> str:
        """End by `done`, `preempted`, `gpu` or `node`.

        Return done, fail, requeue (by scontrol), or restart: Slurm requeues the job by itself.
        """


class Clock:
    """Virtual time. It has no other use of the real one than as its start."""

    def __init__(self, start_unix_s: float) -> None:
        self.now_s = start_unix_s
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        """Do something later."""
        self._count += 1
        heapq.heappush(self._events, (self.now_s + seconds, self._count, do))

    def sleep(self, seconds: float) -> None:
        """Let time pass while a program waits. What happens meanwhile is done afterwards."""
        self.now_s += max(0.0, seconds)

    def run_until(self, is_over: Callable[[], bool]) -> None:
        """Let events happen in their order."""
        while self._events and not is_over():
            at_s, _, do = heapq.heappop(self._events)
            self.now_s = max(self.now_s, at_s)
            do()


@dataclass
class Node:
    """One node, which is given to one element as a whole."""

    name: str
    boot: int = 0
    is_up: bool = True
    element: "Element | None" = None


@dataclass(eq=False)
class Element:
    """One element of an array, or a job without an array (index None)."""

    job: "Job"
    index: int | None
    state: str = "PENDING"
    node: Node | None = None
    starts: int = 0
    started_s: float = 0.0
    ended_s: float = 0.0

    @property
    def job_id(self) -> str:
        """As squeue prints it."""
        return self.job.job_id if self.index is None else f"{self.job.job_id}_{self.index}"


@dataclass(eq=False)
class Job:
    """What one sbatch has submitted."""

    job_id: str
    name: str
    script: str
    parallel: int
    after: tuple[str, ...]
    elements: list[Element] = field(default_factory=list)
    num_open: int = 0  # elements that have not ended
    num_running: int = 0


@dataclass(frozen=True)
class Rates:
    """How often something happens, and how long it lasts."""

    faults_per_1000_node_days: float
    preemptions_per_day: float = 0.0  # of one running element
    share_of_crashes: float = 0.29  # of the faults: the node is lost at once
    # of the lognormal distribution of repairs
    repair_median_days: float = 0.85
    repair_mean_days: float = 5.54


class Slurm:
    """The controller, its nodes and its accounting."""

    def __init__(
        self, clock: Clock, runner: Runner, num_nodes: int, rates: Rates, seed: int, **limits: int
    ) -> None:
        self.clock, self.runner, self.rates = clock, runner, rates
        self.max_array_size = limits.get("max_array_size", 1001)
        self.calls: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.jobs: dict[str, Job] = {}
        self.allocations: list[tuple[str, str, float]] = []  # array, element, seconds
        self._nodes = [Node(f"node{number:04d}") for number in range(1, num_nodes + 1)]
        self._free = deque(self._nodes)
        self._pending: deque[Element] = deque()
        self._chance = random.Random(seed)
        self._next_id, self._num_open = 1000, 0
        self._plan_fault()

    @property
    def is_idle(self) -> bool:
        """Whether no job waits or runs."""
        return self._num_open == 0

    def submit(self, script: str) -> str:
        """Run sbatch. Return what it prints."""
        self.calls["sbatch"] += 1
        flags = read_flags(script)
        indices, parallel = read_array(flags.get("array", ""))
        if indices and indices[-1] >= self.max_array_size:
            raise ValueError("Invalid job array specification")
        after = tuple(flags.get("dependency", "").removeprefix("afterany:").split(":"))
        job = Job(str(self._next_id), flags["job-name"], script, parallel, after)
        self._next_id += max(1, len(indices))
        job.elements = [Element(job, index) for index in indices or [None]]
        job.num_open = len(job.elements)
        self._num_open += job.num_open
        self.jobs[job.job_id] = job
        self._pending.extend(job.elements)
        self.clock.after(1, self._schedule)
        return f"Submitted batch job {job.job_id}"

    def requeue(self, element: Element) -> None:
        """Run `scontrol requeue` of a job that runs."""
        self.calls["scontrol"] += 1
        self._leave_node(element)
        self._back_to_queue(element)

    def queue(self, between: str) -> str:
        """Print squeue's lines: id, index, state, reason, start, partition, name."""
        lines = []
        for job in self.jobs.values():
            for element in job.elements:
                ended_long_ago = element.ended_s and (
                    self.clock.now_s - element.ended_s > MIN_JOB_AGE_S
                )
                if not ended_long_ago:
                    index = "N/A" if element.index is None else str(element.index)
                    reason = "Dependency" if self._waits(element.job) else "None"
                    parts = (job.job_id, index, element.state, reason, "N/A", "gpu", job.name)
                    lines.append(between.join(parts))
        return "\n".join(lines) + "\n"

    def accounting(self, job_ids: set[str], between: str) -> str:
        """Print sacct's lines: id, state, exit code, name."""
        chosen = [self.jobs[job_id] for job_id in job_ids if job_id in self.jobs]
        lines = []
        for job in chosen:
            for one in job.elements:
                lines.append(between.join((one.job_id, one.state, NO_EXIT, job.name)))
        return "".join(line + "\n" for line in lines)

    def allocated(self, job_ids: set[str]) -> str:
        """Print sacct's lines: id, cluster, elapsed seconds, resources, end."""
        rows = [one for one in self.allocations if one[0] in job_ids]
        return "".join(f"{job}|simulated|{s:.0f}|gres/gpu=8|2026-01-01\n" for _, job, s in rows)

    def _waits(self, job: Job) -> bool:
        return any(self.jobs[other].num_open for other in job.after if other in self.jobs)

    def _schedule(self) -> None:
        """Start what may start, in the order of the queue."""
        kept: deque[Element] = deque()
        while self._pending and self._free:
            element = self._pending.popleft()
            job = element.job
            if self._waits(job) or job.num_running >= job.parallel:
                kept.append(element)
            else:
                self._start(element)
        self._pending.extendleft(reversed(kept))

    def _start(self, element: Element) -> None:
        node = self._free.popleft()
        node.element, element.node = element, node
        element.state, element.started_s = "RUNNING", self.clock.now_s
        element.starts += 1
        element.job.num_running += 1
        took_s = self.runner.begin(element)
        if took_s is None:
            self._finish(element, "COMPLETED")
            return
        start = element.starts
        self.clock.after(took_s, lambda: self._end(element, start, "done"))
        if self.rates.preemptions_per_day:
            wait_s = self._chance.expovariate(self.rates.preemptions_per_day / 86_400)
            if wait_s < took_s:
                self.clock.after(wait_s, lambda: self._end(element, start, "preempted"))

    def _end(self, element: Element, start: int, cause: str) -> None:
        """End an element unless it has ended since that start in another way."""
        if element.starts != start or element.state != "RUNNING":
            return
        self.faults[cause] += cause != "done"
        decision = self.runner.end(element, cause)
        if decision == "restart":
            self._leave_node(element)
            self._back_to_queue(element)
        elif decision == "requeue":
            self.requeue(element)
        else:
            self._finish(element, "COMPLETED" if decision == "done" else "FAILED")

    def _back_to_queue(self, element: Element) -> None:
        element.state = "PENDING"
        self._pending.append(element)
        self.clock.after(60, self._schedule)  # Slurm holds requeued jobs for a moment

    def _finish(self, element: Element, state: str) -> None:
        self._leave_node(element)
        element.state, element.ended_s = state, self.clock.now_s
        element.job.num_open -= 1
        self._num_open -= 1
        self.clock.after(1, self._schedule)

    def _leave_node(self, element: Element) -> None:
        node = element.node
        assert node is not None
        node.element = element.node = None
        took_s = self.clock.now_s - element.started_s
        self.allocations.append((element.job.job_id, element.job_id, took_s))
        element.job.num_running -= 1
        if node.is_up:
            self._free.append(node)

    def _plan_fault(self) -> None:
        rate = self.rates.faults_per_1000_node_days / 1000 / 86_400 * len(self._nodes)
        if rate:
            self.clock.after(self._chance.expovariate(rate), self._fault)

    def _fault(self) -> None:
        """A node breaks: it is lost at once, or its GPU or network fails the ranks."""
        node = self._chance.choice(self._nodes)
        is_crash = self._chance.random() < self.rates.share_of_crashes
        self._plan_fault()
        if not node.is_up:
            return
        node.is_up = False
        if node in self._free:
            self._free.remove(node)
        days = repair_days(self._chance, self.rates)
        self.clock.after(days * 86_400, lambda: self._repaired(node))
        if node.element is not None:
            cause = "node" if is_crash else "gpu"
            self._end(node.element, node.element.starts, cause)
        node.boot += 1

    def _repaired(self, node: Node) -> None:
        node.is_up = True
        self._free.append(node)
        self._schedule()


def repair_days(chance: random.Random, rates: Rates) -> float:
    """Days until a node is back, from a lognormal distribution of this median and mean."""
    sigma = sqrt(2 * log(rates.repair_mean_days / rates.repair_median_days))
    return chance.lognormvariate(log(rates.repair_median_days), sigma)


def read_flags(script: str) -> dict[str, str]:
    """The #SBATCH lines of a batch script."""
    found = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", script, re.MULTILINE)
    return {name: "".join(shlex.split(value)) for name, value in found}


def read_array(text: str) -> tuple[list[int], int]:
    """Indices of `0-3,7%2`, and how many run at a time."""
    ranges, _, parallel = text.partition("%")
    indices: list[int] = []
    for part in filter(None, ranges.split(",")):
        first, _, last = part.partition("-")
        indices += range(int(first), int(last or first) + 1)
    return indices, int(parallel or 10**9)
