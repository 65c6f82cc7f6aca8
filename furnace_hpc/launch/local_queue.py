"""Run a plan in a queue on this machine.

Runs wait until cores or GPUs are free. Their ranks are forked from a process that has imported
torch and DeepSpeed, see ranks/. After Ctrl-C, TERM or HUP the ranks save a checkpoint and exit. A
second signal kills them.
"""

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.host import lifecycle
from furnace_hpc.host.portable import ENVIRONMENT as PORTABLE
from furnace_hpc.host.shared_node.part import RUNS
from furnace_hpc.host.shared_node.sharing import (
    MPS,
    PIPE,
    TIME_SLICING,
    are_exclusive,
    list_cards,
)
from furnace_hpc.launch.local_progress import QueueProgress
from furnace_hpc.launch.local_ranks.jobs import Job, RankStarter, Task, rank_environment
from furnace_hpc.launch.planning.plan import Plan, PlannedRun
from furnace_hpc.launch.planning.shared_nodes import local_runs_per_gpu, local_width
from furnace_hpc.launch.submission import write_submission
from furnace_hpc.runs.journal import Submission
from furnace_hpc.runs.trust import check_place, check_trusted

POLL_S = 0.25
GPU_RUN_THREADS = 4
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Slots:
    """The number of runs at a time, and each one's share of this machine."""

    width: int
    num_threads: int
    gpus: tuple[tuple[int, ...], ...]  # of each slot; empty without GPUs

    def limited(self, width: int | None) -> "Slots":
        """Return slots for so many runs at a time. On GPUs not for more than have their own."""
        if width is None:
            return self
        if self.gpus:
            width = min(width, self.width)
        return replace(self, width=width)

    def gpus_of(self, slot: int) -> tuple[int, ...]:
        """Return the GPUs of one slot."""
        return self.gpus[slot] if self.gpus else ()

    def sharing(self, slots: Collection[int], gpus: tuple[int, ...]) -> int:
        """Return how many of these slots have these GPUs."""
        return sum(self.gpus_of(slot) == gpus for slot in slots)

    def cost_of(self, slot: int) -> int | float:
        """Return the number of GPUs of a slot: below 1 if it shares its GPU."""
        gpus = self.gpus_of(slot)
        runs = self.sharing(range(self.width), gpus) if gpus else 1
        return len(gpus) / runs if runs > 1 else len(gpus)

    def best(self, free: Collection[int]) -> int:
        """Return a free slot: one whose GPU has the fewest runs."""
        busy = set(range(self.width)).difference(free)
        return min(free, key=lambda slot: (self.sharing(busy, self.gpus_of(slot)), slot))


@dataclass
class Running:
    """One active run."""

    run: PlannedRun
    attempt: int
    slot: int
    job: Job
    is_noted: bool = False  # whether the journal and the lease name its process


