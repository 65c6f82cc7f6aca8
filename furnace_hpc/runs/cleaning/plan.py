"""Decide what `furnace clean` deletes. Rules for checkpoints depend on the state of each run."""

import os
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.runs.cleaning.needed import needed_by_others
from furnace_hpc.runs.cleaning.sizes import FREED, Kind, is_temporary, size_of
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.records.attempts import holder_is_alive, read_attempts
from furnace_hpc.runs.records.checkpoint_files import is_visible, read_digests, steps_of
from furnace_hpc.runs.records.result import RunResult, read_result
from furnace_hpc.runs.state import RunState, RunStatus

STALE_S = 3600  # age of temporary files that no process still writes
GetStatus = Callable[[RunFolder], RunStatus]


class Keep(StrEnum):
    """Checkpoints of finished runs to keep."""

    BEST = "best"
    LAST = "last"
    NONE = "none"


class Also(StrEnum):
    """More kinds of files to delete."""

    CACHES = "caches"
    FEATURES = "features"
    REPLACED = "replaced"


class ToDelete(NamedTuple):
    """A file or folder to delete."""

    path: Path
    kind: Kind
    num_bytes: int


class Kept(NamedTuple):
    """Checkpoints of a run that are kept, and why."""

    run_id: str
    why: str
    num_bytes: int


@dataclass(frozen=True)
class CleanPlan:
    """The files to delete, and the checkpoints to keep."""

    to_delete: tuple[ToDelete, ...]
    kept: tuple[Kept, ...]
    notes: tuple[str, ...] = ()
    """Why files are kept that the user wanted to delete."""

    @property
    def num_bytes(self) -> int:
        """Bytes that are freed."""
        return sum(one.num_bytes for one in self.to_delete)


def make_clean_plan(
    folder: GridFolder, get_status: GetStatus, keep: Collection[Keep], also: Collection[Also]
) -> CleanPlan:
    """Decide what can be deleted now.

    Args:
        folder: of the grid.
        get_status: returns the status of a run.
        keep: checkpoints of finished runs to keep: the best, the last, or none.
        also: more kinds of files to delete.
    """
    needed = needed_by_others(folder)
    to_delete, kept, has_live_runs = list[ToDelete](), list[Kept](), False
    for run in runs_in(folder):
        status = get_status(run)
        has_live_runs |= status.state in _LIVE
        unwanted, why = _of_run(run, status, keep, needed.get(run.run_id, ""))
        to_delete += unwanted
        freed = {found.path for found in unwanted}
        left = [path for path in _listed(run.checkpoints) if path not in freed]
        if left:
            kept.append(Kept(run.run_id, why, sum(size_of(path).num_bytes for path in left)))
    notes = []
    if Also.FEATURES in also and has_live_runs:
        notes.append("cached features: runs are running or queued")
    elif Also.FEATURES in also:
        to_delete += _all_in(folder.features, Kind.FEATURES)
    if Also.CACHES in also:
        to_delete += [*_all_in(folder.tables_cache, Kind.CACHES), *_one(folder.slurm_cache)]
    if Also.REPLACED in also:
        to_delete += _all_in(folder.replaced, Kind.REPLACED)
    known = {found.path for found in to_delete}
    to_delete += [one for one in _temporary(folder) if not known & {one.path, *one.path.parents}]
    return CleanPlan(tuple(to_delete), tuple(kept), tuple(notes))


_LIVE = (RunState.RUNNING, RunState.QUEUED, RunState.UNKNOWN)
_WHY_LIVE = {
    RunState.RUNNING: "it is running",
    RunState.QUEUED: "it is queued",
    RunState.UNKNOWN: "it may be running: its state is unknown",
}


def runs_in(folder: GridFolder) -> list[RunFolder]:
    """Return the runs whose folders are in the grid's folder. Links to other runs are left out."""
    paths = sorted(path for path in folder.path.iterdir() if not path.name.startswith("."))
    return [
        folder.run(path.name)
        for path in paths
        if not path.is_symlink() and ((path / "spec.json").exists() or (path / "attempts").exists())
    ]


