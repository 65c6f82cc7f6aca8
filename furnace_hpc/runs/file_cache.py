"""Cache what was read from files until their inode, size or time of change differs."""

from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def cached_by_stat(
    files: Callable[..., Iterable[Path]],
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a reader so that it reads again only if one of these files has changed.

    Records are replaced and metrics only grow, so inode, size or time always differ after a change.
    NFS clients may cache them for up to a minute for files that are not open. Arguments must be
    hashable. Callers must not change the result.
    """

    def decorate(read: Callable[P, T]) -> Callable[P, T]:
        known: dict[Any, tuple[list[Any], T]] = {}

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


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
