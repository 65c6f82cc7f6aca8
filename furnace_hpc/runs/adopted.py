"""Finished runs under another name: what is left of a row, or of a grid, that was renamed or copied.

Names change no number. A planned run without a folder takes a finished run of the same config, seed and data: its
folder becomes a link to that run's folder. Nothing of that run is written, moved or deleted. A link counts for as long
as it leads to a finished run of the same config. Each plan looks it up again, and a lost link is made again.

Unfinished runs are never taken: their jobs, leases and budgets belong to the other name.
"""

import os
import re
import uuid
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.identity import identity
from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.host.regular_file import read_regular
from furnace_hpc.runs.folder import GridFolder, RunFolder, explain
from furnace_hpc.runs.records.result import RunResult, read_result
from furnace_hpc.runs.trust import check_trusted

_RUN_ID = re.compile(r".+-(s\d+-[0-9a-f]{8})")


class Same(NamedTuple):
    """Run folders of the config, seed and data that a planned run has; None: there is none."""

    done: Path | None
    unfinished: Path | None


class SameRuns:
    """The runs below a runs' root, found by their config, seed and data."""

    def __init__(self, grid: GridFolder) -> None:
        self._grid, self._root = grid, grid.path.parent

    def find(self, spec: RunSpec, code_hash: str, any_code: bool) -> Same:
        """What there is under other names, in this grid or another; those of this code first, then those of this grid.

        Args:
            spec: the planned run.
            code_hash: of the code as it is now.
            any_code: whether a run of other code will do.
        """
        own = spec.run_id
        done: list[tuple[bool, Path]] = []
        unfinished: list[Path] = []
        for path in self._by_digits.get(own[len(spec.variant) + 1 :], ()):
            if path == self._grid.path / own or not self._is_same(spec, path):
                continue
            try:
                result = read_result(RunFolder(path))
            except ValueError:  # damaged
                continue
            if result is None:
                unfinished.append(path)
            elif _belongs(result, path, spec) and (any_code or result.code_hash == code_hash):
                done.append((result.code_hash != code_hash, path))
        best = min(done, key=lambda one: one[0], default=(False, None))[1]  # of equals the first
        return Same(best, next(iter(unfinished), None))

    @cached_property
    def _by_digits(self) -> dict[str, list[Path]]:
        """Seed and digits -> run folders, this grid's first. Links are left out: they lead to one of the others."""
        found: dict[str, list[Path]] = {}
        others = sorted(entry for entry in _folders(self._root) if entry != self._grid.path)
        for grid in (self._grid.path, *others):
            for path in sorted(_folders(grid)):
                if match := _RUN_ID.fullmatch(path.name):
                    found.setdefault(match[1], []).append(path)
        return found

    def _is_same(self, spec: RunSpec, path: Path) -> bool:
        """Whether it is a run of this config and data, whole, and by nobody but this user."""
        folder = RunFolder(path)
        try:
            for file in (folder.spec, folder.result):
                if file.exists():
                    check_trusted(file, self._root)
            there = RunSpec.model_validate_json(read_regular(folder.spec))
        except (OSError, ValueError):  # another user's, damaged, or of another version
            return False
        same = there.data_fingerprint == spec.data_fingerprint
        return (
            same and there.run_id == path.name and identity(there.config) == identity(spec.config)
        )


def link(folder: RunFolder, target: Path) -> None:
    """Let a run's folder be a link to another run's.

    Raises:
        ConfigError: the file system has no links, or there is a folder by now.
    """
    aside = folder.path.with_name(f".{folder.run_id}.{uuid.uuid4().hex[:8]}")
    try:
        relative = os.path.relpath(target, folder.path.parent)
        aside.symlink_to(relative)
        if not aside.exists():  # the grid's folder is itself a link to elsewhere
            aside.unlink()
            aside.symlink_to(target.resolve())
        aside.replace(folder.path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        told = explain(error, f"run {target.name} could not be taken for {folder.run_id}")
        raise ConfigError(f"{told}, or give --no-adopt to train it again") from None


def shown(path: Path, grid: GridFolder) -> str:
    """A run's name for people; with its grid where that is another."""
    return path.name if path.parent == grid.path else f"{path.parent.name}/{path.name}"


def _belongs(result: RunResult, path: Path, spec: RunSpec) -> bool:
    return result.run_id == path.name and result.data_fingerprint == spec.data_fingerprint


def _folders(place: Path) -> Iterator[Path]:
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                    yield place / entry.name
    except OSError:  # another user's, or not there
        return
