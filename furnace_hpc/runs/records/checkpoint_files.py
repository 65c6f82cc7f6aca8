"""The files of checkpoints: the manifest with size and hash of each file, completeness, pruning.

It does not import torch, so every command can check checkpoints.
"""

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import xxhash

from furnace_hpc.host.durable_files import append_line, sync, write_durably
from furnace_hpc.host.json_lines import read_json
from furnace_hpc.host.regular_file import open_regular, read_regular_text
from furnace_hpc.runs.folder import TRANSIENT_ERRNOS, RunFolder

MANIFEST = "manifest.json"
UNFINISHED = re.compile(r"step-(\d+)\.tmp-")
FileDigests = dict[str, list[Any]]  # file -> [size, hash]
Progress = Callable[[int], None]
T = TypeVar("T")

# pauses between retries of a failed read: a file server may be away for a moment
READ_PAUSES_S = (1, 2, 4)


def describe(path: Path, progress: Progress = lambda num_bytes: None) -> list[Any]:
    """Size in bytes and XXH3-128 of a file. `progress` gets the size of each block."""
    digest, size = xxhash.xxh3_128(), 0
    with open_regular(path) as file:
        while block := file.read(1 << 22):
            digest.update(block)
            size += len(block)
            progress(len(block))
    return [size, digest.hexdigest()]


def complete(temporary: Path, final: Path, facts: dict[str, Any], files: FileDigests) -> None:
    """Write the manifest, make all names durable, and rename the folder.

    Args:
        temporary: the folder with the files, which are written and synced.
        final: the name of the checkpoint.
        facts: content of the manifest beside `files`.
        files: size and hash of each file.
    """
    content = json.dumps(facts | {"files": files}, indent=2)
    write_durably(temporary / MANIFEST, content.encode())
    for folder in sorted({(temporary / name).parent for name in files} | {temporary}):
        sync(folder)
    if final.exists():  # this step was saved before; the next pruning deletes the old checkpoint
        quarantine(final)
    temporary.rename(final)
    sync(final.parent)


def is_complete(path: Path) -> bool:
    """Whether every file has the size and the hash in the manifest.

    Raises:
        OSError: a file may not be read, so it is unknown.
    """
    files = read_digests(path)
    return bool(files) and first_damaged(path, files) is None


def read_digests(path: Path) -> FileDigests:
    """Size and hash of each file in the manifest. Empty if it is missing or not valid.

    Raises:
        OSError: the manifest may not be read.
    """
    try:
        files = dict((_read_again(path, read_manifest) or {})["files"])
        return {str(name): [int(size), str(hash_)] for name, (size, hash_) in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def first_damaged(
    path: Path, files: FileDigests, progress: Progress = lambda num_bytes: None
) -> str | None:
    """The first of these files that is missing or different. None if all are right.

    Raises:
        OSError: a file may not be read, so it is unknown.
    """
    for name, digest in files.items():
        try:
            found = _read_again(path / name, lambda file: describe(file, progress))
        except ValueError:  # no name of a file
            return name
        if found != digest:
            return name
    return None


def _read_again(path: Path, read: Callable[[Path], T]) -> T | None:
    """Read a file, and again after errors that may pass. None if it is missing or lost."""
    for pause_s in (*READ_PAUSES_S, 0):
        try:
            return read(path)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            if error.errno not in TRANSIENT_ERRNOS:
                raise
            print(f"{path} cannot be read now: {error}", flush=True)
            time.sleep(pause_s)
    return None  # the disk has lost it


def read_back(path: Path, files: FileDigests) -> None:
    """Check that the disk returns the files of a checkpoint as they were written.

    The files are first dropped from the page cache, so the disk is read.

    Raises:
        OSError: a file is missing or different.
    """
    for name, digest in files.items():
        file_path = path / name
        if not file_path.exists() or _describe_from_disk(file_path) != digest:
            problem = "the disk does not return it as it was written"
            raise OSError(errno.EIO, problem, str(file_path))


def _describe_from_disk(path: Path) -> list[Any]:
    with open_regular(path) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return describe(path)


def is_visible(path: Path, files: FileDigests) -> bool:
    """Whether this host sees these files of a checkpoint in their full size."""
    try:
        return all((path / name).stat().st_size == size for name, (size, _) in files.items())
    except (OSError, ValueError):
        return False


def read_manifest(path: Path) -> dict[str, Any]:
    """A checkpoint's manifest: step, world size, ZeRO stage, state, files."""
    manifest: dict[str, Any] = read_json(path / MANIFEST)
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in manifest["files"]):
        raise ValueError(f"{path / MANIFEST} names files outside of its folder")
    return manifest


