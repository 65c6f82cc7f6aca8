"""Give libraries written in C++ and Rust a UTF-8 path. They accept no other."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def utf8_path(path: Path) -> Iterator[Path]:
    """Yield `path`, or another path of the same file or folder that is valid inside the block.

    Raises:
        OSError: the path is not UTF-8, and there is no such file or folder.
    """
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        descriptor = os.open(path, os.O_PATH)
        try:
            yield Path(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
    else:
        yield path
