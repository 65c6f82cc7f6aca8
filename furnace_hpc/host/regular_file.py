"""Open regular files only, and none that is larger than expected.

Other users may have made the files. Opening a named pipe waits for a writer, and reading a device
never ends. Standard library only, syntax of Python 3.6.
"""

import errno
import os
import stat
from typing import IO, Any, Optional, Tuple, Union

RECORD_BYTES = 64 << 20  # more than any JSON file that Furnace writes
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

Name = Union[str, "os.PathLike[str]"]


class IrregularFile(OSError, ValueError):
    """It is not a regular file, or too large. As a ValueError it counts as damaged."""


def open_regular(
    path: Name, mode: str = "rb", at_most: Optional[int] = None, **how: Any
) -> IO[Any]:
    """Open a regular file for reading. Anything else is refused at once.

    Args:
        path: the file. Links are followed.
        mode: rb or r.
        at_most: largest size in bytes. None: any.
        how: more arguments of `open`, such as encoding.

    Raises:
        IrregularFile: it is a pipe, device, socket or folder, or larger.
        OSError: as `open`.
    """

    def opener(name: str, flags: int) -> int:
        return _open(name, flags, path, at_most)[0]

    return open(path, mode, opener=opener, **how)


def _open(name: str, flags: int, path: Name, at_most: Optional[int]) -> Tuple[int, int]:
    """Open a regular file. Returns its descriptor and its size."""
    try:
        # without O_NONBLOCK opening a pipe waits for a writer
        descriptor = os.open(name, flags | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        if error.errno == errno.ENXIO:  # what opening a socket gives
            problem = "is a socket or a device, not a regular file"
            raise IrregularFile(errno.EINVAL, problem, str(path)) from None
        raise
    try:
        facts = os.fstat(descriptor)
        _check(facts, path, at_most)
        os.set_blocking(descriptor, True)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, facts.st_size


def check_regular(path: Name, at_most: Optional[int] = None) -> None:
    """Raise the errors of `open_regular`, for a library that opens the file itself."""
    _check(os.stat(path), path, at_most)


def read_regular(path: Name, at_most: Optional[int] = RECORD_BYTES) -> bytes:
    """All bytes of a regular file.

    Raises:
        IrregularFile: it is not a regular file, or larger.
        OSError: as `open`.
    """
    return _read(path, at_most, None)


def read_tail(path: Name, num_bytes: int) -> bytes:
    """The last bytes of a regular file.

    Raises:
        OSError: as `open_regular`.
    """
    return _read(path, None, num_bytes)


def _read(path: Name, at_most: Optional[int], tail: Optional[int]) -> bytes:
    """A whole file or its end. File objects would make twice as many calls of the system."""
    descriptor, size = _open(os.fspath(path), os.O_RDONLY, path, at_most)
    try:
        if tail is not None and size > tail:
            os.lseek(descriptor, size - tail, os.SEEK_SET)
            size = tail
        blocks = [os.read(descriptor, size + 1)]
        while blocks[-1]:
            blocks.append(os.read(descriptor, 1 << 20))
    finally:
        os.close(descriptor)
    return b"".join(blocks)


def read_regular_text(path: Name, errors: str = "strict", at_most: Optional[int] = None) -> str:
    """All text of a regular file in UTF-8.

    Raises:
        IrregularFile: it is not a regular file, or larger.
        UnicodeDecodeError: it is not UTF-8, with errors="strict".
        OSError: as `open`.
    """
    with open_regular(path, "r", at_most, encoding="utf-8", errors=errors) as file:
        text = file.read()  # type: str
    return text


def _check(facts: os.stat_result, path: Name, at_most: Optional[int]) -> None:
    if stat.S_ISDIR(facts.st_mode):
        raise IrregularFile(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(facts.st_mode):
        kind = _KINDS.get(stat.S_IFMT(facts.st_mode), "something else")
        raise IrregularFile(errno.EINVAL, f"is {kind}, not a regular file", str(path))
    if at_most is not None and facts.st_size > at_most:
        problem = f"has {facts.st_size:,} bytes, at most {at_most:,} are read"
        raise IrregularFile(errno.EFBIG, problem, str(path))
