"""Limit the memory of a process and its children with a memory cgroup, of version 1 or 2.

The page cache counts. A set of files larger than the limit cannot stay in memory.
"""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

MB = 1_000_000
OWN = {1: ("total_rss", "total_shmem"), 2: ("anon", "shmem")}  # without the page cache of files
LIMIT = {1: "memory.limit_in_bytes", 2: "memory.max"}
# Without swap, a process that needs more than the limit is killed instead of slowed down.
NO_SWAP = {1: "memory.memsw.limit_in_bytes", 2: "memory.swap.max"}
KILLS = {1: "memory.oom_control", 2: "memory.events"}


class NoMemoryGroupError(Exception):
    """No memory cgroup can be made here."""


class Place(NamedTuple):
    """A cgroup in which another one may be made."""

    path: Path
    version: int


class MemoryGroup:
    """A context: a memory cgroup for one measuring process. `join` moves that process into it."""

    def __init__(self, place: Place, limit_mb: int) -> None:
        self.path = place.path / f"furnace-loader-{os.getpid()}-{time.monotonic_ns()}"
        self._version, self._limit_mb = place.version, limit_mb

    def __enter__(self) -> "MemoryGroup":
        self.path.mkdir()
        limit = str(self._limit_mb * MB)
        try:
            (self.path / LIMIT[self._version]).write_text(limit)
        except OSError:  # there is no memory controller in this cgroup
            self.path.rmdir()
            raise
        with suppress(OSError):  # kernels without swap accounting have no such file
            (self.path / NO_SWAP[self._version]).write_text(limit if self._version == 1 else "0")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the processes that are left, such as workers, and remove the cgroup."""
        for _ in range(100):
            for number in (self.path / "cgroup.procs").read_text().split():
                with suppress(ProcessLookupError):
                    os.kill(int(number), signal.SIGKILL)
            with suppress(OSError):  # it is busy until the last process has ended
                self.path.rmdir()
                return
            time.sleep(0.1)
        raise TimeoutError(f"{self.path} has processes that do not end")

    def own_mb(self) -> float:
        """Memory of the processes now, shared memory included, in MB. Files do not count."""
        found = _numbers(self.path / "memory.stat")
        return sum(found[name] for name in OWN[self._version]) / MB

    def kills(self) -> int:
        """How many processes the kernel has killed because of the limit."""
        return _numbers(self.path / KILLS[self._version])["oom_kill"]


def join(group: Path) -> None:
    """Move this process into the cgroup. Later children start there."""
    (group / "cgroup.procs").write_text(str(os.getpid()))


def find_place() -> Place:
    """Find the nearest cgroup above this process in which a memory cgroup can be made.

    Raises:
        NoMemoryGroupError: there is none, or this user may not make one.
    """
    mounts = Path("/proc/self/mountinfo").read_text()
    own = Path("/proc/self/cgroup").read_text()
    problems = []
    for place in places(mounts, own):
        try:
            with MemoryGroup(place, 64) as group:
                assert group.kills() == 0
            return place
        except (OSError, KeyError) as error:
            problems.append(f"{place.path}: {error}")
    why = problems[0] if problems else "no memory controller is mounted"
    raise NoMemoryGroupError(
        f"no memory cgroup can be made ({why}). Run this as root, or with version 2 in a part that "
        "is delegated to you: systemd-run --user --scope -p Delegate=yes python ..."
    )


def places(mounts: str, own: str) -> list[Place]:
    """Memory cgroups around this process, the nearest first.

    Args:
        mounts: the content of /proc/self/mountinfo.
        own: the content of /proc/self/cgroup.
    """
    found = []
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        root, mounted = before.split()[3:5]
        kind, _, options = after.split()[:3]
        version = {"cgroup": 1, "cgroup2": 2}.get(kind)
        if version is None or (version == 1 and "memory" not in options.split(",")):
            continue
        top = Path(mounted)
        nearest = top / _own_cgroup(own, version).removeprefix(root).lstrip("/")
        while True:
            found.append(Place(nearest, version))
            if top == nearest or top not in nearest.parents:
                break
            nearest = nearest.parent
    return sorted(found, key=lambda place: place.version)


def _own_cgroup(own: str, version: int) -> str:
    for line in own.splitlines():
        number, controllers, path = line.split(":", 2)
        if (version == 2 and number == "0") or (
            version == 1 and "memory" in controllers.split(",")
        ):
            return path
    return "/"


def _numbers(path: Path) -> dict[str, int]:
    words = [line.split() for line in path.read_text().splitlines()]
    return {name: int(value) for name, value in words}
