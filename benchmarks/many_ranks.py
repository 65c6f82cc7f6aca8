"""Count file system calls and files of a job of 64 nodes with 8 ranks each, on this machine.

    python benchmarks/many_ranks.py [--nodes 64] [--per-node 8] [--wait-s 60]

Ranks are light processes or threads that run the product's own code. No model is trained.

- waiting: all ranks but rank 0 wait for its address, which comes after `--wait-s`. Goal: at most
  4 calls per second in total. For comparison every rank looks 20 times a second, as all did before.
- files: what the ranks of one attempt leave on the shared file system. Goal: at most 3 per node.
- loading: rank 0 has saved a checkpoint with a file per rank, and all ranks load it. The loading of
  values by DeepSpeed is left out.
"""

import argparse
import contextlib
import io
import json
import mmap
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests" / "support")]

from furnace_hpc.engine.ranks import rendezvous  # noqa: E402
from furnace_hpc.launch import rank_main  # noqa: E402
from furnace_hpc.runs.folder import RunFolder  # noqa: E402
from furnace_hpc.runs.records.verdict import RankVerdict  # noqa: E402

CALLS = ("stat", "lstat", "listdir", "scandir", "open", "readlink", "getxattr", "access")
OLD_PAUSE_S = 0.05
Row = dict[str, Any]
Wait = Callable[[Path, int, int], contextlib.ExitStack]


@dataclass(frozen=True)
class Job:
    """Size of a job."""

    nodes: int
    per_node: int

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.nodes * self.per_node


class Counter:
    """Counts calls of the file system in this process, and in a number that processes share."""

    def __init__(self, slots: int = 1) -> None:
        self._shared = memoryview(mmap.mmap(-1, 8 * slots)).cast("q")
        self._lock = threading.Lock()

    @property
    def total(self) -> int:
        """Calls so far, of all processes."""
        return sum(self._shared)

    def add(self, slot: int) -> None:
        """Count one."""
        self._shared[slot] += 1

    @contextlib.contextmanager
    def counting(self, slot: int = 0) -> Any:
        """Count into one slot. No other process uses it."""
        originals = {name: getattr(os, name) for name in CALLS}
        originals_io = io.open

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                if not isinstance(arguments[0] if arguments else None, int):  # a descriptor
                    with self._lock:
                        self._shared[slot] += 1
                return function(*arguments, **options)

            return call

        for name, function in originals.items():
            setattr(os, name, counted(function))
        try:
            yield
        finally:
            for name, function in originals.items():
                setattr(os, name, function)
            assert io.open is originals_io


def wait_as_before(file: Path, local_rank: int, world_size: int) -> contextlib.ExitStack:
    """What every rank did before: two calls, 20 times a second."""
    while not file.exists():
        list(file.parent.iterdir())
        time.sleep(OLD_PAUSE_S)
    return contextlib.ExitStack()


def wait_as_now(file: Path, local_rank: int, world_size: int) -> contextlib.ExitStack:
    """The product's code."""
    return rendezvous.wait_for_address(file, local_rank, world_size, 3600.0)[1]


def waiting(job: Job, wait_s: float, wait: Wait, folder: Path) -> Row:
    """Fork all ranks but rank 0, publish the address after a time, and count calls."""
    run = RunFolder(folder)
    file = run.rendezvous(1)
    file.parent.mkdir(parents=True)
    counter, met = Counter(job.world_size), Counter(job.world_size)
    ranks, started_s = [], time.monotonic()
    for rank in range(1, job.world_size):
        pid = os.fork()
        if pid == 0:
            _be_rank(job, rank, file, wait, counter, met)
        ranks.append(pid)
    time.sleep(max(0.0, wait_s - (time.monotonic() - started_s)))
    calls, waited_s = counter.total, time.monotonic() - started_s
    os.environ["SLURM_NODEID"] = "0"
    is_open = rendezvous.publish(file, rendezvous.Address("node0", 1))
    published_s = time.monotonic()
    while met.total < job.world_size - 1 and time.monotonic() < published_s + 600:
        time.sleep(0.01)
    known_s = time.monotonic() - published_s
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks]
    is_open.close()
    return {
        "calls_per_s": round(calls / waited_s, 2),
        "calls": calls,
        "waited_s": round(waited_s, 1),
        "all_know_after_s": round(known_s, 1),
        "failed_ranks": sum(code != 0 for code in codes),
    }


def _be_rank(job: Job, rank: int, file: Path, wait: Wait, counter: Counter, met: Counter) -> None:
    code = 1
    try:
        node, local_rank = divmod(rank, job.per_node)
        os.environ |= {
            "SLURM_NODEID": str(node),
            "SLURM_NNODES": str(job.nodes),
            "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
        }
        with counter.counting(rank):
            is_open = wait(file, local_rank, job.world_size)
        met.add(rank)
        while met.total < job.world_size - 1:  # as in the store
            time.sleep(0.1)
        is_open.close()
        code = 0
    finally:
        os._exit(code)


def files(job: Job, folder: Path) -> Row:
    """Let all ranks of an attempt open their logs and report their ends. Count the files."""
    run = RunFolder(folder)
    for rank in range(job.world_size):
        pid = os.fork()
        if pid == 0:
            _leave_files(job, rank, run)
        os.waitpid(pid, 0)
    logs = sorted(path.name for path in run.logs.iterdir())
    verdicts = sorted(path.name for path in run.verdicts.iterdir())
    from furnace_hpc.host.lifecycle import read_verdicts

    counter = Counter()
    with counter.counting():
        known = read_verdicts(str(folder), 1)
    return {
        "logs": len(logs),
        "verdicts": len(verdicts),
        "files_per_node": (len(logs) + len(verdicts)) / job.nodes + 1,  # srun's output: %n
        "ranks_known": len({verdict["rank"] for verdict in known}),
        "calls_to_read_verdicts": counter.total,
    }


