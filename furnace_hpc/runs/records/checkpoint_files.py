"""Checkpoints as files: a manifest with size and hash of every file, what is complete, what is kept.

No torch here: whoever reads a run folder can tell which of its checkpoints are sound.
"""

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import xxhash

from furnace_hpc.host.regular_file import open_regular, read_regular, read_regular_text
from furnace_hpc.runs.folder import TRANSIENT_ERRNOS, RunFolder

MANIFEST = "manifest.json"
UNFINISHED = re.compile(r"step-(\d+)\.tmp-")
FileDigests = dict[str, list[Any]]  # file -> [size, hash]

# a read that failed is tried again: what a file server cannot give now is not damaged
READ_PAUSES_S = (1, 2, 4)


def describe(path: Path) -> list[Any]:
    """Size in bytes and XXH3-128 of a file."""
    digest = xxhash.xxh3_128()
    with open_regular(path) as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return [path.stat().st_size, digest.hexdigest()]


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def complete(aside: Path, final: Path, facts: dict[str, Any], files: FileDigests) -> None:
    """Make a checkpoint of a folder whose files are written and durable: the manifest last, then the name."""
    (aside / MANIFEST).write_text(json.dumps(facts | {"files": files}, indent=2))
    sync(aside / MANIFEST)
    for folder in sorted({(aside / name).parent for name in files} | {aside}):
        sync(folder)
    if final.exists():  # this very step was saved before: it is deleted when its successor is there
        quarantine(final)
    aside.rename(final)
    sync(final.parent)


def is_complete(path: Path) -> bool:
    """Whether every file has the size and the hash of the manifest.

    Raises:
        OSError: it cannot be told: it may not be read.
    """
    for pause_s in (*READ_PAUSES_S, None):
        try:
            files = read_manifest(path)["files"]
            return bool(files) and all(
                describe(path / name) == described for name, described in files.items()
            )
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return False
        except (ValueError, KeyError, TypeError, AttributeError):  # no manifest of ours any more
            return False
        except OSError as error:
            if error.errno not in TRANSIENT_ERRNOS:
                raise
            print(f"{path} cannot be read now: {error}", flush=True)
            if pause_s is not None:
                time.sleep(pause_s)
    return False  # the disk has lost it


def read_back(path: Path, files: FileDigests) -> None:
    """Raise OSError where files of a checkpoint do not come back as they were written.

    They are dropped from this host's memory first, so that it is the disk that is asked.
    """
    for name, described in files.items():
        found = None
        with suppress(FileNotFoundError):
            with open_regular(path / name) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            found = describe(path / name)
        if found != described:
            raise OSError(
                errno.EIO, "it does not come back from the disk as it was written", str(path / name)
            )


def is_visible(path: Path) -> bool:
    """Whether this host sees every file of a checkpoint in its full size."""
    try:
        files = read_manifest(path)["files"].items()
        return all((path / name).stat().st_size == size for name, (size, _) in files)
    except (OSError, ValueError):
        return False


def read_manifest(path: Path) -> dict[str, Any]:
    """A checkpoint's manifest: step, world size, ZeRO stage, state, files."""
    manifest: dict[str, Any] = json.loads(read_regular(path / MANIFEST))
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in manifest["files"]):
        raise ValueError(f"{path / MANIFEST} names files outside of its folder")
    return manifest


def steps_of(folder: RunFolder) -> list[int]:
    """Steps of all checkpoints, sound or not."""
    return sorted(
        int(path.name[5:]) for path in folder.checkpoints.glob("step-*") if path.name[5:].isdigit()
    )


def newest_step(folder: RunFolder, needs_best: bool = False) -> int | None:
    """Step of the newest sound checkpoint; None when none was ever saved. Damaged ones are told and set aside.

    Args:
        folder: the run.
        needs_best: the checkpoint of the best step so far must be sound too: the end of the run wants its parameters,
            and from before it the run comes to the same best step again.

    Raises:
        RuntimeError: checkpoints were saved, and none is sound: to begin at step 0 must be somebody's decision.
    """
    damaged, is_sound = [], cache(lambda step: is_complete(folder.checkpoint(step)))
    for step in reversed(steps_of(folder)):
        best = _best_step(folder, step) if needs_best and is_sound(step) else step
        if is_sound(step) and is_sound(best):
            break
        why = (
            "is damaged"
            if not is_sound(step)
            else f"needs that of its best step {best}, which is damaged or gone,"
        )
        damaged.append((step, why))
    else:
        if damaged or folder.saved.exists():
            what = (
                f"all checkpoints in {folder.checkpoints} are damaged" if damaged else _lost(folder)
            )
            raise RuntimeError(
                f"{what}: put sound ones back, or remove {folder.checkpoints} and {folder.saved.name} beside it to "
                f"begin at step 0"
            )
        return None
    for bad, why in damaged:
        print(f"checkpoint {folder.checkpoint(bad)} {why} and set aside", flush=True)
        quarantine(folder.checkpoint(bad))
    return step


def _best_step(folder: RunFolder, step: int) -> int:
    """The best step so far, as a sound checkpoint says; its own where there was none yet."""
    return int(read_manifest(folder.checkpoint(step)).get("state", {}).get("best_step") or step)


def quarantine(checkpoint: Path) -> None:
    """Take a checkpoint's name from it; the next pruning deletes it."""
    number = 1
    while (target := checkpoint.with_name(f"aside-{checkpoint.name}.{number}")).exists():
        number += 1
    checkpoint.rename(target)


def note_saved(folder: RunFolder, step: int, attempt: int, took_s: float) -> None:
    """Write down that a checkpoint was saved: one that cannot be found later is an error, not a first start."""
    with folder.saved.open("a", encoding="utf-8") as file:
        line = {"step": step, "attempt": attempt, "unix_s": time.time(), "took_s": round(took_s, 3)}
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def prune(
    folder: RunFolder, saved: int, keep: int, also: Iterable[int], every: int | None = None
) -> None:
    """Of the steps up to the one just saved, keep the newest `keep`, those in `also`, and multiples of `every`.

    Later steps are left alone: one may be written at this moment, and what this attempt could not begin from is aside.
    """
    steps = [step for step in steps_of(folder) if step <= saved]
    kept = {*steps[-keep:], *also, *(step for step in steps if every and step % every == 0)}
    unwanted = [folder.checkpoint(step) for step in steps if step not in kept]
    leftover = folder.checkpoints.glob("step-*.tmp-*")
    unwanted += [
        path for path in leftover if (of := UNFINISHED.match(path.name)) and int(of[1]) <= saved
    ]
    for path in (*unwanted, *folder.checkpoints.glob("aside-*")):
        try:
            shutil.rmtree(path)
        except OSError as error:  # it is tried again after the next save
            print(f"{path} could not be deleted: {error}", flush=True)


def _lost(folder: RunFolder) -> str:
    lines = read_regular_text(folder.saved, errors="replace").splitlines()
    return f"{len(lines)} checkpoints were saved (see {folder.saved}), and none is in {folder.checkpoints}"
