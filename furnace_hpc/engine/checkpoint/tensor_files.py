"""Files of tensors, written and synced, with the size and hash of each."""

import io
import os
from pathlib import Path
from typing import Any

import torch
import xxhash

from furnace_hpc.runs.records.checkpoint_files import FileDigests


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
    """A file that hashes the bytes written and keeps the file system's last error."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w")
        self.error: OSError | None = None
        self.digest, self.size = xxhash.xxh3_128(), 0

    def write(self, data: Any) -> int:
        """Write, and hash the bytes that the file system has accepted."""
        try:
            written = super().write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(memoryview(data)[:written])
        self.size += written
        return written


def _write(path: Path, content: Any) -> list[Any]:
    """Return size and hash.

    torch.save hides the file system's error: on a full disk it raises RuntimeError `unexpected
    pos`.
    """
    raw = HashingFile(path)
    try:
        with io.BufferedWriter(raw) as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except Exception:
        if raw.error:
            raise raw.error from None
        raise
    return [raw.size, raw.digest.hexdigest()]
