"""Read files of samples, so that a failing decoder affects only the file that it reads.

Inside `reading`, every exception becomes `Unusable`. In a packing process, `reading` also limits
the time per file, and writes the file's name to memory that the parent shares. So the parent can
name the file after a crash.
"""

import errno
import json
import signal
import stat
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.packing.rejects import Reason, Unusable

MEMORY_BYTES = 1 << 15  # of the shared memory
_MAX_NAME = 2000  # characters of a name in the shared memory
# Errors of the machine, not of the file: they end the pack, which can be resumed.
_OF_THE_MACHINE = {errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True)
class Position:
    """The sample and file that a process reads."""

    row: int
    """Number of the row in its chunk. -1 between two chunks."""
    sample: str
    file: str
    """Empty outside of any file."""


_NOWHERE = Position(-1, "", "")


class Watch:
    """Writes the position of this process to shared memory, and limits the time per file."""

    def __init__(self, memory: Any, max_cpu_s: float, max_wall_s: float) -> None:
        self._memory = memory
        self._limits = {signal.ITIMER_PROF: max_cpu_s, signal.ITIMER_REAL: max_wall_s}
        self.at, self._crashed = _NOWHERE, dict[str, str]()

    def begin(self, row: int, crashed: Mapping[str, str]) -> None:
        """Begin a row. `crashed` has the files that ended an earlier process, and the cause."""
        self._crashed = dict(crashed)
        self._write(Position(row, "", ""))

    def name(self, sample: str) -> None:
        """Name the sample of the current row."""
        self._write(Position(self.at.row, sample[:_MAX_NAME], ""))

    def enter(self, file: str) -> str:
        """Begin a file. Return the file that contains it, or an empty string."""
        outer, file = self.at.file, file[:_MAX_NAME]
        if file in self._crashed:
            raise Unusable("unreadable", self._crashed[file])
        self._write(Position(self.at.row, self.at.sample, file))
        if not outer:
            for timer, limit_s in self._limits.items():
                signal.setitimer(timer, limit_s)
        return outer

    def leave(self, outer: str) -> None:
        """End a file."""
        self._write(Position(self.at.row, self.at.sample, outer))
        if not outer:
            for timer in self._limits:
                signal.setitimer(timer, 0)

    def _write(self, at: Position) -> None:
        self.at = at
        content = json.dumps([at.row, at.sample, at.file]).encode()
        self._memory[: 4 + len(content)] = struct.pack("<I", len(content)) + content


def read_position(memory: Any) -> Position:
    """Return the last position that `Watch` wrote, or none if a decoder has overwritten it."""
    (length,) = struct.unpack("<I", memory[:4])
    try:
        return Position(*json.loads(memory[4 : 4 + length]))
    except (ValueError, TypeError):
        return _NOWHERE


_watch: Watch | None = None


def watch_this_process(watch: Watch) -> None:
    """Let `reading` use this watch. Its timers end the process: a decoder cannot be stopped."""
    global _watch
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _watch = watch


def name_sample(sample: str) -> None:
    """Record the name of the sample that is rendered, in case this process crashes."""
    if _watch:
        _watch.name(sample)


@contextmanager
def reading(file: object) -> Iterator[None]:
    """Read a file of a sample. Calls may be nested: errors name the innermost file.

    Raises:
        Unusable: the body raised anything, or this file ended an earlier process.
        ConfigError: the body raised it, or disk space or file descriptors are exhausted.
    """
    outer = ""
    if _watch:
        outer = _watch.enter(str(file))
    try:
        with warnings.catch_warnings():
            # Most concern metadata. With `python -W error` they would be errors.
            warnings.simplefilter("ignore")
            yield
    except (Unusable, ConfigError):
        raise
    except BaseException as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
            raise ConfigError(
                f"file {str(file)!r} cannot be read: {error.strerror}. Fix it and try again."
            ) from None
        # A panic of a library in Rust is a BaseException.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise Unusable(_reason(error), _detail(error, file)) from None
    finally:
        if _watch:
            _watch.leave(outer)


def regular_file(path: Path) -> Path:
    """Return the path after a check: reading a pipe or a device may never end.

    Raises:
        Unusable: it is empty, a folder, or no regular file.
        OSError, ValueError: it is missing, or its name is invalid.
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise Unusable("unreadable", "a folder")
    if not stat.S_ISREG(status.st_mode):
        raise Unusable("unreadable", "no regular file")
    if status.st_size == 0:
        raise Unusable("empty")
    return path


def _reason(error: BaseException) -> Reason:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "missing"
    if "truncated" in _text(error).lower():
        return "truncated"
    return "unreadable"


def _detail(error: BaseException, file: object) -> str:
    """Describe the error, without the folders of the file's path."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return ""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = _text(error).replace(str(file), Path(str(file)).name)
    if isinstance(error, OSError) and text:
        return text
    return f"{type(error).__name__}: {text}".removesuffix(": ")


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # the text of a decoder's error may itself be broken
        return ""