def steps_of(folder: RunFolder) -> list[int]:
    """Steps of all checkpoints, damaged ones included."""
    names = [path.name.removeprefix("step-") for path in folder.checkpoints.glob("step-*")]
    return sorted(int(name) for name in names if name.isdigit())


def newest_step(
    folder: RunFolder,
    needs_best: bool = False,
    is_sound: Callable[[Path], bool] = lambda path: is_complete(path),
) -> int | None:
    """Step of the newest undamaged checkpoint. None if none was ever saved.

    Damaged ones that are newer are reported and moved aside.

    Args:
        folder: the run.
        needs_best: the checkpoint of the best step so far must be undamaged too. The end of the run
            needs its parameters. A run that resumes from before it reaches the same best step
            again.
        is_sound: checks the hashes of one checkpoint.

    Raises:
        RuntimeError: checkpoints were saved, and all are damaged or missing. The user must decide
            whether the run starts at step 0.
    """
    damaged: list[tuple[Path, str]] = []
    is_sound_step = cache(lambda step: is_sound(folder.checkpoint(step)))
    for step in reversed(steps_of(folder)):
        problem = _problem_of(folder, step, needs_best, is_sound_step)
        if not problem:
            for path, why in damaged:
                print(f"checkpoint {path} {why} and set aside", flush=True)
                quarantine(path)
            return step
        damaged.append((folder.checkpoint(step), problem))
    if not damaged and not folder.saved.exists():
        return None
    what = f"all checkpoints in {folder.checkpoints} are damaged" if damaged else _lost(folder)
    raise RuntimeError(
        f"{what}. Restore undamaged ones, or remove {folder.checkpoints} and {folder.saved.name} "
        "beside it to begin at step 0"
    )


def _problem_of(
    folder: RunFolder, step: int, needs_best: bool, is_sound: Callable[[int], bool]
) -> str:
    """Why a run cannot resume from a checkpoint. Empty if it can."""
    if not is_sound(step):
        return "is damaged"
    if needs_best and not is_sound(best := _best_step(folder, step)):
        return f"needs that of its best step {best}, which is damaged or gone,"
    return ""


def _best_step(folder: RunFolder, step: int) -> int:
    """The best step so far in a checkpoint's manifest. Its own step if there was none yet."""
    return int(read_manifest(folder.checkpoint(step)).get("state", {}).get("best_step") or step)


def _lost(folder: RunFolder) -> str:
    lines = read_regular_text(folder.saved, errors="replace").splitlines()
    return (
        f"{len(lines)} checkpoints were saved (see {folder.saved}), "
        f"and none is in {folder.checkpoints}"
    )


def quarantine(checkpoint: Path) -> None:
    """Rename a checkpoint so that it is not loaded. The next pruning deletes it."""
    number = 1
    while (target := checkpoint.with_name(f"aside-{checkpoint.name}.{number}")).exists():
        number += 1
    checkpoint.rename(target)


def note_saved(folder: RunFolder, step: int, attempt: int, took_s: float) -> None:
    """Record that a checkpoint was saved. If it is missing later, that is an error."""
    line = {"step": step, "attempt": attempt, "unix_s": time.time(), "took_s": round(took_s, 3)}
    append_line(folder.saved, json.dumps(line))


def prune(
    folder: RunFolder, saved: int, keep: int, also: Iterable[int], every: int | None = None
) -> None:
    """Delete checkpoints up to the step that was just saved, and those that were moved aside.

    Later steps stay: one may be in progress.

    Args:
        folder: the run.
        saved: the step that was just saved.
        keep: how many of the newest steps stay.
        also: more steps that stay.
        every: multiples of this step stay. None: no more.
    """
    steps = [step for step in steps_of(folder) if step <= saved]
    kept = {*steps[-keep:], *also}
    if every:
        kept |= {step for step in steps if step % every == 0}
    unwanted = [folder.checkpoint(step) for step in steps if step not in kept]
    for path in folder.checkpoints.glob("step-*.tmp-*"):
        match = UNFINISHED.match(path.name)
        if match and int(match[1]) <= saved:
            unwanted.append(path)
    for path in (*unwanted, *folder.checkpoints.glob("aside-*")):
        try:
            shutil.rmtree(path)
        except OSError as error:  # retried after the next save
            print(f"{path} could not be deleted: {error}", flush=True)
