"""The queue on this machine: the same plan, rows and tasks as the array, started by submitit's local executor.

submitit starts every job at once; here runs wait until cores or GPUs are free. Ctrl-C (or TERM, HUP) lets the ranks
save a checkpoint and leave; a second one kills them.
"""

import os
import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from submitit.local.local import LocalExecutor, LocalJob

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.host import lifecycle
from furnace_hpc.launch.batch_script import rank_command
from furnace_hpc.launch.local_progress import Progress
from furnace_hpc.launch.plan import Plan, PlannedRun
from furnace_hpc.launch.rank_main import run_task
from furnace_hpc.launch.submission import write_submission
from furnace_hpc.runs.journal import Submission
from furnace_hpc.runs.trust import check_place, check_trusted
from furnace_hpc.slurm.environment import absolute_folders, environment_of_jobs

WEEK_MIN = 7 * 24 * 60  # submitit's local executor wants a limit; this machine has none
POLL_S = 0.25
# how long ranks may outlive the first of them that has left: they all say their last word before
# that
PEERS_S = 1.5


@dataclass(frozen=True)
class Slots:
    """What this machine gives: how many runs at a time, and each one's share."""

    width: int
    num_threads: int
    gpus: tuple[tuple[int, ...], ...]


@dataclass
class Running:
    """One run that is under way."""

    run: PlannedRun
    attempt: int
    slot: int
    job: "LocalJob[None]"
    left_s: float | None = None  # when the first rank was seen to be gone
    looked_s: float = 0.0

    def end_peers(self) -> None:
        """Kill the ranks that are left when one is gone, as srun would: one that is stopped would stay for ever."""
        now = time.monotonic()
        if now < self.looked_s + 2 * POLL_S:
            return
        self.looked_s, ranks = now, _ranks(self.job)
        if len(ranks) in (0, self.run.world_size):  # not started yet, or all there, or all gone
            self.left_s = None
            return
        self.left_s = self.left_s or now
        if now > self.left_s + PEERS_S:
            for rank in ranks:
                with suppress(psutil.NoSuchProcess):
                    rank.kill()


class Queue:
    """Runs in order, `width` at a time."""

    def __init__(
        self, plan: Plan, submission: Submission, slots: Slots, progress: Progress
    ) -> None:
        self._plan, self._submission, self._slots, self._progress = (
            plan,
            submission,
            slots,
            progress,
        )
        # as this process has just written them
        self._codes = [Path(row["code"]) for row in submission.rows]
        self._waiting = deque(index for index, run in enumerate(plan.runs) if run.to_do)
        self._running: list[Running] = []

    def work(self) -> bool:
        """Run everything; return False when a signal stopped it."""
        with _stop_requests() as requests:
            try:
                return self._work(requests)
            except BaseException:  # a full disk, say: the ranks must not go on alone
                self._stop(requests)
                raise

    def _work(self, requests: list[int]) -> bool:
        while self._waiting or self._running:
            if requests:
                self._stop(requests)
                return False
            free = set(range(self._slots.width)) - {running.slot for running in self._running}
            while free and self._waiting:
                self._start(self._waiting.popleft(), free.pop())
            self._reap()
            self._progress.update([(r.run, r.attempt) for r in self._running])
            time.sleep(POLL_S)
        return True

    def _start(self, index: int, slot: int) -> None:
        run = self._plan.runs[index]
        code = self._codes[index]
        self._check(run.folder.path, code)
        try:
            lifecycle.write_spec(str(run.folder.path), run.spec.model_dump_json())
            gpus = self._slots.gpus[slot] if self._slots.gpus else ()
            facts = run.facts | {
                "job_id": None,
                "gpus": len(gpus),
                "submission": str(self._submission.path),
            }
            attempt = lifecycle.begin(str(run.folder.path), facts)
        except lifecycle.Busy as busy:
            self._progress.say(f"{run.folder.run_id}: left alone, {busy}")
            return
        executor = LocalExecutor(
            self._submission.path, python=rank_command(self._plan.profile, code)
        )
        executor.update_parameters(
            tasks_per_node=run.world_size,
            timeout_min=WEEK_MIN,
            stderr_to_stdout=True,
            gpus_per_node=len(gpus),
            visible_gpus=gpus,
        )
        environment = {
            "FURNACE_RUN_DIR": str(run.folder.path.resolve()),
            "FURNACE_ATTEMPT": str(attempt),
            "OMP_NUM_THREADS": str(self._slots.num_threads),
            "FURNACE_CODE": str(code),
            "PYTHONPATH": os.pathsep.join(
                [str(code), *absolute_folders(os.environ.get("PYTHONPATH", ""))]
            ),
            "PYTHONSAFEPATH": "1",
        }
        with environment_of_jobs(**environment), _terminal_signals_kept_from_children():
            job = executor.submit(run_task, str(self._submission.path))
        self._running.append(Running(run, attempt, slot, job))
        lifecycle.transfer_lease(str(run.folder.path), attempt, int(job.job_id))
        self._submission.note(
            "started", run_id=run.folder.run_id, attempt=attempt, pid=int(job.job_id)
        )

    def _check(self, run: Path, code: Path) -> None:
        """Raise ConfigError where others could have changed what a start executes: hours may have passed since submit.

        From here on they can change nothing of it: no folder on the way to it lets them.
        """
        root = self._submission.path.parent.parent.parent
        check_place(self._submission.path, root)
        check_place(run.resolve(), root)
        check_trusted(code, root)

    def _reap(self) -> None:
        """Take ended runs off the list, and write down how they ended."""
        for running in self._running:
            running.end_peers()
        for running in [r for r in self._running if r.job.done()]:
            self._running.remove(running)
            code = running.job._process.returncode if running.job._process else 1
            lifecycle.decide(str(running.run.folder.path), running.attempt, code)
            self._progress.ended(running.run, running.attempt)

    def _stop(self, requests: list[int]) -> None:
        """Ask the ranks to save and leave; on a second signal kill them."""
        asked = len(requests)
        self._progress.say("stopping: runs save a checkpoint and leave (again: kill them now)")
        while self._running:
            for running in self._running:
                if len(requests) > asked:
                    _kill(running.job)
                else:  # again and again: a controller that is just starting passes nothing on
                    _signal(running.job, signal.SIGTERM)
            self._reap()
            self._progress.update([(r.run, r.attempt) for r in self._running])
            time.sleep(POLL_S)