def _of_run(
    run: RunFolder, status: RunStatus, keep: Collection[Keep], needed: str
) -> tuple[list[ToDelete], str]:
    """Return the checkpoints of a run to delete, and why the others are kept."""
    if run.checkpoints.is_symlink():
        return [], "its folder of checkpoints is a link, which is not followed"
    if status.state in _LIVE:
        return [], _WHY_LIVE[status.state]
    if _is_ending(run):
        return [], "its processes are still ending"
    left_behind = [path for path in _listed(run.checkpoints) if _is_left_behind(path)]
    if status.state is not RunState.DONE:
        stale = [path for path in left_behind if ".tmp-" in path.name and _age_s(path) > STALE_S]
        return _checkpoints_to_delete(stale), "it can be resumed"
    try:
        result = read_result(run)
    except ConfigError:
        return [], "its result cannot be read"
    if result is None:  # deleted in the meantime
        return [], "it can be resumed"
    kept, why = _kept_steps(run, result, keep, needed)
    unwanted = [run.checkpoint(step) for step in steps_of(run) if step not in kept]
    return _checkpoints_to_delete([*unwanted, *left_behind]), why


def _kept_steps(
    run: RunFolder, result: RunResult, keep: Collection[Keep], needed: str
) -> tuple[set[int], str]:
    """Return the steps of a finished run whose checkpoints are kept, and why."""
    steps, best = steps_of(run), result.selected_step
    kept, reasons = set[int](), list[str]()
    if Keep.BEST in keep or needed:
        if not _has_all_files(run.checkpoint(best)):
            return set(
                steps
            ), f"the checkpoint of its selected step {best} is missing or incomplete"
        kept.add(best)
        reasons.append("the selected step" if Keep.BEST in keep else needed)
    if Keep.LAST in keep and steps:
        kept.add(steps[-1])
        reasons.append("the last step")
    return kept, " and ".join(reasons) or "Furnace has not written them"


def _has_all_files(checkpoint: Path) -> bool:
    """Whether all files of the manifest are there in their full size. Nothing is hashed."""
    files = read_digests(checkpoint)
    return bool(files) and is_visible(checkpoint, files)


def _is_ending(run: RunFolder) -> bool:
    """Whether a process of this host still holds the newest attempt."""
    attempts = read_attempts(run)
    if not attempts or attempts[-1].end_unix_s is not None:
        return False
    return holder_is_alive(attempts[-1]) is True


def _is_left_behind(path: Path) -> bool:
    """Whether it is an unfinished, damaged or replaced checkpoint."""
    name = path.name
    return name.startswith("aside-step-") or (name.startswith("step-") and ".tmp-" in name)


def _temporary(folder: GridFolder) -> Iterator[ToDelete]:
    """Yield temporary files that were left behind, and what an earlier clean has not deleted."""
    for place, folders, names in os.walk(folder.path):  # follows no links
        found = [Path(place, name) for name in (*folders, *names) if is_temporary(name)]
        for path in found:
            if FREED.fullmatch(path.name) or _age_s(path) > STALE_S:
                yield ToDelete(path, Kind.TEMPORARY, size_of(path).num_bytes)
        folders[:] = [name for name in folders if not is_temporary(name)]


def _all_in(folder: Path, kind: Kind) -> list[ToDelete]:
    if folder.is_symlink():  # it may lead out of the grid's folder
        return []
    return [ToDelete(path, kind, size_of(path).num_bytes) for path in _listed(folder)]


def _one(path: Path) -> list[ToDelete]:
    return [ToDelete(path, Kind.CACHES, size_of(path).num_bytes)] if path.exists() else []


def _checkpoints_to_delete(paths: list[Path]) -> list[ToDelete]:
    return [
        ToDelete(path, _kind_of_checkpoint(path), size_of(path).num_bytes) for path in sorted(paths)
    ]


def _kind_of_checkpoint(path: Path) -> Kind:
    return Kind.TEMPORARY if _is_left_behind(path) else Kind.CHECKPOINTS


def _listed(folder: Path) -> list[Path]:
    """Return the entries of a folder that an earlier clean has not renamed."""
    try:
        return sorted(path for path in folder.iterdir() if not is_temporary(path.name))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0
