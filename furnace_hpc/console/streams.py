"""Standard streams that cannot end a command: not by their encoding, not closed, and not by a reader that leaves."""

import codecs
import errno
import io
import os
import sys
from typing import Any

# What an ASCII or Latin-1 stream shows for characters that commands print themselves.
PLAIN = {"±": "+-", "–": "-", "—": "-", "→": "->", "…": "...", "×": "x", "·": "-", "⚠": "!"}  # noqa: RUF001
READER_LEFT = 141  # exit code of programs that SIGPIPE ends


class _Output(io.FileIO):
    """A stream whose text is dropped when nobody reads it, or which ends the command then."""

    def __init__(self, descriptor: int, ends: bool) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self._ends, self._is_broken = ends, False

    def write(self, content: Any, /) -> int:
        """Write what fits. After an error everything is dropped: Python writes the rest again when it exits."""
        if self._is_broken:
            return len(content)
        try:
            return super().write(content)
        except OSError as error:
            self._is_broken = True
            if error.errno != errno.EPIPE:
                raise
            if self._ends:
                raise SystemExit(READER_LEFT) from None
            return len(content)


def set_up(ends: bool = False) -> None:
    """Prepare stdin, stdout and stderr.

    A closed stream is /dev/null. A character that the stream's encoding lacks is shown as ASCII. When the reader of
    stdout leaves, such as `head -1`, the command goes on and its output is dropped; with `ends` it exits with 141.
    """
    codecs.register_error("furnace.plain", _plain)
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            _open_null(descriptor)
            stream = open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8")  # noqa: PTH123, SIM115
            setattr(sys, name, stream)
        elif (
            name != "stdin"
            and stream is getattr(sys, f"__{name}__")
            and isinstance(stream, io.TextIOWrapper)
        ):
            buffered = io.BufferedWriter(_Output(descriptor, ends and name == "stdout"))
            lines = stream.line_buffering or name == "stderr"
            setattr(
                sys,
                name,
                io.TextIOWrapper(buffered, stream.encoding, "furnace.plain", line_buffering=lines),
            )


def _open_null(descriptor: int) -> None:
    """Open /dev/null as a standard stream that is closed: else the next file that is opened takes its place."""
    try:
        os.fstat(descriptor)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, descriptor)
        if null != descriptor:
            os.close(null)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Stand-ins for what cannot be encoded: known signs as ASCII, undecodable bytes of paths and others escaped."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(PLAIN.get(char) or _escape(char) for char in text), error.end


def _escape(char: str) -> str:
    byte = ord(char) - 0xDC00  # of a path, as Python keeps bytes that it cannot decode
    return (
        f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else char.encode("unicode_escape").decode("ascii")
    )
