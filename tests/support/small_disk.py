"""A small file system that tests fill."""

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

STEP_BYTES = 16 * 2**20
MAX_FAILURES = 200  # each is followed by a pause of 10 ms


@contextmanager
def small_file_system(folder: Path, size: str = "8m") -> Iterator[Path]:
    """That much memory, mounted there."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "small", folder]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def only(folder: Path, free_kib: int) -> Iterator[None]:
    """So much is free there, and no more."""
    ballast = folder / "ballast"
    try:
        with ballast.open("wb") as file:
            _fill(file.fileno(), free_kib * 1024)
        yield
    finally:
        ballast.unlink()


def _fill(ballast: int, free: int) -> None:
    """Allocate until `free` bytes are left. Others may write, so it asks before each step."""
    size, failures = 0, 0
    while True:
        space = os.fstatvfs(ballast)
        step = min(space.f_bavail * space.f_bsize - free, STEP_BYTES)
        if step <= 0:
            return
        try:
            os.posix_fallocate(ballast, size, step)
            size += step
        except OSError as error:
            failures += 1
            if error.errno != errno.ENOSPC or failures == MAX_FAILURES:
                raise
            time.sleep(0.01)
