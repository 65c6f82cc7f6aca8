"""The disk on which runs lie: which file system, who may write it, its speed, space, inodes and quotas."""

import os
import re
import shlex
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from furnace_hpc.diagnostics.report import Check, Level
from furnace_hpc.host.access import GROUP_ACCESS, IF_UNCHANGED, Fault, find_faults

SHARED = {
    "nfs",
    "nfs4",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "wekafs",
    "panfs",
    "cifs",
    "smb3",
    "afs",
    "pvfs2",
    "glusterfs",
}
IN_MEMORY = {"tmpfs", "ramfs"}
FILE_BYTES, SMALL_FILES = 32 << 20, 10
SLOW_MB_S, SLOW_SYNC_MS = 50.0, 100.0
FEW_BYTES, TOO_FEW_BYTES = 20e9, 1e9  # a checkpoint of the article's network has 3 GB
FEW_INODES, TOO_FEW_INODES = 20_000, 500  # a run has about thirty files
NEARLY_FULL = 0.9
QUOTA_TIMEOUT_S = 20  # it asks file servers, of which one may be away


@dataclass(frozen=True)
class Quota:
    """What one file system grants: kilobytes and files; a limit of 0 is none."""

    where: str
    used_kb: int
    limit_kb: int
    files: int
    limit_files: int


def disk_checks(root: Path, on_slurm: bool) -> list[Callable[[], Check | list[Check]]]:
    """All checks of the folder that runs lie in, or will lie in."""
    place = existing(root)

    def file_system() -> Check:
        return check_file_system(
            root, mount_of(place, Path("/proc/mounts").read_text(errors="replace")), on_slurm
        )

    def permissions() -> Check:
        return check_permissions(root, place)

    def speed() -> Check:
        return check_speed(place)

    def space() -> list[Check]:
        return check_space(os.statvfs(place))

    def quotas() -> list[Check]:
        return check_quotas(_says_quota())

    return [file_system, permissions, speed, space, quotas]


def existing(path: Path) -> Path:
    """The path, or the nearest folder above that is there: a check-up makes nothing."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if os.path.isdir(place))  # noqa: PTH112 - never raises


def mount_of(path: Path, mounts: str) -> tuple[str, str]:
    """(mount point, type) of the file system that a path is on, by the text of /proc/mounts; the later line wins."""
    real, best = path.resolve(), ("/", "unknown")
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[1])
        if real.is_relative_to(point) and len(point) >= len(best[0]):
            best = (point, fields[2])
    return best


def check_file_system(root: Path, mount: tuple[str, str], on_slurm: bool) -> Check:
    """Nodes must see the runs."""
    point, kind = mount
    shared = kind in SHARED or kind.startswith("fuse.")
    found = f"{kind} at {point}, {'shared' if shared else 'local'}: {root}"
    if kind in IN_MEMORY:
        return Check(
            "file system",
            "warn",
            f"{found}, gone with the next boot",
            "choose --runs-root on a disk",
        )
    if on_slurm and not shared:
        return Check(
            "file system",
            "warn",
            found,
            "other nodes may not see it: choose --runs-root on a shared one",
        )
    return Check("file system", "ok", found)


def check_permissions(root: Path, place: Path) -> Check:
    """Whoever may write the runs' root, or rename a folder above it, may run code as its user."""
    if not os.access(place, os.W_OK | os.X_OK):
        return Check(
            "runs' root",
            "fail",
            f"{place} cannot be written by you",
            "choose another with --runs-root",
        )
    faults: dict[str, Fault] = {}
    for folder in (root, *_of_grids(root)):
        for fault in find_faults(str(folder), str(root), with_content=False):
            faults.setdefault(fault.place, fault)
    if faults:
        first = next(iter(faults.values()))
        found, fix = first.problem, first.fix.removeprefix(IF_UNCHANGED)
        if len(faults) > 1:
            found += f"; and {len(faults) - 1} more"
            fix = f"chmod -R go-w {shlex.quote(str(place))}" if fix.startswith("chmod") else fix
        return Check("runs' root", "fail", found, fix)
    if place != root.absolute():
        return Check(
            "runs' root", "ok", f"{root} is not there yet; it is made for you alone (0700)"
        )
    group = " and your group" if os.environ.get(GROUP_ACCESS) == "1" else " alone"
    return Check("runs' root", "ok", f"{place} can be written by you{group}")


def _of_grids(root: Path) -> list[Path]:
    """The folders of its grids that hold what is executed, and those on the way to it."""
    grids = sorted(path.parent for path in root.glob("*/submissions"))
    return [
        place
        for grid in grids
        for place in (grid, grid / "code", grid / "submissions")
        if place.is_dir()
    ]