def submit_plan(plan: Plan) -> bool:
    """Run the plan here to its end, showing progress; False when a signal stopped it before.

    The grid's lock is held by the caller.
    """
    submission = write_submission(plan)
    slots = find_slots(max((run.world_size for run in plan.to_do), default=1))
    with Progress(plan, slots.width, "GPU" if slots.gpus else "CPU") as progress:
        return Queue(plan, submission, slots, progress).work()


def find_slots(world_size: int) -> Slots:
    """This machine's share for runs of `world_size` processes: GPUs if there are enough, else cores.

    Raises:
        ConfigError: CUDA_VISIBLE_DEVICES does not hold numbers.
    """
    # CUDA counts what it sees from 0
    gpus = list(range(len(list(Path("/dev").glob("nvidia[0-9]*")))))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        parts = [part.strip() for part in visible.split(",") if part.strip()]
        if not all(part.isdigit() for part in parts):
            raise ConfigError(
                f"CUDA_VISIBLE_DEVICES is {visible!r}, wanted numbers such as 0,1: set it so"
            )
        gpus = [int(part) for part in parts]
    if len(gpus) >= world_size:
        width = len(gpus) // world_size
        return Slots(
            width,
            4,
            tuple(tuple(gpus[i * world_size : (i + 1) * world_size]) for i in range(width)),
        )
    cores = len(os.sched_getaffinity(0))
    # One thread a process everywhere: the thread count changes the last bits, and a run may go on
    # elsewhere.
    return Slots(max(1, cores // world_size), 1, ())


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collect stop signals in a list instead of raising in the middle of something."""
    requests: list[int] = []
    signals = [
        n
        for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(n) is not signal.SIG_IGN
    ]
    before = {
        number: signal.signal(number, lambda number, _: requests.append(number))
        for number in signals
    }
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _terminal_signals_kept_from_children() -> Iterator[None]:
    """Ctrl-C and a hang-up go to the whole terminal group; submitit's controller would answer by killing the ranks.

    A blocked signal stays blocked in children; here it is delivered when the block ends.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGHUP})


def _signal(job: "LocalJob[None]", number: int) -> None:
    """To submitit's controller, which passes it on to every rank."""
    if job._process and job._process.poll() is None:
        job._process.send_signal(number)


def _ranks(job: "LocalJob[None]") -> list[psutil.Process]:
    """The living ranks: what submitit's controller has started."""
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(int(job.job_id)).children()
        return [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
    return []


def _kill(job: "LocalJob[None]") -> None:
    try:
        controller = psutil.Process(int(job.job_id))
        for process in [*controller.children(recursive=True), controller]:
            process.kill()
    except psutil.NoSuchProcess:
        pass
