"""Check the disk of the runs: file system, permissions, speed, space, inodes and quotas."""

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

from furnace_hpc.diagnostics.report import Check, fail, ok, warn
from furnace_hpc.host.access import GROUP_ACCESS, IF_UNCHANGED, Fault, find_faults

SHARED = {
    *("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "wekafs", "panfs", "cifs", "smb3"),
    *("afs", "pvfs2", "glusterfs"),
}
IN_MEMORY = {"tmpfs", "ramfs"}
FILE_BYTES, SMALL_FILES = 32 << 20, 10
SLOW_MB_S, SLOW_SYNC_MS = 50.0, 100.0
FEW_BYTES, TOO_FEW_BYTES = 20e9, 1e9  # a checkpoint of the article's network has 3 GB
FEW_INODES, TOO_FEW_INODES = 20_000, 500  # a run has about thirty files
NEARLY_FULL = 0.9
QUOTA_TIMEOUT_S = 20  # quota asks file servers, and one may be down
OTHER_ROOT = "choose another --runs-root"


@dataclass(frozen=True)
class Quota:
    """The quota on one file system. A limit of 0 means no limit."""

    where: str
    used_kb: int
    limit_kb: int
    files: int
    limit_files: int

    @property
    def limits(self) -> list[tuple[float, float, str]]:
        """(used, limit, unit) of each limit."""
        both = [
            (self.used_kb / 1e6, self.limit_kb / 1e6, "GB"),
            (self.files, self.limit_files, "files"),
        ]
        return [one for one in both if one[1]]


def disk_checks(root: Path, on_slurm: bool) -> list[Callable[[], Check | list[Check]]]:
    """All checks of the folder that holds the runs, or will hold them."""
    place = existing(root)

    def file_system() -> Check:
        mounts = Path("/proc/mounts").read_text(errors="replace")
        return check_file_system(root, mount_of(place, mounts), on_slurm)

    def permissions() -> Check:
        return check_permissions(root, place)

    def speed() -> Check:
        return check_speed(place)

    def space() -> list[Check]:
        return check_space(os.statvfs(place))

    def quotas() -> list[Check]:
        return check_quotas(_quota_output())

    return [file_system, permissions, speed, space, quotas]


def existing(path: Path) -> Path:
    """The nearest existing folder: the path itself, or one above it. Checks create no folder."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if os.path.isdir(place))  # noqa: PTH112 - never raises


def mount_of(path: Path, mounts: str) -> tuple[str, str]:
    """Find (mount point, type) of a path's file system in /proc/mounts. The later line wins."""
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
    """Compute nodes must see the runs."""
    name, (point, kind) = "file system", mount
    is_shared = kind in SHARED or kind.startswith("fuse.")
    sharing = "shared" if is_shared else "local"
    found = f"{kind} at {point}, {sharing}: {root}"
    if kind in IN_MEMORY:
        return warn(name, f"{found}, lost at the next boot", "choose --runs-root on a disk")
    if on_slurm and not is_shared:
        hint = "other nodes may not see it: choose --runs-root on a shared file system"
        return warn(name, found, hint)
    return ok(name, found)


def check_permissions(root: Path, place: Path) -> Check:
    """Only the user may write the runs' root. Others could run code as this user.

    The same holds for the folders above it, which others could rename.
    """
    name = "runs' root"
    if not os.access(place, os.W_OK | os.X_OK):
        return fail(name, f"you cannot write {place}", OTHER_ROOT)
    faults: dict[str, Fault] = {}
    for folder in (root, *_folders_of_grids(root)):
        for fault in find_faults(str(folder), str(root), with_content=False):
            faults.setdefault(fault.place, fault)
    if faults:
        return _permission_faults(list(faults.values()), place)
    if place != root.absolute():
        return ok(name, f"{root} does not exist yet; it will be created for you alone (0700)")
    writers = "you and your group" if os.environ.get(GROUP_ACCESS) == "1" else "you alone"
    return ok(name, f"{place} can be written by {writers}")


def _permission_faults(faults: list[Fault], place: Path) -> Check:
    found, fix = faults[0].problem, faults[0].fix.removeprefix(IF_UNCHANGED)
    if len(faults) > 1:
        found += f"; and {len(faults) - 1} more"
        if fix.startswith("chmod"):
            fix = f"chmod -R go-w {shlex.quote(str(place))}"
    return fail("runs' root", found, fix)


def _folders_of_grids(root: Path) -> list[Path]:
    """Folders with executed files, and the folders of their grids."""
    found = []
    for submissions in sorted(root.glob("*/submissions")):
        grid = submissions.parent
        found += [place for place in (grid, grid / "code", submissions) if place.is_dir()]
    return found


def check_speed(place: Path) -> Check:
    """Write and sync a temporary file, as a checkpoint does."""
    name = "disk speed"
    if not os.access(place, os.W_OK | os.X_OK):
        return warn(name, f"not measured, because you cannot write {place}", OTHER_ROOT)
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
    found = f"{mb_s:,.0f} MB/s written and synced, {sync_ms:.1f} ms for a small file"
    if mb_s < SLOW_MB_S or sync_ms > SLOW_SYNC_MS:
        return warn(name, found, "checkpoints will take long: choose a faster --runs-root")
    return ok(name, found)


def _write(file: Path, block: bytes, times: int) -> None:
    with file.open("wb") as target:
        for _ in range(times):
            target.write(block)
        target.flush()
        os.fsync(target.fileno())


def check_space(facts: os.statvfs_result) -> list[Check]:
    """Bytes and inodes that this user may still use."""
    free, total = facts.f_bavail * facts.f_frsize, facts.f_blocks * facts.f_frsize
    space = _check_amount(
        "free space",
        f"{free / 1e9:,.1f} of {total / 1e9:,.1f} GB",
        free,
        (TOO_FEW_BYTES, FEW_BYTES),
        f"free some space, or {OTHER_ROOT}",
    )
    if not facts.f_files:
        return [space, ok("free inodes", "this file system does not count them")]
    inodes = _check_amount(
        "free inodes",
        f"{facts.f_favail:,} of {facts.f_files:,}",
        facts.f_favail,
        (TOO_FEW_INODES, FEW_INODES),
        f"delete or pack small files, or {OTHER_ROOT}",
    )
    return [space, inodes]


def _check_amount(
    name: str, found: str, amount: float, limits: tuple[float, float], hint: str
) -> Check:
    """Fail below the first limit, and warn below the second."""
    too_few, few = limits
    if amount < too_few:
        return fail(name, found, hint)
    if amount < few:
        return warn(name, found, hint)
    return ok(name, found)


def read_quotas(text: str) -> list[Quota]:
    """Read `quota -w -p`: file system, blocks, quota, limit, grace, files, quota, limit, grace."""
    quotas = []
    for line in text.splitlines():
        place, *fields = line.split() or [""]
        digits = [field.rstrip("*") for field in fields]  # * marks an exceeded limit
        if len(digits) < 8 or not all(field.isdigit() for field in digits):
            continue
        blocks, soft, hard, _, files, soft_files, hard_files = map(int, digits[:7])
        quotas.append(Quota(place, blocks, soft or hard, files, soft_files or hard_files))
    return quotas


def check_quotas(text: str | None) -> list[Check]:
    """Judge the output of `quota`. None if this machine has no such command."""
    if text is None:
        return [ok("quota", "no quota command here; the site may have its own")]
    return [_check_quota(quota) for quota in read_quotas(text)] or [ok("quota", "none is set")]


def _check_quota(quota: Quota) -> Check:
    limits = quota.limits
    used = ", ".join(f"{used:,.0f} of {limit:,.0f} {unit}" for used, limit, unit in limits)
    found = f"{quota.where}: {used or 'no limit'}"
    used_share = max((used / limit for used, limit, _ in limits), default=0.0)
    hint = "free some, or ask for more, before checkpoints fail"
    if used_share >= 1:
        return fail("quota", found, hint)
    if used_share >= NEARLY_FULL:
        return warn("quota", found, hint)
    return ok("quota", found)


def _quota_output() -> str | None:
    if shutil.which("quota") is None:
        return None
    done = subprocess.run(
        ["quota", "-w", "-p"],  # exit code 1 if a quota is exceeded
        capture_output=True,
        text=True,
        errors="replace",
        timeout=QUOTA_TIMEOUT_S,
        check=False,
    )
    return done.stdout