def _leave_files(job: Job, rank: int, run: RunFolder) -> None:
    try:
        node, local_rank = divmod(rank, job.per_node)
        place = rank_main.Rank(rank, local_rank, job.world_size, node)
        sys.stdout = os.fdopen(1, "w", closefd=False)  # not that of a test's capture
        rank_main._write_to(run.log(1, node), place)
        print("hello", flush=True)
        with RankVerdict(run, 1, rank, node) as verdict:
            verdict.done()
    finally:
        os._exit(0)


class ThreadRanks:
    """What threads share that stand for ranks."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.barrier = threading.Barrier(job.world_size)
        self.values: list[Any] = [None] * job.world_size


class ThreadProcesses:
    """The collectives of `Processes`, between threads."""

    def __init__(self, shared: ThreadRanks, rank: int) -> None:
        import torch

        self._shared, self.rank = shared, rank
        self.world_size, self.is_rank_zero = shared.job.world_size, rank == 0
        self.local_rank, self.device = rank % shared.job.per_node, torch.device("cpu")

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks."""
        self._shared.values[self.rank] = value
        self._shared.barrier.wait(600)
        values = list(self._shared.values)
        self._shared.barrier.wait(600)
        return values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value."""
        return self.gather(value if self.is_rank_zero else None)[0]

    def all_reduce_sum(self, tensor: Any) -> Any:
        """The sum of all tensors."""
        import torch

        return torch.stack(self.gather(tensor)).sum(0)

    def print_once(self, message: str) -> None:
        """Print nothing."""


class StubEngine:
    """An engine that loads nothing."""

    config: dict[str, Any] = {"zero_optimization": {}}
    _get_all_zero_checkpoint_names = None

    def zero_optimization_stage(self) -> int:
        """Stage 2."""
        return 2

    def zero_elastic_checkpoint(self) -> bool:
        """DeepSpeed's default."""
        return False

    def load_checkpoint(self, path: str, tag: str) -> tuple[str, dict[str, Any]]:
        """DeepSpeed's answer."""
        return path, {"furnace": {"step": 1}}


def write_checkpoint(job: Job, run: RunFolder, num_bytes: int = 4096) -> None:
    """Write a checkpoint of step 1 with the names of stage 2."""
    import torch

    from furnace_hpc.runs.records import checkpoint_files

    temporary = run.checkpoints / "step-1.tmp-1"
    (temporary / "zero").mkdir(parents=True)
    content = os.urandom(num_bytes)
    names = ["zero/mp_rank_00_model_states.pt"]
    names += [
        f"zero/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(job.world_size)
    ]
    for name in names:
        (temporary / name).write_bytes(content)
    for rank in range(job.world_size):
        names.append(f"random-{rank}.pt")
        torch.save({}, temporary / names[-1])
    facts = {"step": 1, "world_size": job.world_size, "zero_stage": 2, "zero": {}, "state": {}}
    digests = {name: checkpoint_files.describe(temporary / name) for name in names}
    checkpoint_files.complete(temporary, run.checkpoint(1), facts, digests)
    checkpoint_files.note_saved(run, 1, 1, 0.0)


def loading(job: Job, folder: Path) -> Row:
    """Load a checkpoint with threads as ranks. Count calls, and the files that each rank hashed."""
    from make import make_config, make_context

    from furnace_hpc.engine.checkpoint import loader
    from furnace_hpc.runs.records import checkpoint_files

    run = RunFolder(folder / "grid" / "run")
    run.path.mkdir(parents=True)
    write_checkpoint(job, run)
    loader.set_random_state = lambda state, device: None
    hashed: list[str] = []
    describe = checkpoint_files.describe

    def noted(path: Path, *more: Any) -> Any:
        hashed.append(threading.current_thread().name)
        return describe(path, *more)

    checkpoint_files.describe = noted
    shared, config, states = ThreadRanks(job), make_config(), []

    def be_rank(rank: int) -> None:
        context = make_context(config, StubEngine(), run.path, ThreadProcesses(shared, rank))
        states.append(loader.load_newest(context))

    counter = Counter()
    with counter.counting():
        threads = [threading.Thread(target=be_rank, args=(r,)) for r in range(job.world_size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    checkpoint_files.describe = describe
    return {
        "ranks_loaded": states.count({"step": 1}),
        "files_hashed": len(hashed),
        "calls": counter.total,
        "calls_per_rank": round(counter.total / job.world_size, 1),
    }


def main() -> None:
    """Measure, compare with the goals, and record."""
    import record

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--per-node", type=int, default=8)
    parser.add_argument("--wait-s", type=float, default=60.0)
    options = parser.parse_args()
    record.begin()
    job = Job(options.nodes, options.per_node)
    size = {"nodes": job.nodes, "ranks": job.world_size}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        rows = [
            {"what": "waiting before", **size} | waiting(job, 5.0, wait_as_before, place / "old"),
            {"what": "waiting", **size}
            | waiting(job, options.wait_s, wait_as_now, place / "new")
            | {"goal": "calls_per_s <= 4"},
            {"what": "files", **size} | files(job, place / "files") | {"goal": "per node <= 3"},
            {"what": "loading", **size} | loading(job, place / "loading"),
        ]
    record.write("many_ranks", rows, json.dumps(size))


if __name__ == "__main__":
    main()
