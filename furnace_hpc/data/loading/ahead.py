"""Read samples from the disk ahead of their turn, while a set does not fit into memory.

The kernel is asked for the samples of the next batches, and samples are read from the file. A
memory map would wait for one page fault after the other, and its pages cost more to free. If
everything is in memory, a map is faster, so this holds only while the process reads.
"""

import errno
import mmap
import os
import resource
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from furnace_hpc.data.jpeg_images import JpegColumn
from furnace_hpc.host.regular_file import open_regular

Rows = NDArray[np.int64]
T = TypeVar("T")
BATCHES_AHEAD = 4
MIN_ROW_BYTES = mmap.PAGESIZE
# batches without a read after which the map is used again; the advice itself hides the faults
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
        advise: asks the kernel for the samples of a request. It is called at most once for each.
        watch: whether the disk is read.
    """

    def __init__(
        self,
        requests: Iterable[T],
        advise: Callable[[T], None],
        watch: DiskWatch | None = None,
    ) -> None:
        self._requests, self._advise = iter(requests), advise
        self._watch = watch or DiskWatch()
        self._next: deque[T] = deque()
        self.is_reading = False
        """Whether samples of the newest request are to be read from the file."""

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        self.is_reading = self._watch.is_reading()
        while len(self._next) <= BATCHES_AHEAD * self.is_reading:
            try:
                request = next(self._requests)
            except StopIteration:
                break
            self._next.append(request)
            if self.is_reading:
                self._advise(request)
        if not self._next:
            raise StopIteration
        return self._next.popleft()


class FileRows:
    """The rows of an array that is a memory map of a file, to be read without the map."""

    def __init__(self, file: IO[bytes], start: int, row_bytes: int) -> None:
        self._file, self._start, self._row_bytes = file, start, row_bytes

    @classmethod
    def of(cls, array: NDArray[Any]) -> "FileRows | None":
        """The rows of an array. None if they are in memory, in pieces, or smaller than a page.

        Small rows share pages with their neighbours, and the kernel's own readahead suits them.
        """
        base: Any = array
        while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
            base = base.base
        if not isinstance(base, np.memmap) or not array.ndim:
            return None
        is_plain = array.flags.c_contiguous and array.dtype.isnative
        if not is_plain or array.strides[0] < MIN_ROW_BYTES:
            return None
        file_map = base._mmap  # type: ignore[attr-defined]
        first = np.frombuffer(file_map, np.uint8).__array_interface__["data"][0]
        start = array.__array_interface__["data"][0] - first
        return cls(open_regular(base.filename, buffering=0), start, array.strides[0])  # type: ignore[arg-type]

    def advise(self, rows: Rows) -> None:
        """Let the kernel read these rows, and nothing beside them."""
        for row in rows.tolist():
            start = self._start + row * self._row_bytes
            os.posix_fadvise(self._file.fileno(), start, self._row_bytes, os.POSIX_FADV_WILLNEED)

    def read(self, rows: Rows, outs: Iterable[NDArray[Any]]) -> None:
        """Read the beginning of each row: as many bytes as its part of `outs` has.

        Args:
            rows: the rows.
            outs: memory for each of them, in one piece.

        Raises:
            OSError: the disk has an error, or the file became shorter.
        """
        for row, out in zip(rows.tolist(), outs, strict=True):
            self._read_at(self._start + row * self._row_bytes, out.reshape(-1).view(np.uint8))

    def _read_at(self, start: int, out: NDArray[np.uint8]) -> None:
        done = 0
        while done < len(out):
            count = os.preadv(self._file.fileno(), [out[done:].data], start + done)
            if not count:
                why = f"no bytes at {start + done:,}: the file became shorter"
                raise OSError(errno.EIO, why, self._file.name)
            done += count


def rows_on_disk(sources: Mapping[str, Any]) -> "dict[str, FileRows | JpegColumn]":
    """The columns whose samples the kernel can be asked for."""
    found: dict[str, FileRows | JpegColumn] = {}
    for name, source in sources.items():
        stored = source if isinstance(source, JpegColumn) else FileRows.of(source)
        if stored is not None:
            found[name] = stored
    return found
