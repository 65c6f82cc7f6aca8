"""Find the own code of a run in a code snapshot, and let this process import it."""

from pathlib import Path

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.own_code.loading import use_folder
from furnace_hpc.config.own_code.sources import (
    OWN_CODE,
    OwnCode,
    content_hash,
    files_of,
    read_own_code,
)
from furnace_hpc.config.train_config import TrainConfig
from furnace_hpc.runs.code import PACKAGE, is_snapshot
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.trust import check_trusted


def use_own_code(config: TrainConfig, run: RunFolder) -> None:
    """Let this process import the own code of a run, from the snapshot that has it.

    Nothing is imported yet, and never from the working directory.

    Raises:
        ConfigError: no snapshot has code of this hash, or other users could change it.
    """
    if config.own_code is not None:
        use_folder(find_own_code(config.own_code, run))


def find_own_code(sha256: str, run: RunFolder) -> Path:
    """The folder with the own code of this hash: of this code's snapshot, else of the grid's.

    Raises:
        ConfigError: as `use_own_code`.
    """
    grid = GridFolder(run.path.resolve().parent)
    # A name that begins with a dot is that of an unfinished copy, which a submission renames or
    # removes.
    folders = sorted(grid.code.glob(f"[!.]*/{OWN_CODE}"))
    if is_snapshot():
        folders.insert(0, PACKAGE.parent / OWN_CODE)
    for folder in folders:
        if not folder.is_dir():
            continue
        check_trusted(folder, folder.parents[3])
        if content_hash(files_of(folder)) == sha256:
            return folder
    raise ConfigError(
        f"run {run.path.name} uses own code with the hash {sha256}, and no snapshot in {grid.code} "
        f"has it. Submit the grid again, or move the snapshot back"
    )


def own_code_to_copy(grid: Grid) -> OwnCode | None:
    """The own code that a snapshot for this grid copies. None keeps that of a running snapshot.

    Raises:
        ConfigError: the grid is the copy of a submission, and the code has changed since.
    """
    if grid.own_code is not None or not grid.code or is_snapshot():
        return grid.own_code
    own = read_own_code(map(Path, grid.code), f"grid {grid.name!r}")
    if own.sha256 != grid.code_sha256:
        raise ConfigError(
            f"grid {grid.name!r} is the copy of a submission, and its own code has changed since: "
            f"then {grid.code_sha256}, now {own.sha256}. Submit the grid's own file"
        )
    return own
