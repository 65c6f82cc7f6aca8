"""Find the runs of a grid that was submitted before, and name commands on them."""

import json
import re
from pathlib import Path
from typing import Any

from furnace_hpc.config.base import NAME_PATTERN
from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.grids.ablate import Overrides
from furnace_hpc.config.grids.grid import load_grid, read_grid
from furnace_hpc.config.parsing.command_line import furnace
from furnace_hpc.config.parsing.lookup import find_file, is_path, parse_value, read_yaml
from furnace_hpc.runs.folder import GridFolder


def find_submitted(name_or_path: str, root: Path) -> GridFolder:
    """The folder of a grid, given by its name or by the path of its file.

    Raises:
        ConfigError: it was never submitted below `root`, or the file cannot be read.
    """
    folder = GridFolder(root / grid_name(name_or_path))
    if not folder.all_submissions():
        name = folder.path.name
        others = {path.parent.name for path in root.glob("*/submissions")}
        there = f" ({nearest(name, others)})" if others else ""
        raise ConfigError(
            f"grid {name!r} has no submissions in {folder.path}{there}. {submit_first(name_or_path, root)}"
        )
    return folder


def submit_first(name_or_path: str, root: Path) -> str:
    """What to do where nothing was submitted."""
    elsewhere = "give the --runs-root that it was submitted with"
    try:
        find_file("grid", name_or_path)
    except ConfigError:
        return f"{elsewhere.capitalize()}, or the path of the grid's file"
    return f"Submit it with `{furnace('submit', '--grid', name_or_path, *_runs_root(root))}`, or {elsewhere}"


def command_on(command: str, folder: GridFolder, *words: str) -> str:
    """The command line of `furnace COMMAND` on a grid that was submitted."""
    return furnace(command, "--grid", folder.path.name, *_runs_root(folder.path.parent), *words)


def submit_words(folder: GridFolder, settings: dict[str, Any], *words: str) -> str:
    """The command line that submits the grid again; its own copy stands for a file that is not in experiments/."""
    name = folder.path.name
    try:
        is_known = load_grid(name).name == name
    except ConfigError:
        is_known = False
    grid = name if is_known else str(folder.grid)
    return furnace(
        "submit", "--grid", grid, *setting_words(settings), *_runs_root(folder.path.parent), *words
    )


def grid_name(name_or_path: str) -> str:
    """Name of the grid that a name or the path of a grid file means.

    Other problems of the file do not matter: the grid may run while its file is being edited.

    Raises:
        ConfigError: there is no such file, it is not YAML, or it has no valid name.
    """
    if not is_path(name_or_path):
        return name_or_path
    path = find_file("grid", name_or_path)
    content = read_yaml(path)
    name = content.get("name") if isinstance(content, dict) else None
    if isinstance(name, str) and re.fullmatch(NAME_PATTERN, name):
        return name
    return read_grid(path).name  # its error names every problem


def setting_words(settings: Overrides) -> list[str]:
    """The `--set` options that lay these settings."""
    return [
        word for key, value in settings.items() for word in ("--set", f"{key}={_as_text(value)}")
    ]


def _as_text(value: Any) -> str:
    """The shortest text that `--set` reads as this value: `zero1`, `1e-3`, else JSON, which is YAML."""
    for text in (str(value), json.dumps(value)):
        try:
            if (read := parse_value(text)) == value and type(read) is type(value):
                return text
        except ConfigError:
            continue
    return json.dumps(value)


def _runs_root(root: Path) -> list[str]:
    return [] if root == Path("runs") else ["--runs-root", str(root)]
