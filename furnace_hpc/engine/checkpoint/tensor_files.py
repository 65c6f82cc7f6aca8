"""Files of tensors, written and synced, with the size and hash of each."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import xxhash

from furnace_hpc.runs.records.checkpoint_files import FileDigests

PIECE_BYTES = 8 << 20  # small enough that the processor's cache still has it when it is hashed
WRITE_BACK_BYTES = 32 << 20


def write_files(files: dict[str, Any], folder: Path) -> FileDigests:
    """Write each content with torch.save and sync it. Return sizes and hashes.

    Raises:
        OSError: the file system reports an error.
    """
    digests: FileDigests = {}
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        digests[name] = _write(path, content)
    return digests


class HashingFile(io.FileIO):
    """A file that hashes the bytes written and keeps the file system's last error.

    The kernel starts to write to the disk at once, so the final sync has less to do.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w")
        self.error: OSError | None = None
        self.digest, self.size = xxhash.xxh3_128(), 0
        self._begun = 0
        """Bytes that the kernel has been asked to write to the disk."""

    def write(self, data: Any) -> int:
        """Write all in pieces, and hash the bytes that the file system has accepted."""
        view, written = memoryview(data).cast("B"), 0
        while written < len(view):
            piece = view[written : written + PIECE_BYTES]
            try:
                accepted = super().write(piece)
            except OSError as error:
                self.error = error
                raise
            self.digest.update(piece[:accepted])
            written += accepted
            self.size += accepted
            if self.size - self._begun >= WRITE_BACK_BYTES:
                self._begin_write_back()
        return written

    def _begin_write_back(self) -> None:
        """Ask the kernel to write to the disk. Like fsync, but without waiting."""
        given = self._begun, self.size - self._begun
        with suppress(OSError):  # it is only advice, and some file systems refuse it
            os.posix_fadvise(self.fileno(), *given, os.POSIX_FADV_DONTNEED)
        self._begun = self.size


def _write(path: Path, content: Any) -> list[Any]:
    """Return size and hash.

    torch.save hides the file system's error: on a full disk it raises RuntimeError `unexpected
    pos`.
    """
    raw = HashingFile(path)
    try:
        with _without_crc32(), io.BufferedWriter(raw) as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except Exception:
        if raw.error:
            raise raw.error from None
        raise
    return [raw.size, raw.digest.hexdigest()]


@contextmanager
def _without_crc32() -> Iterator[None]:
    """Let torch.save of this thread write no CRC32, which takes more time than the whole write.

    A load compares the file with the hash in the manifest instead.
    """
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)
