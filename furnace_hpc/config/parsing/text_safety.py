"""Mask secrets, and escape control characters, in text that is shown or written."""

import os
import re
import threading
from collections.abc import Iterator
from typing import Any, TextIO

MASK = "[masked]"
_SHORTEST = 8  # of a value that stands in the environment: shorter ones are words
_NAMED = re.compile(
    r"""(?P<name>(?:token|secret|passw(?:or)?d|passphrase|credential|api[_-]?key|access[_-]?key|private[_-]?key)(?![a-z])
    ["']?\s*[=:]\s*["']?)(?P<value>(?![$/~\[])[^\s"',;|&<>]{8,})""",
    re.IGNORECASE | re.VERBOSE,
)
_SHAPED = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{30,}|\bglpat-[\w-]{16,}|\bsk-[\w-]{20,}"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bxox[abprs]-[\w-]{10,}|\beyJ[\w-]{15,400}\.[\w-]{10,4000}\.[\w-]*"
    r"|\bhttps?://[^\s/:@]+:[^\s/@]{4,}@|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_NAME = re.compile(
    r"(token|secret|passw(or)?d|passphrase|credential|api_?key|access_?key|private_?key)(?![a-z])|_(jwt|pass|pwd|pat|key)$",
    re.IGNORECASE,
)


def find_secret(text: str) -> int | None:
    """Where the first thing begins that looks like a secret; None: nothing does."""
    found = [match.start() for match in (_NAMED.search(text), _SHAPED.search(text)) if match]
    found += [at for value in _of_environment() if (at := text.find(value)) >= 0]
    return min(found, default=None)


def masked(text: str) -> str:
    """The text without what looks like a secret, and without the values of such variables of the environment."""
    for value in _of_environment():
        text = text.replace(value, MASK)
    return _SHAPED.sub(MASK, _NAMED.sub(lambda match: match["name"] + MASK, text))


def _of_environment() -> Iterator[str]:
    for name, value in os.environ.items():
        if _NAME.search(name) and len(value) >= _SHORTEST and not value.startswith("/"):
            yield value


class Masking:
    """A text stream that masks each line before it is written: what libraries print goes into logs through it.

    A line that has no end yet waits for it, or for a flush; each thread has its own. All else is the stream's.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._begun = stream, threading.local()

    def write(self, text: str) -> int:
        """Write whole lines, and keep the rest."""
        lines, newline, rest = (self._unfinished() + text).rpartition("\n")
        self._begun.text = rest
        if newline:
            self._stream.write(masked(lines) + newline)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write several texts."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Write what is kept of this thread's line."""
        if unfinished := self._unfinished():
            self._begun.text = ""
            self._stream.write(masked(unfinished))
        self._stream.flush()

    def _unfinished(self) -> str:
        return getattr(self._begun, "text", "")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def printable(text: str) -> str:
    r"""The text on one line: control characters, lone surrogates and marks that turn the writing round as `\x1b`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def short(text: str, length: int = 80) -> str:
    """The text, or its beginning and its end where it is longer than `length`."""
    return text if len(text) <= length else f"{text[: length // 2]}...{text[-length // 4 :]}"