def check_speed(place: Path) -> Check:
    """A checkpoint's way to the disk, on a small file of its own that is removed."""
    if not os.access(place, os.W_OK | os.X_OK):
        return Check(
            "disk speed",
            "warn",
            f"{place} cannot be written: not measured",
            "choose another --runs-root",
        )
    file = place / f".furnace-doctor-{uuid.uuid4().hex}"
    try:
        started_s = time.perf_counter()
        _write(file, os.urandom(1 << 20), FILE_BYTES >> 20)
        mb_s = FILE_BYTES / 1e6 / (time.perf_counter() - started_s)
        started_s = time.perf_counter()
        for _ in range(SMALL_FILES):
            _write(file, b"x" * 512, 1)
        sync_ms = (time.perf_counter() - started_s) / SMALL_FILES * 1e3
    finally:
        file.unlink(missing_ok=True)
    found = f"{mb_s:,.0f} MB/s written to disk, {sync_ms:.1f} ms for a small file"
    if mb_s < SLOW_MB_S or sync_ms > SLOW_SYNC_MS:
        return Check(
            "disk speed", "warn", found, "checkpoints will take long: choose a faster --runs-root"
        )
    return Check("disk speed", "ok", found)


def _write(file: Path, block: bytes, times: int) -> None:
    with file.open("wb") as target:
        for _ in range(times):
            target.write(block)
        target.flush()
        os.fsync(target.fileno())


def check_space(facts: os.statvfs_result) -> list[Check]:
    """Bytes and inodes that are free to this user."""
    free, total = facts.f_bavail * facts.f_frsize, facts.f_blocks * facts.f_frsize
    level: Level = "fail" if free < TOO_FEW_BYTES else "warn" if free < FEW_BYTES else "ok"
    hint = "" if level == "ok" else "free some, or choose another --runs-root"
    space = Check("free space", level, f"{free / 1e9:,.1f} of {total / 1e9:,.1f} GB", hint)
    if not facts.f_files:
        return [space, Check("free inodes", "ok", "this file system does not count them")]
    level = (
        "fail"
        if facts.f_favail < TOO_FEW_INODES
        else "warn"
        if facts.f_favail < FEW_INODES
        else "ok"
    )
    hint = "" if level == "ok" else "delete or pack small files, or choose another --runs-root"
    inodes = Check("free inodes", level, f"{facts.f_favail:,} of {facts.f_files:,}", hint)
    return [space, inodes]


def read_quotas(text: str) -> list[Quota]:
    """The lines of `quota -w -p`: file system, blocks, quota, limit, grace, files, quota, limit, grace."""
    quotas = []
    for line in text.splitlines():
        fields = line.split()
        numbers = [int(field.rstrip("*")) for field in fields[1:] if field.rstrip("*").isdigit()]
        if len(fields) == len(numbers) + 1 and len(numbers) >= 8:
            blocks, soft, hard, _, files, soft_files, hard_files = numbers[:7]
            quotas.append(Quota(fields[0], blocks, soft or hard, files, soft_files or hard_files))
    return quotas


def check_quotas(text: str | None) -> list[Check]:
    """What `quota` says; None: there is no such command, and only the site's own knows."""
    if text is None:
        return [
            Check("quota", "ok", "no quota command here: the site's own tells, if there is one")
        ]
    checks = []
    for quota in read_quotas(text):
        parts = [
            ("GB", quota.used_kb, quota.limit_kb, 1e6),
            ("files", quota.files, quota.limit_files, 1),
        ]
        limited = [(unit, used, limit, by) for unit, used, limit, by in parts if limit]
        full = max((used / limit for _, used, limit, _ in limited), default=0)
        words = ", ".join(
            f"{used / by:,.0f} of {limit / by:,.0f} {unit}" for unit, used, limit, by in limited
        )
        level: Level = "fail" if full >= 1 else "warn" if full >= NEARLY_FULL else "ok"
        hint = "" if level == "ok" else "free some, or ask for more, before checkpoints fail"
        checks.append(Check("quota", level, f"{quota.where}: {words or 'no limit'}", hint))
    return checks or [Check("quota", "ok", "none is set")]


def _says_quota() -> str | None:
    if shutil.which("quota") is None:
        return None
    command = ["quota", "-w", "-p"]  # it exits with 1 where one is used up
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=QUOTA_TIMEOUT_S,
        check=False,
    )
    return done.stdout
