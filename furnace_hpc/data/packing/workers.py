"""Render chunks of rows in several processes, and return them in order.

If a process crashes or is killed, another one renders its chunk again. If that happens again at the
same file, this file is refused.
"""

import heapq
import multiprocessing
import signal
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import wait
from typing import Any

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.decode.child_process import Child, cause_of, ends_allowed, name_of
from furnace_hpc.data.decode.reading import Position
from furnace_hpc.data.packing.rendering import Chunk, Rendered, Renderer, work
from furnace_hpc.data.packing.sample import PackPlan

AHEAD = 3  # most unfinished chunks per process
QUEUED = 2  # chunks that are sent to a process, so that it does not wait for the next one


def render_chunks(plan: PackPlan, done: dict[str, int], workers: int) -> Iterator[Rendered]:
    """Yield rendered chunks in order. Only a few per process are in memory.

    Raises:
        ConfigError: the input is wrong, or processes end before they read a file.
    """
    chunks, next_id = [], 0
    for split, rows in plan.rows.items():
        for first in range(done[split], len(rows), plan.chunk_rows):
            chunks.append(Chunk(split, next_id + first, rows[first : first + plan.chunk_rows]))
        next_id += len(rows)
    pool = _Pool(plan, chunks, max(1, min(workers, len(chunks))))
    try:
        yield from pool.run()
    except OSError as error:
        raise ConfigError(
            f"packing processes cannot be started ({error.strerror or error}). Run the same "
            "command with fewer --workers; the pack resumes."
        ) from error
    finally:
        pool.close()


class _Pool:
    """All processes, and the chunks that have not been yielded."""

    def __init__(self, plan: PackPlan, chunks: list[Chunk], num_workers: int) -> None:
        # A fork server does not copy threads and locks of this process (progress bar, BLAS).
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([work.__module__, *plan.preload])
        own = plan.render, plan.blank, plan.modalities, plan.render_many, plan.jpeg
        self._renderer = Renderer(*own)
        self._num_chunks, self._num_workers = len(chunks), num_workers
        self._todo = list(enumerate(chunks))  # a heap
        self._workers: dict[Any, _Worker] = {}
        self._finished: dict[int, Rendered] = {}
        # (chunk, row, file) -> number of processes that ended there
        self._ends: Counter[tuple[int, int, str]] = Counter()

    def run(self) -> Iterator[Rendered]:
        """Yield all chunks."""
        for number in range(self._num_chunks):
            while number not in self._finished:
                self._distribute(number + AHEAD * self._num_workers)
                for pipe in wait(list(self._workers)):
                    self._take(self._workers[pipe])
            yield self._finished.pop(number)

    def _distribute(self, end: int) -> None:
        """Start missing processes, and send each of them chunks before number `end`."""
        while len(self._workers) < self._num_workers:
            worker = _Worker(self._context, self._renderer)
            self._workers[worker.pipe] = worker
        for queued in range(QUEUED):
            for worker in self._workers.values():
                if self._todo and self._todo[0][0] < end and len(worker.chunks) <= queued:
                    worker.give(*heapq.heappop(self._todo))

    def _take(self, worker: "_Worker") -> None:
        """Receive a result from a process, or replace the process if it has ended."""
        try:
            made = worker.pipe.recv()
        except (EOFError, OSError):
            self._replace(worker)
            return
        if isinstance(made, Exception):
            raise made
        self._finished[worker.chunks.popleft()[0]] = made

    def _replace(self, worker: "_Worker") -> None:
        """Return the chunks of a process that ended to the queue."""
        del self._workers[worker.pipe]
        code, at = worker.end()
        if code == -signal.SIGKILL and self._num_workers > 1:
            self._num_workers -= 1  # with fewer processes, memory may suffice
        number = -1
        if worker.chunks:
            number = worker.chunks[0][0]
        self._ends[number, at.row, at.file] += 1
        if self._ends[number, at.row, at.file] >= ends_allowed(code):
            if at.row < 0:
                raise ConfigError(
                    f"a packing process ended before it read a file ({name_of(code)}). Run the "
                    "same command with fewer --workers; the pack resumes."
                )
            worker.chunks[0] = number, _without(worker.chunks[0][1], at, code)
        for unfinished in worker.chunks:
            heapq.heappush(self._todo, unfinished)

    def close(self) -> None:
        """End all processes. This is safe, because they write no files."""
        for worker in self._workers.values():
            worker.process.kill()
        for worker in self._workers.values():
            worker.end()


class _Worker(Child):
    """A process, and the chunks that were sent to it."""

    def __init__(self, context: Any, renderer: Renderer) -> None:
        super().__init__(context, work, renderer)
        self.chunks: deque[tuple[int, Chunk]] = deque()

    def give(self, number: int, chunk: Chunk) -> None:
        """Send a chunk. If the process has ended, the chunk stays in `chunks`."""
        self.chunks.append((number, chunk))
        with suppress(OSError):
            self.pipe.send(chunk)


def _without(chunk: Chunk, at: Position, code: int) -> Chunk:
    """Return the chunk without the file at which processes ended."""
    files = chunk.crashed.get(at.row, {}) | {at.file: cause_of(code)}
    name = at.sample or str(chunk.rows[at.row])
    return replace(
        chunk, crashed=chunk.crashed | {at.row: files}, named=chunk.named | {at.row: name}
    )
