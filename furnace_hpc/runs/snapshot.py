"""The code that runs: a copy of this package as it is at submit, named by the hash of its content, never changed.

    runs/<grid>/code/<hash>/furnace_hpc/     the package, files read-only
                            ds_configs/      the files that its grids name
                            snapshot.json    commit, untracked files, number of bytes
                            changes.diff     what differs from the commit

A tree that is edited after the submission changes nothing for what was submitted, and a run goes on with the code that
it began with.
"""

import hashlib
import shutil
import subprocess
import uuid
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.text_safety import masked
from furnace_hpc.host.regular_file import read_regular
from furnace_hpc.runs.code import PACKAGE, RUNS, SNAPSHOT_FACTS, changes, git_commit, untracked
from furnace_hpc.runs.folder import GridFolder, write_atomically, write_json
from furnace_hpc.runs.trust import check_place, check_trusted

MAX_BYTES = 64 << 20  # more is data or weights that lie in the package by mistake
LEFT_OUT = ("__pycache__",)  # Python makes them anew, in the snapshot too


@dataclass(frozen=True)
class Source:
    """The package's files as they are now, and what they are worth."""

    files: dict[str, Path]
    snapshot_hash: str
    num_bytes: int


@cache
def source() -> Source:
    """The files of a snapshot that would be taken now.

    Raises:
        ConfigError: they are more than MAX_BYTES.
    """
    files = _files(PACKAGE.parent, RUNS)
    sizes = {name: path.stat().st_size for name, path in files.items()}
    total = sum(sizes.values())
    if total > MAX_BYTES:
        largest = max(sizes, key=lambda name: sizes[name])
        raise ConfigError(
            f"the code to snapshot has {total >> 20} MiB, at most {MAX_BYTES >> 20} are taken; the largest file is "
            f"{PACKAGE.parent / largest} ({sizes[largest] >> 20} MiB): move what is not code out of {PACKAGE}"
        )
    return Source(files, _content_hash(files), total)


def take_snapshot(folder: GridFolder) -> Path:
    """Copy the code into the grid's folder, unless that very code is there already; return its folder.

    Raises:
        ConfigError: too large, or the snapshot that is there has been changed, or others can change it.
    """
    now = source()
    final = folder.code / now.snapshot_hash
    check_place(folder.code, folder.path.parent)
    if final.exists():
        check_trusted(final, folder.path.parent)
        check_snapshot(final)
        return final.resolve()
    aside = folder.code / f".{now.snapshot_hash}.{uuid.uuid4().hex[:8]}"
    try:
        for name, path in now.files.items():
            target = aside / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            target.chmod(target.stat().st_mode & 0o444)
        _describe(aside, now)
        if _content_hash(_files(aside, RUNS)) != now.snapshot_hash:
            raise ConfigError(
                f"the code in {PACKAGE} was changed while it was copied: give the command again"
            )
        aside.rename(final)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return final.resolve()


def check_snapshot(path: Path) -> None:
    """Raise ConfigError unless a snapshot's content is what its name says."""
    if _content_hash(_files(path, RUNS)) != path.name:
        raise ConfigError(
            f"code snapshot {path} has been changed since it was taken: put it aside, and submit with --code new "
            f"what began with it"
        )


def _describe(aside: Path, now: Source) -> None:
    try:
        new, patch = untracked(), changes()
    except (OSError, subprocess.SubprocessError):  # no checkout: a wheel has no changes
        new, patch = [], ""
    write_atomically(aside / "changes.diff", masked(patch))
    facts = {
        "commit": git_commit(),
        "untracked": new,
        "num_files": len(now.files),
        "num_bytes": now.num_bytes,
    }
    write_json(aside / SNAPSHOT_FACTS, facts)


def _files(root: Path, parts: tuple[str, ...]) -> dict[str, Path]:
    """Relative name -> file, in order of name."""
    found = [path for part in parts for path in (root / part).rglob("*") if path.is_file()]
    kept = [path for path in found if not set(LEFT_OUT) & set(path.parts)]
    return {str(path.relative_to(root)): path for path in sorted(kept)}


def _content_hash(files: dict[str, Path]) -> str:
    digest = hashlib.sha256()
    for name, path in files.items():
        content = read_regular(path)
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]