class Queue:
    """Start runs in order, `width` at a time."""

    def __init__(
        self, plan: Plan, submission: Submission, slots: Slots, progress: QueueProgress
    ) -> None:
        self._plan, self._submission = plan, submission
        self._slots, self._progress = slots, progress
        self._starter = RankStarter(plan.profile, submission.path)
        # read now: others might change the file later
        self._codes = [Path(row.code) for row in submission.rows]
        self._waiting = deque(index for index, run in enumerate(plan.runs) if run.to_do)
        self._running: list[Running] = []

    def work(self) -> bool:
        """Run everything. Return False if a signal stopped it."""
        with _stop_requests() as requests, self._starter:
            try:
                return self._work(requests)
            except BaseException:  # such as a full disk: ranks must not continue alone
                self._stop(requests)
                raise

    def _work(self, requests: list[int]) -> bool:
        while self._waiting or self._running:
            if requests:
                self._stop(requests)
                return False
            free = set(range(self._slots.width)) - {running.slot for running in self._running}
            while free and self._waiting:
                slot = self._slots.best(free)
                free.remove(slot)
                self._start(self._waiting.popleft(), slot)
            self._poll()
        return True

    def _poll(self) -> None:
        for sentence in self._starter.poll():
            self._progress.print(sentence)
        self._note_started()
        self._reap()
        self._progress.update([(running.run, running.attempt) for running in self._running])
        time.sleep(POLL_S)

    def _start(self, index: int, slot: int) -> None:
        run, code = self._plan.runs[index], self._codes[index]
        self._check(run.folder.path, code)
        gpus = self._slots.gpus_of(slot)
        if run.spec.config.portable:
            gpus = ()
        try:
            attempt = self._begin(run, self._slots.cost_of(slot) if gpus else 0)
        except lifecycle.Busy as busy:
            self._progress.print(f"{run.folder.run_id}: left alone, {busy}")
            return
        job = self._start_ranks(run, attempt, code, gpus)
        self._running.append(Running(run, attempt, slot, job))
        self._note_started()

    def _note_started(self) -> None:
        """Give the leases of started runs to their controllers. Until then this process has it."""
        for running in self._running:
            pid, run, attempt = running.job.pid, running.run, running.attempt
            if pid is not None and not running.is_noted:
                running.is_noted = True
                lifecycle.transfer_lease(str(run.folder.path), attempt, pid)
                self._submission.note("started", run_id=run.folder.run_id, attempt=attempt, pid=pid)

    def _begin(self, run: PlannedRun, gpus: int | float) -> int:
        lifecycle.write_spec(str(run.folder.path), run.spec.model_dump_json())
        how = MPS if PIPE in os.environ else f"{TIME_SLICING}: the local queue starts no MPS"
        sharing = how if 0 < gpus < 1 else ""
        spec = run.attempt._replace(gpus=gpus, gpu_sharing=sharing)
        record = spec.record(job_id=None, submission=str(self._submission.path))
        return lifecycle.begin(str(run.folder.path), record)

    def _start_ranks(self, run: PlannedRun, attempt: int, code: Path, gpus: tuple[int, ...]) -> Job:
        shared = rank_environment(code, self._slots.num_threads)
        shared["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
        shared[RUNS] = str(self._slots.sharing(range(self._slots.width), gpus) if gpus else 1)
        if run.spec.config.portable:
            shared |= PORTABLE
        own = {
            "FURNACE_RUN_DIR": str(run.folder.path.resolve()),
            "FURNACE_ATTEMPT": str(attempt),
            "SUBMITIT_LOCAL_NTASKS": str(run.world_size),
        }
        return self._starter.start(
            Task(run.folder.run_id, code, run.world_size, shared, own, on_gpus=bool(gpus))
        )

    def _check(self, run: Path, code: Path) -> None:
        """Raise ConfigError if others could have changed what a start executes.

        Hours may have passed since the submission. After this check they cannot change it, because
        no folder on the way lets them.
        """
        root = self._submission.path.parent.parent.parent
        check_place(self._submission.path, root)
        check_place(run.resolve(), root)
        check_trusted(code, root)

    def _reap(self) -> None:
        """Remove ended runs from the list, and record how they ended."""
        for running in list(self._running):
            running.job.poll()
            if running.job.exit_code is None:
                continue
            self._running.remove(running)
            folder = str(running.run.folder.path)
            lifecycle.decide(folder, running.attempt, running.job.exit_code)
            record = lifecycle.read_attempt(folder, running.attempt)
            if record.get("reason") == "oom_halved":
                self._progress.print(f"{running.run.folder.run_id}: {record['error']}")
                self._waiting.append(self._plan.runs.index(running.run))
            else:
                self._progress.ended(running.run, running.attempt)

    def _stop(self, requests: list[int]) -> None:
        """Ask the ranks to save and exit. Kill them after another signal."""
        first = len(requests)
        self._progress.print("stopping: runs save a checkpoint and exit (again: kill them now)")
        while self._running:
            for running in self._running:
                if len(requests) > first:
                    self._starter.kill(running.job)
                else:  # repeated, because a rank server may fork a controller only now
                    running.job.terminate()
            self._poll()


def submit_plan(plan: Plan, starts: Callable[[Submission, Plan], object] = lambda *_: None) -> bool:
    """Run the plan on this machine and show the progress. Return False if a signal stopped it.

    The caller holds the grid's lock. `starts` is called when the submission is written.
    """
    submission = write_submission(plan)
    on_gpus = not all(run.spec.config.portable for run in plan.to_do)
    world_size = max((run.world_size for run in plan.to_do), default=1)
    slots = find_slots(world_size, on_gpus, local_runs_per_gpu(plan)).limited(local_width(plan))
    if is_exclusive := _are_shared(slots) and _are_exclusive(slots):
        slots = find_slots(world_size, on_gpus).limited(local_width(plan))
    starts(submission, plan)
    with QueueProgress(plan, slots.width, "GPU" if slots.gpus else "CPU") as progress:
        if line := describe_sharing(plan, slots, is_exclusive):
            progress.print(line)
        return Queue(plan, submission, slots, progress).work()


def describe_sharing(plan: Plan, slots: Slots, is_exclusive: bool) -> str:
    """Describe how runs share GPUs. Empty if no run asks for it."""
    if not any(run.attempt.runs_per_gpu > 1 for run in plan.to_do):
        return ""
    if is_exclusive:
        return (
            "runs_per_gpu has no effect: the GPUs' compute mode is Exclusive_Process. Start "
            "nvidia-cuda-mps-control -d and set CUDA_MPS_PIPE_DIRECTORY, or choose another mode"
        )
    if not slots.gpus:
        return "runs_per_gpu has no effect: runs use the CPU here"
    if not _are_shared(slots):
        return "runs_per_gpu has no effect: each run has GPUs of its own"
    number = slots.sharing(range(slots.width), slots.gpus_of(0))
    how = "the MPS of this environment" if PIPE in os.environ else "time slicing"
    return f"up to {number} runs use one GPU at the same time, with {how}"


def _are_shared(slots: Slots) -> bool:
    return slots.cost_of(0) < len(slots.gpus_of(0))


def _are_exclusive(slots: Slots) -> bool:
    """Whether a GPU accepts one process only. MPS is one process for all runs."""
    numbers = sorted({str(gpu) for gpus in slots.gpus for gpu in gpus})
    return PIPE not in os.environ and are_exclusive(list_cards(numbers))


def find_slots(world_size: int, on_gpus: bool = True, runs_per_gpu: int = 1) -> Slots:
    """Return this machine's slots for runs of `world_size` processes: GPUs if enough, else cores.

    Portable runs use no GPU: `on_gpus` is false if all runs are portable. Each GPU has
    `runs_per_gpu` slots, and the first slots have different GPUs.

    Raises:
        ConfigError: CUDA_VISIBLE_DEVICES has no numbers.
    """
    gpus = _visible_gpus() if on_gpus else []
    width = len(gpus) // world_size
    if width:
        parts = [tuple(gpus[i * world_size : (i + 1) * world_size]) for i in range(width)]
        return Slots(width * runs_per_gpu, GPU_RUN_THREADS, tuple(parts * runs_per_gpu))
    cores = len(os.sched_getaffinity(0))
    # One thread per process everywhere: their number changes the last bits of a result, and a run
    # may resume on another machine.
    return Slots(max(1, cores // world_size), 1, ())


def _visible_gpus() -> list[int]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return list(range(len(list(Path("/dev").glob("nvidia[0-9]*")))))  # as CUDA counts them
    parts = [part.strip() for part in visible.split(",") if part.strip()]
    if not all(part.isdigit() for part in parts):
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES is {visible!r}, wanted numbers such as 0,1: set it so"
        )
    return [int(part) for part in parts]


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collect stop signals in a list, so that they raise nothing in the middle of a step."""
    requests: list[int] = []
    handled = [n for n in STOP_SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
    before = {n: signal.signal(n, lambda number, _: requests.append(number)) for n in handled}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
