"""Copy this package at submit, so that jobs run exactly this code. The copy never changes.

    runs/<grid>/code/<hash>/furnace_hpc/     the package, files read-only
                            ds_configs/      the DeepSpeed files that grids name
                            own_code/        packages and modules of the grid's key `code`
                            snapshot.json    commit, untracked files, number of bytes
                            changes.diff     differences from the commit

The name is the hash of the content. Editing the checkout does not affect runs that were submitted.
A run resumes with the code that it began with.
"""

import hashlib
import os
import shlex
import shutil
import stat
import subprocess
import sys
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.own_code.sources import OWN_CODE, OwnCode, content_hash
from furnace_hpc.config.parsing.text_safety import masked
from furnace_hpc.host.access import IF_UNCHANGED, find_faults
from furnace_hpc.host.regular_file import read_regular
from furnace_hpc.runs.code import (
    PACKAGE,
    SNAPSHOT_FACTS,
    SNAPSHOT_PARTS,
    changes,
    code_hash,
    git_commit,
    is_snapshot,
    untracked,
)
from furnace_hpc.runs.folder import GridFolder, write_atomically, write_json
from furnace_hpc.runs.trust import check_place, check_trusted

PARTS = (*SNAPSHOT_PARTS, OWN_CODE)
MAX_BYTES = 64 << 20  # larger: data or weights lie in the package by mistake
LEFT_OUT = ("__pycache__",)  # Python creates it again, in the snapshot too


@dataclass(frozen=True)
class CodeSource:
    """The files of the package as they are now."""

    files: dict[str, Path]
    snapshot_hash: str
    num_bytes: int


@dataclass(frozen=True)
class CodeCopy:
    """A whole copy of the code. It is a snapshot when it has its final name."""

    final: Path
    temporary: Path | None  # None if the snapshot is there already

    def complete(self) -> Path:
        """Give the copy its name. Returns the snapshot's folder."""
        if self.temporary:
            self.temporary.rename(self.final)
        return self.final.resolve()

    def discard(self) -> None:
        """Remove the copy. A snapshot that was there already stays."""
        if self.temporary:
            shutil.rmtree(self.temporary, ignore_errors=True)
            with suppress(OSError):  # there are others
                self.final.parent.rmdir()


def source(own: OwnCode | None = None) -> CodeSource:
    """The files that a snapshot would contain now.

    Args:
        own: the user's own code. None keeps that of a snapshot which runs now.

    Raises:
        ConfigError: they are larger than MAX_BYTES, other users could change them, or `own` has
            changed since it was read.
    """
    return _source(own)


def forget_code() -> None:
    """Read the code on disk again. It may have changed while a notebook was open."""
    for found in (_source, code_hash, git_commit, changes, untracked):
        found.cache_clear()


@cache
def _source(own: OwnCode | None) -> CodeSource:
    parts = PARTS if is_snapshot() and own is None else SNAPSHOT_PARTS
    files = _files(PACKAGE.parent, parts)
    _check_checkout(files.values())
    if own is not None:  # its reader has checked who can change it
        _check_as_read(own)
        files |= {f"{OWN_CODE}/{name}": path for name, path in own.entries}
        files = dict(sorted(files.items(), key=lambda item: Path(item[0])))
    sizes = {name: path.stat().st_size for name, path in files.items()}
    total = sum(sizes.values())
    if total > MAX_BYTES:
        largest = max(sizes, key=lambda name: sizes[name])
        raise ConfigError(
            f"the code to snapshot has {total >> 20} MiB, at most {MAX_BYTES >> 20} are allowed. "
            f"Move what is not code out of {PACKAGE}. The largest file is "
            f"{PACKAGE.parent / largest} ({sizes[largest] >> 20} MiB)"
        )
    return CodeSource(files, _content_hash(files), total)


def _check_as_read(own: OwnCode) -> None:
    """Raise ConfigError if own code is not that whose hash the grid's rows have.

    A notebook may have read the grid hours ago.
    """
    try:
        if content_hash(own.files) == own.sha256:
            return
    except OSError:  # deleted or renamed
        pass
    raise ConfigError(
        f"the grid's own code ({', '.join(own.packages)}) was changed after the grid was read. "
        f"Repeat the command; in Python, call load_grid again"
    )


def take_snapshot(folder: GridFolder, own: OwnCode | None = None) -> Path:
    """Copy the code into the grid's folder unless it is there. Returns the snapshot's folder.

    The arguments and errors are those of `copy_code`.
    """
    copy = copy_code(folder, own)
    try:
        return copy.complete()
    except BaseException:
        copy.discard()
        raise


