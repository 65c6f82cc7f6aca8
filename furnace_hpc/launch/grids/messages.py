"""Report lines from within a submission. Commands print them, and the Python API collects them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_COLLECTED: ContextVar[list[str] | None] = ContextVar("collected", default=None)


def show_message(line: str, *, on_stderr: bool = False) -> None:
    """Print a line for the user, or add it to the list of `collected`."""
    collected_lines = _COLLECTED.get()
    if collected_lines is not None:
        collected_lines.append(line)
    elif on_stderr:
        print(line, file=sys.stderr, flush=True)
    else:
        print(line, flush=True)


def are_collected() -> bool:
    """Whether a caller collects the lines, so that nothing may be printed."""
    return _COLLECTED.get() is not None


def stop_collecting() -> None:
    """Print further lines of this context."""
    _COLLECTED.set(None)


@contextmanager
def collected() -> Iterator[list[str]]:
    """Collect the lines of this context in a list. Nothing is printed."""
    lines: list[str] = []
    token = _COLLECTED.set(lines)
    try:
        yield lines
    finally:
        _COLLECTED.reset(token)
