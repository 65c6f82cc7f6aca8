"""Processes that render chunks of rows; the chunks come back in order, whichever is finished first.

If a process crashes or is killed, another one renders its chunk again. The file that it was reading is refused if
that happens again, so a decoder that crashes costs one file.
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
from furnace_hpc.data.decode.child_process import Child, ends_allowed, how_it_ended, name_of
from furnace_hpc.data.decode.reading import At
from furnace_hpc.data.packing.rendering import Chunk, Rendered, Renderer, work
from furnace_hpc.data.packing.sample import PackPlan

AHEAD = 3  # chunks per process that may be unfinished
QUEUED = 2  # chunks that a process has, so that it does not wait for the next one


def rendered(plan: PackPlan, done: dict[str, int], workers: int) -> Iterator[Rendered]:
    """Yield rendered chunks in order; a few per process are unfinished, so memory stays small.

    Raises:
        ConfigError: the input is wrong, or processes end without reading anything.
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
            f"packing processes cannot be started ({error.strerror or error}). Give the same command with fewer "
            "--workers; the pack resumes."
        ) from error
    finally:
        pool.close()


class _Pool:
    """All processes, and the chunks that are not yielded yet."""

    def __init__(self, plan: PackPlan, chunks: list[Chunk], num_workers: int) -> None:
        # A fork server: threads and locks of this process (progress bar, BLAS) are not copied into
        # the workers.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([work.__module__, *plan.preload])
        self._renderer = Renderer(plan.render, plan.blank, plan.modalities)
        self._num_chunks, self._num_workers = len(chunks), num_workers
        self._todo = list(enumerate(chunks))  # a heap
        self._workers: dict[Any, _Worker] = {}
        self._finished: dict[int, Rendered] = {}
        # chunk, row, file -> processes that it ended
        self._ends: Counter[tuple[int, int, str]] = Counter()

    def run(self) -> Iterator[Rendered]:
        """Yield all chunks."""
        for number in range(self._num_chunks):
            while number not in self._finished:
                self._hand_out(number + AHEAD * self._num_workers)
                for pipe in wait(list(self._workers)):
                    self._take(self._workers[pipe])
            yield self._finished.pop(number)

    def _hand_out(self, end: int) -> None:
        """Start missing processes, and give each of them chunks before `end`."""
        while len(self._workers) < self._num_workers:
            worker = _Worker(self._context, self._renderer)
            self._workers[worker.pipe] = worker
        for queued in range(QUEUED):
            for worker in self._workers.values():
                if self._todo and self._todo[0][0] < end and len(worker.chunks) <= queued:
                    worker.give(*heapq.heappop(self._todo))

    def _take(self, worker: "_Worker") -> None:
        """Take what a process sends, or find out how it ended."""
        try:
            made = worker.pipe.recv()
        except (EOFError, OSError):
            self._replace(worker)
            return
        if isinstance(made, Exception):
            raise made
        self._finished[worker.chunks.popleft()[0]] = made

    def _replace(self, worker: "_Worker") -> None:
        """Give the chunks of a process that ended to others."""
        del self._workers[worker.pipe]
        code, at = worker.end()
        if code == -signal.SIGKILL and self._num_workers > 1:
            self._num_workers -= 1  # with fewer processes, memory may suffice
        number = worker.chunks[0][0] if worker.chunks else -1
        self._ends[number, at.row, at.file] += 1
        if self._ends[number, at.row, at.file] >= ends_allowed(code):
            if at.row < 0:
                raise ConfigError(
                    f"a packing process ended before it read a file ({name_of(code)}). Give the same command with "
                    "fewer --workers; the pack resumes."
                )
            worker.chunks[0] = number, _without(worker.chunks[0][1], at, code)
        for unfinished in worker.chunks:
            heapq.heappush(self._todo, unfinished)

    def close(self) -> None:
        """End all processes; they write nothing."""
        for worker in self._workers.values():
            worker.process.kill()
        for worker in self._workers.values():
            worker.end()


class _Worker(Child):
    """A process, and the chunks that it was given."""

    def __init__(self, context: Any, renderer: Renderer) -> None:
        super().__init__(context, work, renderer)
        self.chunks: deque[tuple[int, Chunk]] = deque()

    def give(self, number: int, chunk: Chunk) -> None:
        """Send a chunk; if the process has ended, the chunk is found in `chunks`."""
        self.chunks.append((number, chunk))
        with suppress(OSError):
            self.pipe.send(chunk)


def _without(chunk: Chunk, at: At, code: int) -> Chunk:
    """The chunk without the file that ended processes."""
    crashed = chunk.crashed | {
        at.row: chunk.crashed.get(at.row, {}) | {at.file: how_it_ended(code)}
    }
    return replace(
        chunk, crashed=crashed, named=chunk.named | {at.row: at.sample or str(chunk.rows[at.row])}
    )
