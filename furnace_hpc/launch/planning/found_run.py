"""Read what exists of a planned run: its folder, its state, its attempts and its code."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.host.regular_file import IrregularFile
from furnace_hpc.launch.planning.plan import Choices
from furnace_hpc.runs.adopted import RunMatcher, RunMatches
from furnace_hpc.runs.folder import GridFolder, RunFolder, may_exist
from furnace_hpc.runs.records.attempts import AttemptHistory
from furnace_hpc.runs.records.result import read_result
from furnace_hpc.runs.records.weights import changed_weights, read_named_weights
from furnace_hpc.runs.state import RunState, RunStatus, read_status

# what a rank runs; snapshots of an older layout lack it
ENTRY_POINT = "furnace_hpc/launch/rank_main.py"
NO_MATCHES = RunMatches(None, None)


class Code(NamedTuple):
    """The code of a run: the hash of what decides its numbers, and the snapshot that holds it."""

    code_hash: str
    snapshot: str


class Found(NamedTuple):
    """What exists of one planned run."""

    folder: RunFolder  # of the run's own name
    place: RunFolder  # where its files are: `folder`, or a finished run of another name
    matches: RunMatches  # runs of other names with the same config, seed and data
    files: RunStatus  # state from its files alone
    status: RunStatus  # state from its files and Slurm
    history: AttemptHistory
    began: Code | None  # None if no attempt has begun
    has_code: bool  # whether the snapshot that it began with still exists
    weights: Mapping[str, str]  # fingerprints of the weights that its config names, as they are now
    changed_weights: Sequence[str]  # which of them differ from those that it began with, in words


def find(
    spec: RunSpec, folder: RunFolder, grid: GridFolder, choices: Choices, matcher: RunMatcher
) -> Found:
    """Read what exists of a run, whose own name is that of `folder`."""
    weights = read_named_weights(spec.config, grid).fingerprints
    place, matches = _find_place(spec, folder, choices, matcher, weights)
    files = read_status(place)
    status = choices.get_status(folder) if place is folder else files
    history = AttemptHistory.read(place)
    began = _code_of(place, status, history)
    has_code = _has_snapshot(grid, began)
    before = _weights_of(place, status, history) if weights else {}
    changed = changed_weights(spec.config, before, weights)
    known = (folder, place, matches, files, status, history, began, has_code)
    return Found(*known, weights, changed)


def _has_snapshot(grid: GridFolder, began: Code | None) -> bool:
    if began is None or not began.snapshot:
        return False
    return (grid.code / began.snapshot / ENTRY_POINT).is_file()


def _find_place(
    spec: RunSpec,
    folder: RunFolder,
    choices: Choices,
    matcher: RunMatcher,
    weights: Mapping[str, str],
) -> tuple[RunFolder, RunMatches]:
    """Return the folder with the run's files: its own, else that of the same run by another name.

    A link that leads to no finished run of the same config counts as no folder.
    """
    is_there = may_exist(folder)
    is_link = is_there and folder.path.is_symlink()
    if is_there and not is_link and folder.path.exists():
        return folder, NO_MATCHES
    has_job = (RunState.QUEUED, RunState.RUNNING, RunState.UNKNOWN)
    if not is_link and choices.get_status(folder).state in has_job:
        return folder, NO_MATCHES  # its job may be about to make the folder
    matches = NO_MATCHES
    if choices.adopt:
        matches = matcher.find(
            spec, folder.run_id, choices.code_hash, weights, any_code=not choices.new_code
        )
    if matches.done:
        return RunFolder(matches.done), matches
    if is_link:  # it must not be followed: return a folder that does not exist
        return RunFolder(folder.path.with_name(f".{folder.run_id}")), matches
    return folder, matches


def run_to_link(found: Found) -> Path | None:
    """Return the finished run to which the folder becomes a link. None if it is one already."""
    target, path = found.matches.done, found.folder.path
    if target and path.is_symlink() and path.resolve() == target.resolve():
        return None
    return target


def _code_of(folder: RunFolder, status: RunStatus, history: AttemptHistory) -> Code | None:
    """Return the code that the run's numbers come from. None if no attempt has begun."""
    first = history.first
    try:
        if status.state is RunState.DONE and (result := read_result(folder)):
            return Code(result.code_hash, first.snapshot if first else "")
    except (ValidationError, IrregularFile):
        raise ConfigError(damaged(folder.result, folder)) from None
    if first and first.code_hash:
        return Code(first.code_hash, first.snapshot)
    return None


def _weights_of(folder: RunFolder, status: RunStatus, history: AttemptHistory) -> Mapping[str, str]:
    """Fingerprints of the weights that a run began with. Empty if it has trained no step."""
    if status.state is RunState.DONE and (result := read_result(folder)):
        return result.weights_fingerprints
    first = history.first_trained
    return first.weights_fingerprints if first else {}


def damaged(file: Path, folder: RunFolder) -> str:
    """The text of an error about a damaged file of a run."""
    return f"{file} is damaged: move the folder {folder.path} away and submit again"
