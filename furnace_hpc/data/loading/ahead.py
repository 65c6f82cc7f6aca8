"""Ask the kernel to read the samples of the next batches, while samples come from the disk.

Without this the prefetch thread waits for one page fault after the other. If everything is in
memory, the advice would cost a quarter of the speed. So it is given only while the process reads.
"""

import mmap
import resource
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from furnace_hpc.data.jpeg_images import JpegColumn

Rows = NDArray[np.int64]
T = TypeVar("T")
BATCHES_AHEAD = 4
MIN_ROW_BYTES = mmap.PAGESIZE
# batches without a read after which no more advice is given; the advice itself hides the faults
QUIET_BATCHES = 64


def disk_reads() -> tuple[int, int]:
    """Major page faults of this process, and blocks that it has read, until now."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_majflt, used.ru_inblock


class DiskWatch:
    """Whether samples come from the disk. It is asked once per batch."""

    def __init__(self, reads: Callable[[], tuple[int, int]] | None = None) -> None:
        self._reads = reads or disk_reads
        self._before, self._left = self._reads(), 0

    def is_reading(self) -> bool:
        """Whether something was read during the last batches."""
        now = self._reads()
        self._left = QUIET_BATCHES if now != self._before else max(0, self._left - 1)
        self._before = now
        return self._left > 0


class Lookahead(Generic[T]):
    """Iterate over requests. While the disk is read, advise on each some batches before its turn.

    Args:
        requests: what is read, in order.
        advise: asks the kernel for the samples of a request. It is called once for each.
        stop: called when nothing is read from the disk any more.
        watch: whether the disk is read.
    """

    def __init__(
        self,
        requests: Iterable[T],
        advise: Callable[[T], None],
        stop: Callable[[], None],
        watch: DiskWatch | None = None,
    ) -> None:
        self._requests, self._advise, self._stop = iter(requests), advise, stop
        self._watch = watch or DiskWatch()
        self._next: deque[T] = deque()
        self._was_reading = False

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        is_reading = self._watch.is_reading()
        if self._was_reading and not is_reading:
            self._stop()
        self._was_reading = is_reading
        while len(self._next) <= BATCHES_AHEAD * is_reading:
            try:
                request = next(self._requests)
            except StopIteration:
                break
            self._next.append(request)
            if is_reading:
                self._advise(request)
        if not self._next:
            raise StopIteration
        return self._next.popleft()


class MappedRows:
    """The rows of an array that is a memory map of a file."""

    def __init__(self, file_map: mmap.mmap, start: int, row_bytes: int) -> None:
        self._map, self._start, self._row_bytes = file_map, start, row_bytes
        self._is_random = False

    @classmethod
    def of(cls, array: NDArray[Any]) -> "MappedRows | None":
        """The rows of an array. None if they are in memory, or smaller than a page.

        Small rows share pages with their neighbours, and the kernel's own readahead suits them.
        """
        base: Any = array
        while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
            base = base.base
        row_bytes = array.strides[0] if array.ndim else 0
        if not isinstance(base, np.memmap) or row_bytes < MIN_ROW_BYTES:
            return None
        file_map: mmap.mmap = base._mmap  # type: ignore[attr-defined]
        first = np.frombuffer(file_map, np.uint8).__array_interface__["data"][0]
        return cls(file_map, array.__array_interface__["data"][0] - first, row_bytes)

    def advise(self, rows: Rows) -> None:
        """Let the kernel read these rows, and nothing beside them."""
        if not self._is_random:
            self._map.madvise(mmap.MADV_RANDOM)
            self._is_random = True
        for row in rows.tolist():
            start = self._start + row * self._row_bytes
            page = start - start % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, page, start + self._row_bytes - page)

    def stop(self) -> None:
        """Let the kernel read ahead as before: without advice, random reading is slow."""
        if self._is_random:
            self._map.madvise(mmap.MADV_NORMAL)
            self._is_random = False


def rows_on_disk(sources: Mapping[str, Any]) -> "dict[str, MappedRows | JpegColumn]":
    """The columns whose samples the kernel can be asked for."""
    found: dict[str, MappedRows | JpegColumn] = {}
    for name, source in sources.items():
        stored = source if isinstance(source, JpegColumn) else MappedRows.of(source)
        if stored is not None:
            found[name] = stored
    return found
