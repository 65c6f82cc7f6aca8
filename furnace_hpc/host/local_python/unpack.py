"""Unpack an archive of a Python environment to the node's own disk, once for all ranks and runs.

`launch/python_archive.py` makes the archive. If it cannot be unpacked, the shared Python is used.
Standard library only, syntax of Python 3.6.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from typing import IO, Any, List, Mapping

ARCHIVE, SCRATCH = "FURNACE_PYTHON_ARCHIVE", "FURNACE_SCRATCH"
FACTS = "furnace-python.json"  # at the root of the archive
HERE = "@FURNACE_COPY@"  # in a file of FACTS["rewrite"]: the folder of the copy
UNPACK_S = 1800


def with_local_python(command: List[str], environment: Mapping[str, str]) -> List[str]:
    """The command with this node's copy of its Python. Unchanged if the job has no archive.

    Args:
        command: begins with the shared Python.
        environment: with the archive, and the folder on the node's own disk.
    """
    archive, scratch = environment.get(ARCHIVE), environment.get(SCRATCH)
    if not archive or not scratch:
        return command
    try:
        return [local_python(archive, os.path.expandvars(scratch))] + command[1:]
    except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
        print(
            f"WARNING: python: started from {command[0]}, not from a copy in {scratch}: {error}",
            file=sys.stderr,
            flush=True,
        )
        return command


def local_python(archive: str, scratch: str) -> str:
    """The Python of this node's copy. The first rank unpacks it, and the others wait.

    Raises:
        OSError: there is no room, or no folder of this user in the scratch folder.
        ValueError: the archive is damaged.
    """
    if "$" in scratch:
        raise OSError(f"{scratch} names a variable that is not set")
    archive = os.path.realpath(archive)
    key = os.path.splitext(os.path.basename(archive))[0]
    copy = os.path.join(_own_folder(scratch), f"python-{key}")
    if not os.path.exists(os.path.join(copy, FACTS)):
        with open(f"{copy}.lock", "a+") as lock:
            waited = _take(lock)
            if not os.path.exists(os.path.join(copy, FACTS)):
                _unpack_once(archive, copy, lock, waited)
    with open(os.path.join(copy, FACTS)) as file:
        return os.path.join(copy, json.load(file)["executable"])


def _own_folder(scratch: str) -> str:
    """This user's folder in a scratch folder that other users may write to."""
    if not os.path.isdir(scratch):
        raise OSError(f"{scratch} is not a folder on this node")
    place = os.path.join(scratch, f"furnace-{os.getuid()}")
    os.makedirs(place, mode=0o700, exist_ok=True)
    facts = os.lstat(place)
    if os.path.islink(place) or facts.st_uid != os.getuid() or facts.st_mode & 0o022:
        raise OSError(f"{place} belongs to another user, or others may write it")
    return place


def _take(lock: IO[Any]) -> bool:
    """Take the lock, which ends with its process. Return whether another process held it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return True


def _unpack_once(archive: str, copy: str, lock: IO[Any], waited: bool) -> None:
    """Unpack, and note an error in the lock for the ranks that wait for this one."""
    lock.seek(0)
    noted = lock.read()
    if waited and noted:
        raise OSError(noted)
    lock.truncate(0)
    try:
        _unpack(archive, copy)
    except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
        lock.write(str(error))
        lock.flush()
        raise


def _unpack(archive: str, copy: str) -> None:
    """Unpack to a temporary folder, then rename it. Incomplete copies are removed first."""
    temporary = f"{copy}.tmp"
    for left in (temporary, copy):
        shutil.rmtree(left, ignore_errors=True)
    needed, free = os.stat(archive).st_size, shutil.disk_usage(os.path.dirname(copy)).free
    if free < 1.02 * needed:
        raise OSError(f"{free / 2**30:.1f} GiB are free, the copy needs {needed / 2**30:.1f}")
    os.makedirs(temporary)
    try:
        command = ["tar", "--extract", "--file", archive, "--directory", temporary]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=UNPACK_S, check=False
        )
        if done.returncode:
            raise ValueError(done.stdout.decode("utf-8", "replace").strip()[-300:])
        with open(os.path.join(temporary, FACTS)) as file:
            rewritten = json.load(file)["rewrite"]
        for name in rewritten:
            _rewrite(os.path.join(temporary, name), copy)
        os.rename(temporary, copy)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _rewrite(path: str, copy: str) -> None:
    with open(path, encoding="utf-8") as file:
        text = file.read()
    with open(path, "w", encoding="utf-8") as file:
        file.write(text.replace(HERE, copy))
