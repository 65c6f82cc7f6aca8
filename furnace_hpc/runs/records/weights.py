"""Fingerprints of the weights that a config names: files of encoders, and sources of `init_from`.

A config has paths and names, and their content may change. So an attempt records fingerprints.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from furnace_hpc.config.pretrained_files import files_of, named_weights, revision_of
from furnace_hpc.config.sections.initial_weights import InitialWeights
from furnace_hpc.config.train_config import TrainConfig
from furnace_hpc.host.json_lines import read_json
from furnace_hpc.runs.file_cache import once_per_look
from furnace_hpc.runs.folder import GridFolder, RunFolder, write_json
from furnace_hpc.runs.records.checkpoint_files import describe
from furnace_hpc.runs.records.result import RunResult, read_result

RECENT_S = 2  # a file may change twice within one tick of a file system's clock
Progress = Callable[[int], None]


class NamedWeights(NamedTuple):
    """The weights that a config names, as they are on the disk. Missing files are left out."""

    fingerprints: Mapping[str, str] = {}  # key of the config -> hash of the content
    revisions: Mapping[str, str] = {}  # key of the config -> revision in the hub's cache


def read_named_weights(
    config: TrainConfig, grid: GridFolder, progress: Progress = lambda num_bytes: None
) -> NamedWeights:
    """Read the fingerprints of all weights that a config names.

    Args:
        config: of a run.
        grid: its folder. It has the runs of rows, and the hashes of large files.
        progress: called with the size of each block that was read.
    """
    found, revisions = dict[str, str](), dict[str, str]()
    for number, source in enumerate(config.init_from):
        if fingerprint := _of_source(source, grid):
            found[f"init_from.{number}"] = fingerprint
    for key, name in sorted(named_weights([config.model])):
        if fingerprint := _of_files(name, grid.tables_cache, progress):
            found[f"model.{key}"] = fingerprint
        if revision := _revision_of(name):
            revisions[f"model.{key}"] = revision
    return NamedWeights(found, revisions)


def changed_weights(
    config: TrainConfig, before: Mapping[str, str], now: Mapping[str, str]
) -> list[str]:
    """The weights whose fingerprints differ, in words. Unknown ones are left out."""
    keys = [key for key, fingerprint in now.items() if before.get(key, fingerprint) != fingerprint]
    return [words_of(config, key) for key in keys]


def words_of(config: TrainConfig, key: str) -> str:
    """The place of weights for messages: `row first`, or `model.text.encoder '/weights/bert'`."""
    sources = {f"init_from.{number}": one.name for number, one in enumerate(config.init_from)}
    names = {f"model.{found}": name for found, name in named_weights([config.model])}
    return sources.get(key) or f"{key} {names.get(key)!r}"


def fingerprint_of(result: RunResult) -> str:
    """Fingerprint of the weights that a finished run gives. A copy of its folder has the same."""
    return _hash([result.parameters_sha256, result.selected_step])


def _of_source(source: InitialWeights, grid: GridFolder) -> str:
    if source.model:
        return _of_model(source.model)
    if source.run:
        return _of_run(RunFolder(Path(source.run)))
    return _of_run(grid.run(source.run_id)) if source.run_id else ""


@once_per_look
def _of_run(run: RunFolder) -> str:
    with suppress(OSError, ValueError):
        if result := read_result(run):
            return fingerprint_of(result)
    return ""


@once_per_look
def _revision_of(name: str) -> str:
    with suppress(OSError):  # its folder may not be read
        return revision_of(name)
    return ""


@once_per_look
def _of_model(folder: str) -> str:
    """From the hashes in the config.json of an exported model. A rank compares the file with it."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return _hash(read_json(Path(folder) / "config.json")["files"]["model.safetensors"])
    return ""


@once_per_look
def _of_files(name: str, cache: Path, progress: Progress) -> str:
    """From the content of config.json and of all files of weights."""
    with suppress(OSError, ValueError):
        if files := files_of(name):
            return _hash([[path.name, _digest(path, cache, progress)] for path in files])
    return ""


def _digest(path: Path, cache: Path, progress: Progress) -> str:
    """A hash of a file. It is read again only if its inode, size or time has changed."""
    place = path.resolve()
    stamp = [str(place), *_stamp(place)]
    known_at = cache / f"weights-{_hash(str(place))}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = read_json(known_at)
        if known["stamp"] == stamp:
            return str(known["digest"])
    digest = str(describe(place, progress)[1])
    is_settled = time.time() - max(stamp[-2:]) / 1e9 > RECENT_S
    if cache.parent.is_dir() and is_settled and stamp[1:] == _stamp(place):
        with suppress(OSError):  # a full disk: the next command reads the file again
            write_json(known_at, {"stamp": stamp, "digest": digest})
    return digest


def _stamp(path: Path) -> list[Any]:
    facts = os.stat(path)  # noqa: PTH116
    return [facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]


def _hash(content: str | Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
