"""Copy a packed set to a node's own disk, once for all ranks and runs of the node.

Several threads read, because one read at a time leaves a network file system idle. The copy is
verified. If it cannot be made, the shared set is read instead.
"""

import fcntl
import io
import os
import shutil
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np
import xxhash

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.columns import Columns, open_columns
from furnace_hpc.host.regular_file import open_regular, read_regular

# Environment variable with the node-local folder. A cluster profile's `scratch` sets it.
SCRATCH = "FURNACE_SCRATCH"
CHUNK_BYTES = 1 << 24
NUM_THREADS = 8  # a network file system serves several reads at the same time
AHEAD = 2 * NUM_THREADS  # blocks that may wait in memory to be hashed
POLL_S = 0.2  # a rank that waits for another rank's copy checks this often
Heartbeat = Callable[[str], None]


def stage(
    columns: Columns, scratch: str, heartbeat: Heartbeat = lambda where: None
) -> tuple[Columns, str]:
    """Return the set to read, which is a copy below `scratch` or the shared one, and a log line.

    The copy's name contains a hash of the manifest, and so of all contents. So later runs find it.
    It is not removed here: sites have their own rules for scratch folders.

    Args:
        columns: the packed set on the shared file system.
        scratch: a folder on this node's own disk. Variables in it are expanded on this node.
        heartbeat: called at all progress. Ranks that wait call it at the copying rank's progress.

    Raises:
        ConfigError: a file of the shared set does not have the hash in its manifest.
    """
    expanded = Path(os.path.expandvars(scratch))
    try:
        if "$" in str(expanded):
            raise OSError(f"{expanded} names a variable that is not set")
        place = _own_folder(expanded)
        content = read_regular(columns.folder / "manifest.json")
        copy = place / f"{columns.manifest.dataset}-{xxhash.xxh3_64_hexdigest(content)}"
        with (place / f"{copy.name}.lock").open("a+") as lock:
            waited = _take(lock, heartbeat)
            if (found := _opened(copy)) is None:
                if waited and (why := _recorded_error(lock)):
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
    """Make this user's folder in a scratch folder that other users may write to.

    Raises:
        OSError: there is no scratch folder, or another user made the folder.
    """
    if not scratch.is_dir():
        raise OSError(f"{scratch} is not a folder on this node")
    place = scratch / f"furnace-{os.getuid()}"
    place.mkdir(mode=0o700, exist_ok=True)
    if place.is_symlink() or place.stat().st_uid != os.getuid():
        raise OSError(f"{place} belongs to another user")
    return place


def _take(lock: TextIO, heartbeat: Heartbeat) -> bool:
    """Take the lock, which ends with its process. Return whether another process held it."""
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
            time.sleep(POLL_S)


def _recorded_error(lock: TextIO) -> str:
    """Return why the previous rank could not make the copy."""
    lock.seek(0)
    return lock.read()


def _opened(copy: Path) -> Columns | None:
    try:
        return open_columns(copy)
    except ConfigError:
        return None


def _copied(columns: Columns, copy: Path, lock: TextIO, heartbeat: Heartbeat) -> Columns:
    """Copy to a temporary folder, then rename it. Remove incomplete copies first."""
    temporary = copy.with_name(f"{copy.name}.tmp")
    lock.truncate(0)
    try:
        for left in (temporary, copy):
            shutil.rmtree(left, ignore_errors=True)
        _check_room(columns, copy.parent)
        with ThreadPoolExecutor(NUM_THREADS, "staging") as pool:
            for name, stored in columns.manifest.files.items():
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                report = partial(_progress, name, lock, heartbeat)
                got = _copy(columns.folder / name, temporary / name, report, pool)
                if got != stored.xxh3_128:
                    raise ConfigError(
                        f"data file {columns.folder / name} holds content hash {got}, but the "
                        f"manifest has {stored.xxh3_128}: pack the data set again"
                    )
        shutil.copyfile(columns.folder / "manifest.json", temporary / "manifest.json")
        temporary.rename(copy)
        return open_columns(copy)
    except OSError as error:
        lock.write(error.strerror or str(error))
        lock.flush()
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _progress(name: str, lock: TextIO, heartbeat: Heartbeat) -> None:
    """Report progress to this rank's watchdog, and to waiting ranks by the lock's mtime."""
    heartbeat(f"copying {name} to this node")
    os.utime(lock.fileno())


def _check_room(columns: Columns, place: Path) -> None:
    needed = sum(file.num_bytes for file in columns.manifest.files.values())
    free = shutil.disk_usage(place).free
    if free < needed * 1.02:
        raise OSError(
            f"{place} has {free / 2**30:.1f} GiB free, the data needs {needed / 2**30:.1f}"
        )


def _copy(source: Path, target: Path, report: Callable[[], None], pool: Executor) -> str:
    """Copy one file with all threads of the pool.

    Return the hash of its bytes, without the header if it is an .npy file.
    """
    digest = xxhash.xxh3_128()
    with open_regular(source) as read, target.open("wb") as write:
        copy_block = partial(_copy_block, read.fileno(), write.fileno())
        starts = iter(range(0, os.fstat(read.fileno()).st_size, CHUNK_BYTES))
        pending = deque(pool.submit(copy_block, start) for start in islice(starts, AHEAD))
        has_header = source.suffix == ".npy"
        while pending:
            block = pending.popleft().result()
            pending.extend(pool.submit(copy_block, start) for start in islice(starts, 1))
            if has_header:
                digest.update(memoryview(block)[_header_bytes(block) :])
            else:
                digest.update(block)
            has_header = False
            report()
        os.fsync(write.fileno())
    return digest.hexdigest()


def _copy_block(source: int, target: int, start: int) -> bytes:
    """Copy one block between two open files. Return it, shorter if the file ends in it."""
    parts, at = [], start
    while at < start + CHUNK_BYTES and (part := os.pread(source, start + CHUNK_BYTES - at, at)):
        written = 0
        while written < len(part):
            written += os.pwrite(target, part[written:], at + written)
        parts.append(part)
        at += len(part)
    return b"".join(parts)


def _header_bytes(block: bytes) -> int:
    """Return the offset of the array in an .npy file."""
    start = io.BytesIO(block)
    if np.lib.format.read_magic(start) == (1, 0):
        np.lib.format.read_array_header_1_0(start)
    else:
        np.lib.format.read_array_header_2_0(start)
    return start.tell()
