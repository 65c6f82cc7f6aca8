"""A packed set copied to a node's own disk: once for all ranks and runs of the node, verified, or not at all."""

import fcntl
import io
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TextIO

import numpy as np
import xxhash

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.columns import Columns, open_columns
from furnace_hpc.host.regular_file import open_regular, read_regular

# the environment variable with the node-local folder; a profile's `scratch` sets it
SCRATCH = "FURNACE_SCRATCH"
CHUNK_BYTES = 1 << 26
LOOK_S = 0.2  # between two looks of a rank that waits for another one's copy
Moved = Callable[[str], None]


def stage(
    columns: Columns, scratch: str, heartbeat: Moved = lambda where: None
) -> tuple[Columns, str]:
    """The set to read from, a copy below `scratch` or the one that is given, and a sentence that says which and why.

    The copy's name holds a hash of the manifest, and so of all contents: it is made once, and found again by later
    runs. It is not removed here; a site's scratch has its own rules for that.

    Args:
        columns: the packed set on the shared file system.
        scratch: a folder on this node's own disk; variables in it are this node's.
        heartbeat: told of all progress, the copying rank's too by those that wait.

    Raises:
        ConfigError: a file read from the shared set does not have the hash of its manifest.
    """
    here = Path(os.path.expandvars(scratch))
    try:
        if "$" in str(here):
            raise OSError(f"{here} names a variable that is not set")
        place = _own_folder(here)
        content = read_regular(columns.folder / "manifest.json")
        copy = place / f"{columns.manifest.dataset}-{xxhash.xxh3_64_hexdigest(content)}"
        with (place / f"{copy.name}.lock").open("a+") as lock:
            waited = _take(lock, heartbeat)
            if (found := _opened(copy)) is None:
                if waited and (why := _told(lock)):
                    raise OSError(why)
                found = _copied(columns, copy, lock, heartbeat)
        return found, f"data: read from {copy}, this node's copy of {columns.folder}"
    except OSError as error:
        why = error.strerror or str(error)
        return (
            columns,
            f"WARNING: data: read from {columns.folder}, not from a copy in {scratch}: {why}",
        )


def _own_folder(scratch: Path) -> Path:
    """This user's folder there; in one that all can write to, nobody else's is taken for it."""
    if not scratch.is_dir():
        raise OSError(f"{scratch} is no folder on this node")
    place = scratch / f"furnace-{os.getuid()}"
    place.mkdir(mode=0o700, exist_ok=True)
    if place.is_symlink() or place.stat().st_uid != os.getuid():
        raise OSError(f"{place} belongs to somebody else")
    return place


def _take(lock: TextIO, heartbeat: Moved) -> bool:
    """Take the lock, which ends with its process; whether another one had it."""
    waited, seen = False, 0.0
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return waited
        except BlockingIOError:
            waited, now = True, os.fstat(lock.fileno()).st_mtime
            if now != seen:
                heartbeat("waiting for another rank's copy of the data")
            seen = now
            time.sleep(LOOK_S)


def _told(lock: TextIO) -> str:
    """Why the rank before could not make the copy."""
    lock.seek(0)
    return lock.read()


def _opened(copy: Path) -> Columns | None:
    try:
        return open_columns(copy)
    except ConfigError:
        return None


def _copied(columns: Columns, copy: Path, lock: TextIO, heartbeat: Moved) -> Columns:
    """Copy beside, then rename; what an earlier process left half done is removed first."""
    aside = copy.with_name(f"{copy.name}.tmp")
    lock.truncate(0)
    try:
        for left in (aside, copy):
            shutil.rmtree(left, ignore_errors=True)
        _check_room(columns, copy.parent)
        for name, stored in columns.manifest.files.items():
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            got = _copy(
                columns.folder / name, aside / name, partial(_progress, name, lock, heartbeat)
            )
            if got != stored.xxh3_128:
                raise ConfigError(
                    f"data file {columns.folder / name} holds content hash {got} where the manifest says "
                    f"{stored.xxh3_128}: pack the data set again"
                )
        shutil.copyfile(columns.folder / "manifest.json", aside / "manifest.json")
        aside.rename(copy)
        return open_columns(copy)
    except OSError as error:
        lock.write(error.strerror or str(error))
        lock.flush()
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _progress(name: str, lock: TextIO, heartbeat: Moved) -> None:
    """Tell the watchdog of this rank, and by the lock's time those of the ranks that wait."""
    heartbeat(f"copying {name} to this node")
    os.utime(lock.fileno())


def _check_room(columns: Columns, place: Path) -> None:
    needed = sum(file.num_bytes for file in columns.manifest.files.values())
    free = shutil.disk_usage(place).free
    if free < needed * 1.02:
        raise OSError(
            f"{place} has {free / 2**30:.1f} GiB free, the data needs {needed / 2**30:.1f}"
        )


def _copy(source: Path, target: Path, tell: Callable[[], None]) -> str:
    """Copy one .npy file; return the hash of its array's bytes as they were written."""
    digest = xxhash.xxh3_128()
    with open_regular(source) as read, target.open("wb") as write:
        block = read.read(CHUNK_BYTES)
        digest.update(memoryview(block)[_header_bytes(block) :])
        while block:
            write.write(block)
            tell()
            block = read.read(CHUNK_BYTES)
            digest.update(block)
        write.flush()
        os.fsync(write.fileno())
    return digest.hexdigest()


def _header_bytes(block: bytes) -> int:
    """Where the array begins in an .npy file."""
    start = io.BytesIO(block)
    version = np.lib.format.read_magic(start)
    (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )(start)
    return start.tell()
