"""Processes that render rows; the chunks come back in order, whoever was first."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from furnace_hpc.data.moments import Moments, measure
from furnace_hpc.data.sample import PackPlan, Values
from furnace_hpc.spec.errors import ConfigError

AHEAD = 3  # chunks in flight per worker


@dataclass(frozen=True)
class Rendered:
    """A chunk of rows, rendered."""

    split: str
    num_rows: int
    columns: Values
    refused_lines: bytes
    incomplete: int
    moments: dict[str, Moments]


def rendered(plan: PackPlan, done: dict[str, int], workers: int) -> Iterator[Rendered]:
    """Yield rendered chunks in order; a few per worker are in flight, so memory stays small."""
    chunks, next_id = [], 0
    for split, rows in plan.rows.items():
        for first in range(done[split], len(rows), plan.chunk_rows):
            chunks.append((split, next_id + first, rows[first : first + plan.chunk_rows]))
        next_id += len(rows)
    # A fork server: threads and locks of this process (progress bar, BLAS) are not copied into the workers.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *plan.preload])
    num_workers = max(1, min(workers, len(chunks)))
    with ProcessPoolExecutor(num_workers, context, _begin_worker, (plan.render, plan.blank, plan.modalities)) as pool:
        flying: deque[Future[Rendered]] = deque()
        try:
            for chunk in chunks:
                flying.append(pool.submit(_render_chunk, *chunk))
                if len(flying) >= AHEAD * num_workers:
                    yield flying.popleft().result()
            while flying:
                yield flying.popleft().result()
        except BrokenProcessPool:
            raise ConfigError(
                "a packing process was killed, by a lack of memory or a crash in a decoder: give the same command "
                "again, with fewer --workers; it goes on from what is done"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


_worker: dict[str, Any] = {}


def _begin_worker(render: Any, blank: Values, modalities: tuple[str, ...]) -> None:
    """Set one worker up: one BLAS thread, Ctrl-C is the parent's affair, and no life without the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker.update(render=render, blank=blank, modalities=modalities, limits=threadpool_limits(1))
    parent = multiprocessing.parent_process()
    assert parent is not None

    def leave_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


def _render_chunk(split: str, first_id: int, rows: Sequence[Any]) -> Rendered:
    """Render some rows, in a worker."""
    samples = [_worker["render"](split, row) for row in rows]
    kept = []
    for sample_id, sample in enumerate(samples, start=first_id):
        if sample.values is not None:
            kept.append(sample.values | {"sample_id": np.int32(sample_id)})
    columns = {name: np.stack([values[name] for values in kept]) for name in (_worker["blank"] if kept else ())}
    lines = b"".join(refusal.line() for sample in samples for refusal in sample.refusals)
    incomplete = sum(bool(sample.refusals) for sample in samples)
    moments = measure(columns, _worker["modalities"]) if split == "train" and kept else {}
    return Rendered(split, len(rows), columns, lines, incomplete, moments)
