"""The files of a grid's folder by kind, with their sizes. Links are not followed."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from furnace_hpc.runs.folder import GridFolder


class Kind(StrEnum):
    """What a file of a grid's folder is for."""

    CHECKPOINTS = "checkpoints"
    FEATURES = "cached features"
    CACHES = "caches"
    TEMPORARY = "temporary files"
    REPLACED = "replaced runs"
    TRACKERS = "trackers"
    MODELS = "exported models"
    LOGS = "logs"
    CODE = "code snapshots"
    RECORDS = "records"
    OTHER = "other files"


FREED = re.compile(r"\.freed-.+\.[0-9a-f]{8}")  # renamed by `furnace clean`, before it was deleted
_WRITTEN = r".+\.(?:json|jsonl|yaml|npz|parquet|rows|diff)|code|[0-9a-f]{12}|.+-s\d+-[0-9a-f]{8}"
_TEMPORARY = re.compile(rf"\.(?:{_WRITTEN})\.(?:[0-9a-f]{{8}}|\d+)")
_UNFINISHED = re.compile(r"step-\d+\.tmp-.+|aside-step-.+")
_OF_THE_GRID = {
    "code": Kind.CODE,
    "features": Kind.FEATURES,
    "cache": Kind.CACHES,
    "slurm.json": Kind.CACHES,
    "replaced": Kind.REPLACED,
    "logs": Kind.LOGS,
    "submissions": Kind.RECORDS,
    "trackers": Kind.TRACKERS,
    "tuning": Kind.RECORDS,
    "grid.yaml": Kind.RECORDS,
    "declared.json": Kind.RECORDS,
    "submit.lock": Kind.RECORDS,
}
_OF_A_RUN = {"checkpoints": Kind.CHECKPOINTS, "logs": Kind.LOGS}
_PARTS_OF_A_RUN = ("spec.json", "attempts", "result.json")
_PARTS_OF_A_MODEL = ("config.json", "model.safetensors")


class Size(NamedTuple):
    """Number of files and their bytes."""

    files: int
    num_bytes: int


def is_temporary(name: str) -> bool:
    """Whether a file or folder of this name is renamed when it is complete."""
    return bool(_TEMPORARY.fullmatch(name) or FREED.fullmatch(name))


def sizes(folder: GridFolder) -> dict[Kind, Size]:
    """Return the size of each kind that the grid's folder has."""
    files, num_bytes = Counter[Kind](), Counter[Kind]()
    for entry in _entries(folder.path):
        for path, size in _files(entry):
            kind = _kind(folder.path, Path(path).relative_to(folder.path).parts)
            files[kind] += 1
            num_bytes[kind] += size
    return {kind: Size(files[kind], num_bytes[kind]) for kind in Kind if files[kind]}


def size_of(path: Path) -> Size:
    """Return the size of a file or folder. Nothing if it is missing."""
    if path.is_dir() and not path.is_symlink():
        found = [size for entry in _entries(path) for _, size in _files(entry)]
        return Size(len(found), sum(found))
    try:
        return Size(1, path.lstat().st_size)
    except FileNotFoundError:
        return Size(0, 0)


def show(num_bytes: int) -> str:
    """Return a number of bytes with three digits or more: `1.50 GiB`, `312 MiB`."""
    size, unit = float(num_bytes), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1000:
            break
        size, unit = size / 1024, larger
    if unit == "bytes":
        return f"{num_bytes} bytes"
    digits = max(0, 2 - len(f"{size:.0f}") + 1)
    return f"{size:,.{digits}f} {unit}"


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):  # deleted in the meantime
        return []


def _files(entry: "os.DirEntry[str]") -> Iterator[tuple[str, int]]:
    """Yield path and bytes of a file, or of all files in a folder. A link counts as itself."""
    try:
        if entry.is_dir(follow_symlinks=False):
            for inner in _entries(Path(entry.path)):
                yield from _files(inner)
        else:
            yield entry.path, entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return


def _kind(folder: Path, parts: tuple[str, ...]) -> Kind:
    first, *rest = parts
    if any(map(is_temporary, parts)):
        return Kind.TEMPORARY
    if first == "submissions" and parts[-1].endswith((".log", ".out")):
        return Kind.LOGS
    if first in _OF_THE_GRID:
        return _OF_THE_GRID[first]
    if not rest:
        return Kind.RECORDS if (folder / first).is_symlink() else Kind.OTHER
    if any((folder / first / name).exists() for name in _PARTS_OF_A_RUN):
        if len(rest) > 1 and rest[0] == "checkpoints" and _UNFINISHED.fullmatch(rest[1]):
            return Kind.TEMPORARY
        return _OF_A_RUN.get(rest[0], Kind.RECORDS)
    if all((folder / first / name).exists() for name in _PARTS_OF_A_MODEL):
        return Kind.MODELS
    return Kind.OTHER
