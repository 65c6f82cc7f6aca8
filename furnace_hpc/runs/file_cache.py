"""What was read from files, kept for as long as they are as they were: for commands that look again and again."""

from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def cached_by_stat(
    files: Callable[..., Iterable[Path]],
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Let a reader read again only when one of these files has another inode, size or time of change.

    Records are replaced and metrics only grow, so that one of the three always tells. On NFS a client may keep what it
    knows of a file that is not open for up to a minute. Arguments have to be hashable; callers must not change what
    they are given.
    """

    def decorate(read: Callable[P, T]) -> Callable[P, T]:
        known: dict[Any, tuple[list[Any], T]] = {}

        @wraps(read)
        def kept(*args: P.args, **kwargs: P.kwargs) -> T:
            # before reading: what is newer is read again
            stamps = [_stamp(file) for file in files(*args, **kwargs)]
            key = (args, tuple(kwargs.items()))
            before = known.get(key)
            if before and before[0] == stamps:
                return before[1]
            answer = read(*args, **kwargs)
            known[key] = (stamps, answer)
            return answer

        return kept

    return decorate


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
