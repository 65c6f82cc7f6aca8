"""Read batches ahead in one background thread. The samples depend on seed and step only.

Worker processes would be slower: sending a batch between processes copies its memory again.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple

import torch

from furnace_hpc.data.loading.ahead import Lookahead
from furnace_hpc.data.loading.batches import Batch, BatchReader, HostBatch, Rows
from furnace_hpc.data.loading.sampler import (
    Weights,
    drawn_frames,
    rank_indices,
    step_epochs,
    step_indices,
)

DEPTH = 2  # batches read ahead. With one, the loop would wait for every slow batch.


class BatchRequest(NamedTuple):
    """The arguments of `BatchReader.gather`."""

    rows: Rows
    frames: Rows | None = None
    epochs: Rows | None = None


class BatchPrefetcher:
    """A context and an iterator over the batches of these requests, in their order.

    An error in the thread is raised where the batch is taken. The thread ends with the context.
    """

    def __init__(
        self, reader: BatchReader, requests: Iterable[BatchRequest], depth: int = DEPTH
    ) -> None:
        self._reader, self._depth = reader, depth
        self._requests = Lookahead(requests, self._advise)
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix="prefetch", initializer=_enter, initargs=(reader.device,)
        )
        self._ahead: deque[Future[HostBatch | None]] = deque()

    def __enter__(self) -> "BatchPrefetcher":
        self._ahead.extend(self._thread.submit(self._gather) for _ in range(self._depth))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        host = self._ahead[0].result()  # an error stays first, so no batch is skipped
        if host is None:
            raise StopIteration
        self._ahead.popleft()
        self._ahead.append(self._thread.submit(self._gather))
        return self._reader.to_device(host)

    def _advise(self, request: BatchRequest) -> None:
        for name, stored in self._reader.stored.items():
            stored.advise(self._reader.source_rows(name, request.rows, request.frames))

    def _gather(self) -> HostBatch | None:
        """Gather the next request, in the thread. None after the last one."""
        request = next(self._requests, None)
        if request is None:
            return None
        return self._reader.gather(*request, from_file=self._requests.is_reading)


class TrainBatches:
    """A context: one rank's micro-batches of each optimizer step, read ahead."""

    def __init__(
        self,
        reader: BatchReader,
        *,
        seed: int,
        steps: int,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        weights: Weights | None = None,
    ) -> None:
        self._reader, self._seed, self._steps = reader, seed, steps
        self._sizes = global_batch_size, micro_batch_size
        self._rank, self._world_size, self._weights = rank, world_size, weights
        self._micro_steps = global_batch_size // (micro_batch_size * world_size)
        self._next = -1
        self._prefetched: BatchPrefetcher | None = None

    def __enter__(self) -> "TrainBatches":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        if self._prefetched:
            self._prefetched.__exit__(kind, error, trace)
            self._prefetched = None

    def of_step(self, step: int) -> Iterator[Batch]:
        """Yield the micro-batches of a step, counted from 0.

        A step other than the next one restarts the reading.
        """
        if step != self._next or self._prefetched is None:
            self.__exit__()
            self._prefetched = BatchPrefetcher(self._reader, self._requests(step)).__enter__()
        self._next = -1  # until all of this step have been taken
        for _ in range(self._micro_steps):
            yield next(self._prefetched)
        self._next = step + 1

    def _requests(self, first: int) -> Iterator[BatchRequest]:
        """Yield what this rank reads from step `first` to the end. Runs in the thread."""
        reader, (global_batch_size, micro_batch_size) = self._reader, self._sizes
        for step in range(first, self._steps):
            rows = step_indices(
                reader.num_samples, self._seed, step, global_batch_size, self._weights
            )
            epochs = step_epochs(reader.num_samples, step, global_batch_size)
            frames = None
            if reader.image_frames:
                frames = drawn_frames(reader.image_frames, self._seed, epochs, rows)
            for micro_step in range(self._micro_steps):
                part = (self._rank, self._world_size, micro_batch_size, micro_step)
                own_frames = None
                if frames is not None:
                    own_frames = rank_indices(frames, *part)
                yield BatchRequest(
                    rank_indices(rows, *part), own_frames, rank_indices(epochs, *part)
                )


def _enter(device: torch.device) -> None:
    """Select this rank's GPU in the thread. Otherwise pinned memory belongs to the first GPU."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
