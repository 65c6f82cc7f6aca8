"""Check the hashes of a checkpoint's files on all ranks together.

Rank 0 chooses the checkpoint. Each rank hashes a share of its files, so every file is hashed once.
All ranks report progress to their watchdogs as long as any of them makes progress.
"""

import errno
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from furnace_hpc.engine.checkpoint.io_problem import IoProblem, try_io, worst
from furnace_hpc.engine.context import RunContext
from furnace_hpc.runs.records import checkpoint_files
from furnace_hpc.runs.records.checkpoint_files import FileDigests

POLL_S = (0.01, 1.0)  # the shortest and longest time between two exchanges of progress
_OF_RANK = re.compile(r"(?:zero_pp_rank_|random-)(\d+)")
IsSound = Callable[[Path], bool]
T = TypeVar("T")


class _Order(NamedTuple):
    """What rank 0 sends to the others: a checkpoint to hash, or the end."""

    path: Path | None
    """None: the end."""
    files: FileDigests
    result: Any = None
    problem: IoProblem | None = None


class _Report(NamedTuple):
    """What one rank has found in its share."""

    damaged: str | None
    """The first file that is missing or different."""
    problem: IoProblem | None


def newest_step(context: RunContext, needs_best: bool) -> int | None:
    """Collective. `checkpoint_files.newest_step`, with all ranks at work.

    Raises:
        RuntimeError: checkpoints were saved and none is complete, or ranks read different bytes.
        OSError: the disk error persisted after all retries.
    """

    def find(is_sound: IsSound) -> int | None:
        return checkpoint_files.newest_step(context.folder, needs_best, is_sound)

    return _lead(context, find)


def is_complete(context: RunContext, step: int) -> bool:
    """Collective. `checkpoint_files.is_complete` of one checkpoint, with all ranks at work.

    Raises:
        RuntimeError, OSError: as `newest_step`.
    """
    return _lead(context, lambda is_sound: is_sound(context.folder.checkpoint(step)))


def rank_of(name: str) -> int | None:
    """The rank that a file of a checkpoint belongs to. None if it belongs to all."""
    match = _OF_RANK.search(name)
    return int(match[1]) if match else None


def shares(files: FileDigests, world_size: int) -> list[list[str]]:
    """The names of the files that each rank hashes.

    A rank hashes its own files: it is about to load them, so its node reads them once. Other files
    go to the rank with the fewest bytes, the largest file first.
    """
    names: list[list[str]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for name in sorted(files, key=lambda name: (rank_of(name) is None, -files[name][0], name)):
        rank = rank_of(name)
        if rank is None or rank >= world_size:
            rank = loads.index(min(loads))
        names[rank].append(name)
        loads[rank] += files[name][0]
    return names


def _lead(context: RunContext, work: Callable[[IsSound], T]) -> T:
    """Do the work on rank 0 while the other ranks hash for it. Return its result on all ranks."""
    processes = context.processes
    result: T | None = None

    def lead() -> None:
        nonlocal result
        result = work(lambda path: _is_sound(context, path))

    if processes.is_rank_zero:
        problem = try_io(lead)
        order = processes.broadcast(_Order(None, {}, result, problem))
    else:
        while (order := processes.broadcast(None)).path:
            _hash_together(context, order)
    if order.problem and order.problem.transient:  # an OSError requeues the run
        raise OSError(errno.EIO, order.problem.message)
    if order.problem:
        raise RuntimeError(order.problem.message)
    answer: T = order.result
    return answer


def _is_sound(context: RunContext, path: Path) -> bool:
    """On rank 0: whether all files have the hashes in the manifest.

    Raises:
        RuntimeError: another rank finds a file damaged, and rank 0 does not.
    """
    files = checkpoint_files.read_digests(path)
    if not files:
        return False
    reports = _hash_together(context, context.processes.broadcast(_Order(path, files)))
    if problem := worst([report.problem for report in reports]):
        if problem.transient:
            raise OSError(errno.EIO, problem.message)
        raise RuntimeError(problem.message)
    found = {rank: one.damaged for rank, one in enumerate(reports) if one.damaged}
    for rank, name in found.items():
        # A node without this file system must not make a good checkpoint count as damaged.
        if rank and not checkpoint_files.first_damaged(path, {name: files[name]}):
            raise RuntimeError(
                f"rank {rank} does not see {path / name} as rank 0 does. Put the runs on a file "
                "system that all nodes mount."
            )
    return not found


def _hash_together(context: RunContext, order: _Order) -> list[_Report]:
    """Collective. Hash this rank's share, and return the reports of all ranks."""
    processes = context.processes
    assert order.path is not None
    share = shares(order.files, processes.world_size)[processes.rank]
    hashing = _Hashing(order.path, {name: order.files[name] for name in share})
    started_s, seen = time.monotonic(), -1.0
    while True:
        state = [float(hashing.is_alive()), float(hashing.num_bytes)]
        total = torch.tensor(state, dtype=torch.float64, device=processes.device)
        busy, done = processes.all_reduce_sum(total).tolist()
        if not busy:
            return processes.gather(hashing.report)
        if done > seen:
            context.watchdog.heartbeat(f"checking the files of {order.path.name}")
        seen = done
        pause_s = min(max(POLL_S[0], (time.monotonic() - started_s) / 10), POLL_S[1])
        if state[0]:
            hashing.join(pause_s)
        else:
            time.sleep(pause_s)


class _Hashing(threading.Thread):
    """Hashes files in the background. It starts at once."""

    def __init__(self, path: Path, files: FileDigests) -> None:
        super().__init__(name="hashing", daemon=True)
        self.num_bytes = 0
        """Bytes that were read so far."""
        self.report = _Report(None, None)
        self._path, self._files = path, files
        self.start()

    def run(self) -> None:
        """Hash the files until one of them is damaged."""
        damaged: str | None = None

        def find() -> None:
            nonlocal damaged
            damaged = checkpoint_files.first_damaged(self._path, self._files, self._count)

        problem = try_io(find)
        self.report = _Report(damaged, problem)

    def _count(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes
