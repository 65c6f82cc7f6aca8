"""Find finished runs under another name: of a row or a grid that was renamed or copied.

Names change no number. A planned run without a folder takes over a finished run with the same
config, seed and data: its folder becomes a link to that run's folder. Nothing of that run is
written, moved or deleted. A link counts while it leads to a finished run of the same config. Each
plan checks it, and makes a lost link again.

Unfinished runs are never taken over: their jobs, leases and budgets belong to the other name.
"""

import os
import re
import uuid
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.identity import identity
from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.host.regular_file import read_regular
from furnace_hpc.runs.folder import GridFolder, RunFolder, explain
from furnace_hpc.runs.records.result import RunResult, read_result
from furnace_hpc.runs.records.weights import changed_weights
from furnace_hpc.runs.trust import check_trusted

_RUN_ID = re.compile(r".+-(s\d+-[0-9a-f]{8})")


class RunMatches(NamedTuple):
    """Run folders with the same config, seed and data as a planned run. None if there is none."""

    done: Path | None
    unfinished: Path | None


class RunMatcher:
    """The runs below the runs' root, found by config, seed and data."""

    def __init__(self, grid: GridFolder) -> None:
        self._grid, self._root = grid, grid.path.parent

    def find(
        self,
        spec: RunSpec,
        run_id: str,
        code_hash: str,
        weights: Mapping[str, str],
        any_code: bool,
    ) -> RunMatches:
        """Find the same run under other names, in this grid or another.

        Runs of this code come first, then those of this grid.

        Args:
            spec: the planned run.
            run_id: its name.
            code_hash: hash of the code as it is now.
            weights: fingerprints of the weights that its config names. A run that began with others
                is another run, unless it was adopted before.
            any_code: whether runs of other code count too, and adopted ones of other weights.
        """
        candidates = self._folders_by_hash.get(run_id.removeprefix(f"{spec.variant}-"), ())
        if not candidates:
            return RunMatches(None, None)
        own_path = self._grid.path / run_id
        adopted = own_path.resolve() if any_code and own_path.is_symlink() else None
        done: list[tuple[bool, Path]] = []
        unfinished: list[Path] = []
        for path in candidates:
            if path == own_path or not self._is_same(spec, path):
                continue
            try:
                result = read_result(RunFolder(path))
            except ValueError:  # damaged
                continue
            if result is None:
                unfinished.append(path)
            elif path.resolve() != adopted and changed_weights(
                spec.config, result.weights_fingerprints, weights
            ):
                continue
            elif _belongs(result, path, spec) and (any_code or result.code_hash == code_hash):
                done.append((result.code_hash != code_hash, path))
        _, newest_code = min(done, key=lambda found: found[0], default=(False, None))
        return RunMatches(newest_code, next(iter(unfinished), None))

    @cached_property
    def _folders_by_hash(self) -> dict[str, list[Path]]:
        """Seed and digits of the run id -> run folders, this grid's first. Links are left out."""
        found: dict[str, list[Path]] = {}
        others = sorted(entry for entry in _folders(self._root) if entry != self._grid.path)
        for grid in (self._grid.path, *others):
            for path in sorted(_folders(grid)):
                if match := _RUN_ID.fullmatch(path.name):
                    found.setdefault(match[1], []).append(path)
        return found

    def _is_same(self, spec: RunSpec, path: Path) -> bool:
        """Whether it is an undamaged run of this config and data that only this user can change."""
        folder = RunFolder(path)
        try:
            for file in (folder.spec, folder.result):
                if file.exists():
                    check_trusted(file, self._root)
            found = RunSpec.model_validate_json(read_regular(folder.spec))
        except (OSError, ValueError):  # of another user, damaged, or of another version
            return False
        if found.data_fingerprint != spec.data_fingerprint or found.run_id != path.name:
            return False
        return identity(found.config) == identity(spec.config)


def link(folder: RunFolder, target: Path) -> None:
    """Make a run's folder a link to another run's folder.

    Raises:
        ConfigError: the file system has no links, or the folder exists by now.
    """
    temporary = folder.path.with_name(f".{folder.run_id}.{uuid.uuid4().hex[:8]}")
    try:
        relative = os.path.relpath(target, folder.path.parent)
        temporary.symlink_to(relative)
        if not temporary.exists():  # the grid's folder is itself a link
            temporary.unlink()
            temporary.symlink_to(target.resolve())
        temporary.replace(folder.path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        problem = explain(error, f"run {target.name} could not be taken for {folder.run_id}")
        raise ConfigError(f"{problem}, or give --no-adopt to train it again") from None


def shown(path: Path, grid: GridFolder) -> str:
    """A run's name for messages. A run of another grid has that grid's name too."""
    if path.parent == grid.path:
        return path.name
    return f"{path.parent.name}/{path.name}"


def _belongs(result: RunResult, path: Path, spec: RunSpec) -> bool:
    return result.run_id == path.name and result.data_fingerprint == spec.data_fingerprint


def _folders(place: Path) -> Iterator[Path]:
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                    yield place / entry.name
    except OSError:  # it belongs to another user, or does not exist
        return
