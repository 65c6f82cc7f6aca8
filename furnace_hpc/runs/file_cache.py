"""Cache what was read from files until their inode, size or time of change differs."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
Stamp = tuple[int, int, int]

# (reader, arguments) -> what it returned, and path -> stamp. None outside of `one_look`.
_look: dict[Any, Any] | None = None
_MISSING = object()


@contextmanager
def one_look() -> Iterator[None]:
    """Let each cached reader look at its files once, even if they change in the meantime.

    So a command that needs a file for several answers reads it once, and its answers agree.
    """
    global _look
    before, _look = _look, {}
    try:
        yield
    finally:
        _look = before


def look_again() -> None:
    """Forget within `one_look` what was read, because it may have changed since."""
    if _look is not None:
        _look.clear()


def is_looking() -> bool:
    """Whether this is within `one_look`, where what was read once counts."""
    return _look is not None


def once_per_look(read: Callable[P, T]) -> Callable[P, T]:
    """Decorate a reader that is called once per arguments within `one_look`. Elsewhere always."""

    @wraps(read)
    def cached(*args: P.args, **kwargs: P.kwargs) -> T:
        if _look is None:
            return read(*args, **kwargs)
        key = (read, args, *kwargs.items())
        content = _look.get(key, _MISSING)
        if content is _MISSING:
            content = read(*args, **kwargs)
            if _look is not None:  # the reader may have ended the look
                _look[key] = content
        known: T = content
        return known

    return cached


def cached_by_stat(
    files: Callable[..., Iterable[Path | str]],
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a reader so that it reads again only if one of these files has changed.

    Records are replaced and metrics only grow, so inode, size or time always differ after a change.
    NFS clients may cache them for up to a minute for files that are not open. Arguments must be
    hashable. Callers must not change the result.
    """

    def decorate(read: Callable[P, T]) -> Callable[P, T]:
        known: dict[Any, tuple[list[Any], T]] = {}

        @once_per_look
        @wraps(read)
        def cached(*args: P.args, **kwargs: P.kwargs) -> T:
            # before reading: a change during the read is seen next time
            stamps = [_stamp(file) for file in files(*args, **kwargs)]
            key = (args, tuple(kwargs.items()))
            before = known.get(key)
            if before and before[0] == stamps:
                return before[1]
            content = read(*args, **kwargs)
            known[key] = (stamps, content)
            return content

        return cached

    return decorate


def _stamp(file: Path | str) -> Stamp | None:
    try:
        facts = os.stat(file)  # noqa: PTH116
    except OSError:
        return None
    return facts.st_ino, facts.st_size, facts.st_mtime_ns
