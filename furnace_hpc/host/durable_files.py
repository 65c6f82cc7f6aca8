"""Write files that are complete if they exist, and sync them where a power cut must not lose them.

Standard library only, syntax of Python 3.6.
"""

import os
from contextlib import contextmanager
from typing import IO, Any, BinaryIO, Iterator, cast

from furnace_hpc.host.regular_file import Name


@contextmanager
def replaced_file(path: Name, durable: bool = True) -> Iterator[IO[bytes]]:
    """Yield a temporary file beside `path`, and rename it to `path` at the end.

    A reader sees the old file or the whole new one. After an error the old file is unchanged and
    the temporary file is deleted.

    Args:
        path: the file to write. Its folder exists.
        durable: sync the content before the rename. Then a power cut leaves one of the two files.
    """
    temporary = _temporary_name(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            if durable:
                _sync_content(file)
        os.replace(temporary, path)
    except BaseException:
        _delete(temporary)
        raise


def replace_file(path: Name, content: bytes, durable: bool = True) -> None:
    """Write `content` to `path` as `replaced_file` does."""
    with replaced_file(path, durable) as file:
        file.write(content)


def create_file(path: Name, content: bytes) -> None:
    """Write a new file and sync it. After an error there is no file.

    Raises:
        FileExistsError: the file exists.
        OSError: it cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            _sync_content(file)
    except BaseException:
        _delete(path)
        raise


def create_complete_file(path: Name, content: bytes) -> None:
    """Write a new file that no reader can see before it is complete. It is not synced.

    Raises:
        FileExistsError: the file exists.
        OSError: it cannot be written, or the file system has no hard links.
    """
    temporary = _temporary_name(path)
    try:
        with open(temporary, "wb") as file:
            file.write(content)
        os.link(temporary, path)
    finally:
        _delete(temporary)


@contextmanager
def synced_file(path: Name, mode: str = "wb") -> Iterator[BinaryIO]:
    """Open a binary file for writing, under its own name, and sync it at the end."""
    with cast(BinaryIO, open(path, mode)) as file:
        yield file
        _sync_content(file)


def write_durably(path: Name, content: bytes) -> None:
    """Write a file under its own name and sync it."""
    with synced_file(path) as file:
        file.write(content)


def append_line(path: Name, line: str) -> None:
    """Append a line and sync it. If a crash left half a line, that one is ended first."""
    with synced_file(path, "a+b") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        if file.read(1) not in (b"", b"\n"):
            file.write(b"\n")
        file.write(line.encode("utf-8") + b"\n")


def sync(path: Name) -> None:
    """Make a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary_name(path: Name) -> str:
    folder, name = os.path.split(os.fspath(path))
    return os.path.join(folder, f".{name}.{os.urandom(4).hex()}")


def _sync_content(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _delete(path: Name) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
