"""Find the runs of a grid whose selected checkpoint other runs need."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import expand_rows
from furnace_hpc.config.grids.grid import read_grid
from furnace_hpc.config.grids.initial_weights import source_rows
from furnace_hpc.config.parsing.lookup import find_file, names_of
from furnace_hpc.host.regular_file import read_regular_text
from furnace_hpc.runs.folder import GridFolder

INIT_FROM = "init_from"
_RUN_ID = re.compile(r".+-s\d+-[0-9a-f]{8}")


def needed_by_others(folder: GridFolder) -> dict[str, str]:
    """Return run id -> what needs the run's selected checkpoint.

    These are runs that a grid names in `init_from`, below the same root or in experiments/, and
    runs that another grid has taken over.
    """
    found, runs = dict[str, str](), _run_ids(folder.path)
    for file in _grid_files(folder):
        text = _text(file)
        if INIT_FROM in text:
            # a run is named by the path of its folder, relative or absolute
            found |= {run: f"init_from of {file} names it" for run in runs if run in text}
    found |= dict(_sources_in_this_grid(folder))
    return found | dict(_taken_over(folder))


def _grid_files(folder: GridFolder) -> Iterator[Path]:
    """Yield every submitted grid file below the runs root, and those in experiments/."""
    for grid in sorted(folder.path.parent.glob("*/grid.yaml")):
        yield grid
        yield from sorted(grid.parent.glob("submissions/*/grid.yaml"))
    for name in names_of("grid"):
        yield find_file("grid", name)


def _sources_in_this_grid(folder: GridFolder) -> Iterator[tuple[str, str]]:
    """Yield the runs of the rows that other rows of this grid start from."""
    for submission in folder.all_submissions():
        file = submission / "grid.yaml"
        if INIT_FROM not in _text(file):
            continue
        try:
            users = {
                name: row.name for row in expand_rows(read_grid(file)) for name in source_rows(row)
            }
        except ConfigError:  # of an older version: any run may be a source
            yield from ((run, f"{file} cannot be read") for run in _run_ids(folder.path))
            continue
        for run in _run_ids(folder.path):
            if user := users.get(run.rsplit("-", 2)[0]):
                yield run, f"row {user} starts from it"


def _taken_over(folder: GridFolder) -> Iterator[tuple[str, str]]:
    """Yield the runs to which a link in the folder of another grid leads."""
    place = folder.path.resolve()
    for grid in sorted(folder.path.parent.iterdir()):
        if not grid.is_dir() or grid.resolve() == place:
            continue
        for name in _run_ids(grid):
            path = grid / name
            if path.is_symlink() and (target := path.resolve()).parent == place:
                yield target.name, f"grid {grid.name} has taken it over as {name}"


def _run_ids(grid: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(grid) if _RUN_ID.fullmatch(name))  # noqa: PTH208
    except PermissionError:  # of another user
        return []


def _text(file: Path) -> str:
    try:
        return read_regular_text(file, errors="replace")
    except FileNotFoundError:
        return ""
