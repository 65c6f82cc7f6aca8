"""The one place where files of samples are read: whatever a decoder does costs that file, never the others.

Inside `reading`, every exception becomes `Unusable`. In a process of a pack, `reading` also writes what it reads to
memory that the parent shares, so that the parent can name the file after a crash, and limits the time of one file.
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

PLACE_BYTES = 1 << 15
_MAX_NAME = 2000  # characters of a name in the shared memory
# Errors of the machine, not of the file: they end the pack, which resumes when they are fixed.
_OF_THE_MACHINE = {errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True)
class At:
    """What a process was reading when it ended."""

    row: int
    """Position in its chunk; -1 between two samples."""
    sample: str
    file: str
    """Empty if it was at no file."""


class Watch:
    """Tells the parent what this process reads, and limits the time of each file."""

    def __init__(self, memory: Any, max_cpu_s: float, max_wall_s: float) -> None:
        self._memory = memory
        self._limits = {signal.ITIMER_PROF: max_cpu_s, signal.ITIMER_REAL: max_wall_s}
        self.at, self._crashed = At(-1, "", ""), dict[str, str]()

    def begin(self, row: int, crashed: Mapping[str, str]) -> None:
        """Begin a sample; `crashed` has the files that ended a process before, and how."""
        self._crashed = dict(crashed)
        self._write(At(row, "", ""))

    def name(self, sample: str) -> None:
        """Name the sample that was begun."""
        self._write(At(self.at.row, sample[:_MAX_NAME], ""))

    def enter(self, file: str) -> str:
        """Begin a file; return the one that it is a part of, or an empty string."""
        outer, file = self.at.file, file[:_MAX_NAME]
        if file in self._crashed:
            raise Unusable("unreadable", self._crashed[file])
        self._write(At(self.at.row, self.at.sample, file))
        if not outer:
            for timer, limit_s in self._limits.items():
                signal.setitimer(timer, limit_s)
        return outer

    def leave(self, outer: str) -> None:
        """End a file."""
        self._write(At(self.at.row, self.at.sample, outer))
        if not outer:
            for timer in self._limits:
                signal.setitimer(timer, 0)

    def _write(self, at: At) -> None:
        self.at = at
        content = json.dumps([at.row, at.sample, at.file]).encode()
        self._memory[: 4 + len(content)] = struct.pack("<I", len(content)) + content


def read_place(memory: Any) -> At:
    """What `Watch` wrote last; nothing if a decoder has overwritten it."""
    (length,) = struct.unpack("<I", memory[:4])
    try:
        return At(*json.loads(memory[4 : 4 + length])) if length else At(-1, "", "")
    except (ValueError, TypeError):
        return At(-1, "", "")


_watch: Watch | None = None


def watch_this_process(watch: Watch) -> None:
    """Write what `reading` reads to shared memory. Timers end the process: a decoder cannot be stopped."""
    global _watch
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _watch = watch


def name_sample(sample: str) -> None:
    """Name the sample that is rendered, for the case that this process crashes."""
    if _watch:
        _watch.name(sample)


@contextmanager
def reading(file: str | Path) -> Iterator[None]:
    """Read a file of a sample. `reading` may be nested: the innermost file is the one that is named.

    Raises:
        Unusable: the body raised anything, or this file ended another process.
        ConfigError: the body raised it, or the machine has no room or no file descriptors left.
    """
    outer = _watch.enter(str(file)) if _watch else ""
    try:
        with warnings.catch_warnings():
            # of metadata, mostly; with -W error they would be errors
            warnings.simplefilter("ignore")
            yield
    except (Unusable, ConfigError):
        raise
    except BaseException as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
            raise ConfigError(
                f"file {str(file)!r} cannot be read: {error.strerror}. Fix it and try again."
            ) from None
        # A library in Rust raises a BaseException where its own code fails.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise Unusable(_reason(error), _detail(error, file)) from None
    finally:
        if _watch:
            _watch.leave(outer)


def regular_file(path: Path) -> Path:
    """Return the path of a file that is not empty. Reading a pipe or a device may never end.

    Raises:
        Unusable: it is empty, a folder, or no regular file.
        OSError, ValueError: it is missing, or the name cannot be one of a file.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise Unusable(
            "unreadable", "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
        )
    if status.st_size == 0:
        raise Unusable("empty")
    return path


def _reason(error: BaseException) -> Reason:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "missing"
    return "truncated" if "truncated" in _text(error).lower() else "unreadable"


def _detail(error: BaseException, file: str | Path) -> str:
    """What is wrong, without the folders of the file's path."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return ""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = _text(error).replace(str(file), Path(file).name)
    return (
        text
        if isinstance(error, OSError) and text
        else f"{type(error).__name__}: {text}".removesuffix(": ")
    )


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # an error of a decoder may be as broken as its file
        return ""
