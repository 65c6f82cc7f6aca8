"""Mask secrets, and escape control characters, in text that is shown or written."""

import os
import re
import threading
from collections.abc import Iterator
from typing import Any, TextIO

MASK = "[masked]"
_SHORTEST = 8  # characters of a secret in the environment; shorter values are words
_NAMED = re.compile(
    r"""(?P<name>
    (?:token|secret|passw(?:or)?d|passphrase|credential|api[_-]?key|access[_-]?key|private[_-]?key)
    (?![a-z])["']?\s*[=:]\s*["']?)(?P<value>(?![$/~\[])[^\s"',;|&<>]{8,})""",
    re.IGNORECASE | re.VERBOSE,
)
_SHAPED = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{30,}"
    r"|\bglpat-[\w-]{16,}|\bsk-[\w-]{20,}|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\bxox[abprs]-[\w-]{10,}|\beyJ[\w-]{15,400}\.[\w-]{10,4000}\.[\w-]*"
    r"|\bhttps://hooks\.slack(?:-gov)?\.com/\w+/[\w/-]{8,}"
    r"|\bhttps://(?:\w+\.)?discord(?:app)?\.com/api/webhooks/[\w/-]{8,}"
    r"|\bhttps?://[^\s/]+/(?:hooks|webhookb2)/[\w@/-]{20,}"
    r"|\bhttps?://[^\s/:@]+:[^\s/@]{4,}@|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_NAME = re.compile(
    r"(token|secret|passw(or)?d|passphrase|credential|api_?key|access_?key|private_?key)(?![a-z])"
    r"|_(jwt|pass|pwd|pat|key)$",
    re.IGNORECASE,
)


def find_secret(text: str) -> int | None:
    """Position of the first text that looks like a secret. None if there is none."""
    found = [match.start() for match in (_NAMED.search(text), _SHAPED.search(text)) if match]
    found += [at for value in _of_environment() if (at := text.find(value)) >= 0]
    return min(found, default=None)


def masked(text: str) -> str:
    """The text without secrets: what looks like one, and values of variables with such a name."""
    for value in _of_environment():
        text = text.replace(value, MASK)
    return _SHAPED.sub(MASK, _NAMED.sub(lambda match: match["name"] + MASK, text))


def _of_environment() -> Iterator[str]:
    for name, value in os.environ.items():
        if _NAME.search(name) and len(value) >= _SHORTEST and not value.startswith("/"):
            yield value


class Masking:
    """A stream that masks each line before it is written to another stream, such as a log.

    Each thread has its own unfinished line. It is written when it ends, or at a flush. All other
    attributes are those of the other stream.
    """

    def __init__(self, stream: TextIO, prefix: str = "") -> None:
        """Mask what goes to `stream`. Each line begins with `prefix`."""
        self._stream, self._lines, self._prefix = stream, threading.local(), prefix

    def write(self, text: str) -> int:
        """Write whole lines. Keep the unfinished one."""
        lines, newline, rest = (self._unfinished() + text).rpartition("\n")
        self._lines.text = rest
        if newline:
            self._stream.write(self._prefixed(masked(lines)) + newline)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write several texts."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Write this thread's unfinished line."""
        if unfinished := self._unfinished():
            self._lines.text = ""
            self._stream.write(self._prefixed(masked(unfinished)))
        self._stream.flush()

    def _prefixed(self, lines: str) -> str:
        return self._prefix + lines.replace("\n", f"\n{self._prefix}")

    def _unfinished(self) -> str:
        return getattr(self._lines, "text", "")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def printable(text: str) -> str:
    r"""The text on one line.

    Control characters, lone surrogates and marks that reverse the direction are escaped as `\x1b`.
    """
    if text.isprintable():
        return text
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()


def short(text: str, length: int = 80) -> str:
    """The text if it has at most `length` characters, else its beginning and its end."""
    if len(text) <= length:
        return text
    return f"{text[: length // 2]}...{text[-length // 4 :]}"
