"""Files of tensors, written durably, with size and hash of what was written; and problems that ranks tell others."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import xxhash

from furnace_hpc.runs.folder import TRANSIENT_ERRNOS
from furnace_hpc.runs.records.checkpoint_files import FileDigests

Problem = tuple[bool, str]  # whether it may pass, and what it is


def write_files(files: dict[str, Any], folder: Path) -> FileDigests:
    """Write each content as torch.save does, and make it durable.

    Raises:
        OSError: it cannot be written.
    """
    described: FileDigests = {}
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        described[name] = _write(path, content)
    return described


class HashingFile(io.FileIO):
    """A file that remembers what its file system said, and hashes what it has taken."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w")
        self.problem: OSError | None = None
        self.digest, self.size = xxhash.xxh3_128(), 0

    def write(self, data: Any) -> int:
        """Write and hash; raise where the disk took less."""
        try:
            taken = super().write(data)
        except OSError as error:
            self.problem = error
            raise
        self.digest.update(memoryview(data)[:taken])
        self.size += taken
        return taken


def _write(path: Path, content: Any) -> list[Any]:
    """torch.save's own errors hide the file system's: a full disk is a RuntimeError `unexpected pos` to it."""
    raw = HashingFile(path)
    try:
        with io.BufferedWriter(raw) as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except Exception:
        if raw.problem:
            raise raw.problem from None
        raise
    return [raw.size, raw.digest.hexdigest()]


def problem_of(work: Callable[[], None]) -> Problem | None:
    """What went wrong; None when nothing did. An exception on one rank would leave the others in a collective."""
    try:
        work()
    except OSError as error:
        return error.errno in TRANSIENT_ERRNOS, f"{type(error).__name__}: {error}"
    except RuntimeError as error:
        return False, str(error)
    except Exception as error:
        return False, f"{type(error).__name__}: {error}"
    return None


def worst(problems: list[Problem | None]) -> Problem | None:
    """One that does not pass, before one that may."""
    return min((problem for problem in problems if problem), default=None)
