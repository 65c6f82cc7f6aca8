"""Make standard streams safe: any encoding, closed streams, and readers that stop early."""

import codecs
import errno
import io
import os
import sys
from typing import Any

# ASCII replacements of the characters that commands print themselves.
PLAIN = {"±": "+-", "–": "-", "—": "-", "→": "->", "…": "...", "×": "x", "·": "-", "⚠": "!"}  # noqa: RUF001
EXIT_BROKEN_PIPE = 141  # exit code of programs that end by SIGPIPE


class _Output(io.FileIO):
    """An output stream whose reader may stop early.

    Later text is then dropped. With `ends`, the command exits instead.
    """

    def __init__(self, descriptor: int, ends: bool) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self._ends, self._is_broken = ends, False

    def write(self, content: Any, /) -> int:
        """Write the content, or drop it after an error.

        Dropping is needed because Python writes the rest again when it exits.
        """
        if self._is_broken:
            return len(content)
        try:
            return super().write(content)
        except OSError as error:
            self._is_broken = True
            if error.errno != errno.EPIPE:
                raise
            if self._ends:
                raise SystemExit(EXIT_BROKEN_PIPE) from None
            return len(content)


def set_up(ends: bool = False) -> None:
    """Prepare stdin, stdout and stderr.

    A closed stream becomes /dev/null. A character that the encoding lacks is shown as ASCII.
    If the reader of stdout stops early, as `head -1` does, the command continues silently.
    With `ends` it exits with 141 instead.
    """
    codecs.register_error("furnace.plain", _plain)
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            _open_null(descriptor)
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
        elif name != "stdin" and _is_original(stream, name):
            buffered = io.BufferedWriter(_Output(descriptor, ends and name == "stdout"))
            lines = stream.line_buffering or name == "stderr"
            safe = io.TextIOWrapper(
                buffered, stream.encoding, "furnace.plain", line_buffering=lines
            )
            setattr(sys, name, safe)


def _is_original(stream: Any, name: str) -> bool:
    """Return whether this is the interpreter's own stream, which no caller has replaced."""
    return stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper)


def _open_null(descriptor: int) -> None:
    """Open /dev/null in place of a closed standard stream.

    Otherwise the next file to be opened would get the descriptor.
    """
    try:
        os.fstat(descriptor)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, descriptor)
        if null != descriptor:
            os.close(null)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that cannot be encoded: known signs by ASCII, others by escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(PLAIN.get(char) or _escape(char) for char in text), error.end


def _escape(char: str) -> str:
    byte = ord(char) - 0xDC00  # Python keeps undecodable bytes of paths as surrogates
    if 0x80 <= byte <= 0xFF:
        return f"\\x{byte:02x}"
    return char.encode("unicode_escape").decode("ascii")