def copy_code(folder: GridFolder, own: OwnCode | None = None) -> CodeCopy:
    """Copy the code into the grid's folder under a temporary name, unless its snapshot is there.

    The caller holds the grid's lock. So other copies are those of submissions that were killed.

    Args:
        folder: of the grid.
        own: the user's own code, as for `source`.

    Raises:
        ConfigError: the code is too large, the existing snapshot was changed, or other users could
            change it.
    """
    now = source(own)
    final = folder.code / now.snapshot_hash
    check_place(folder.code, folder.path.parent)
    if final.exists():
        check_trusted(final, folder.path.parent)
        check_snapshot(final)
        return CodeCopy(final, None)
    for left_over in folder.code.glob(".*"):
        shutil.rmtree(left_over, ignore_errors=True)
    temporary = folder.code / f".{now.snapshot_hash}.{uuid.uuid4().hex[:8]}"
    try:
        for place in dict.fromkeys((temporary / name).parent for name in now.files):
            place.mkdir(parents=True, exist_ok=True)
        copied_hash = _content_hash(now.files, temporary)
        _write_facts(temporary, now)
        if copied_hash != now.snapshot_hash:
            raise ConfigError(
                f"the code in {PACKAGE}, or the grid's own code, was changed while it was copied. "
                f"Repeat the command"
            )
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return CodeCopy(final, temporary)


def check_snapshot(path: Path) -> None:
    """Raise ConfigError unless a snapshot's content has the hash in its name."""
    if _content_hash(_files(path, PARTS)) != path.name:
        raise ConfigError(
            f"code snapshot {path} has been changed since it was taken. Move it away, and submit "
            f"the runs that began with it with --code new"
        )


def _check_checkout(files: Iterable[Path]) -> None:
    """Raise ConfigError if other users could change the files that a snapshot copies.

    A package in the Python environment is not checked: it is part of the Python that runs now.
    """
    checkout = PACKAGE.parent
    if PACKAGE.is_relative_to(Path(sys.prefix).resolve()):
        return
    for place in _places_to_check(files):
        is_folder = place.is_dir()
        for fault in find_faults(str(place), str(checkout), not is_folder, trust_root=True):
            fix = fault.fix.replace("Choose another place (--runs-root)", "Move the checkout")
            if fix.startswith(f"{IF_UNCHANGED}chmod"):  # the other files probably need it too
                fix = f"{IF_UNCHANGED}chmod -R go-w {shlex.quote(str(checkout))}"
            raise ConfigError(
                f"jobs run a copy of the code in {checkout}, and other users could change it: "
                f"{fault.problem}. {fix}"
            )


def _places_to_check(files: Iterable[Path]) -> Iterator[Path]:
    """The folders of the files, and the files that need a closer look than their mode.

    The others are regular files of this user or root that neither a group nor all users can write.
    An access list cannot allow more than the group's bits.
    """
    folders = set[Path]()
    for path in files:
        if path.parent not in folders:
            folders.add(path.parent)
            yield path.parent
        facts = path.lstat()
        is_closed = stat.S_ISREG(facts.st_mode) and not facts.st_mode & 0o022
        if not is_closed or facts.st_uid not in (0, os.getuid()):
            yield path


def _write_facts(folder: Path, now: CodeSource) -> None:
    try:
        new_files, patch = untracked(), changes()
    except (OSError, subprocess.SubprocessError):  # not a checkout, for example a wheel
        new_files, patch = (), ""
    write_atomically(folder / "changes.diff", masked(patch))
    facts = {
        "commit": git_commit(),
        "untracked": new_files,
        "num_files": len(now.files),
        "num_bytes": now.num_bytes,
    }
    write_json(folder / SNAPSHOT_FACTS, facts)


def _files(root: Path, parts: tuple[str, ...]) -> dict[str, Path]:
    """Relative name -> file, in order of name."""
    found = []
    for part in parts:
        for folder, folders, names in os.walk(root / part):
            folders[:] = [name for name in folders if name not in LEFT_OUT]
            place = os.path.relpath(folder, root)
            found += [(*place.split("/"), name) for name in names if name not in LEFT_OUT]
    kept = (("/".join(names), root.joinpath(*names)) for names in sorted(found))
    return {name: path for name, path in kept if path.is_file()}


def _content_hash(files: dict[str, Path], copy: Path | None = None) -> str:
    """Hash names and contents. With `copy`, write what is hashed into this folder, read-only."""
    digest = hashlib.sha256()
    for name, path in files.items():
        content = read_regular(path)
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
        if copy:
            with open(copy / name, "xb", opener=_read_only) as file:
                file.write(content)
    return digest.hexdigest()[:12]


def _read_only(path: str, flags: int) -> int:
    return os.open(path, flags, 0o444)
