"""Find the runs of a grid that was submitted before, and write commands for it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.parsing.command_line import furnace
from furnace_hpc.config.parsing.lookup import find_file, is_path, parse_value, read_yaml
from furnace_hpc.host.attempt_spec import AttemptSpec
from furnace_hpc.host.regular_file import read_regular_text
from furnace_hpc.runs.file_cache import cached_by_stat
from furnace_hpc.runs.folder import GridFolder, RunFolder

# Functions import the grid's modules, which take as long as all else that `status` imports.
if TYPE_CHECKING:
    from furnace_hpc.config.grids.ablate import Overrides
    from furnace_hpc.config.grids.grid import Grid


class SubmissionRow(NamedTuple):
    """One line of a submission's `rows.jsonl`: one run of the grid."""

    run_id: str
    row: int = 0  # number of the line, from 0
    run_dir: str = ""
    to_do: bool = False  # whether the submission starts it
    shape: tuple[Any, ...] = ()  # fields of `Shape` in launch/planning/plan.py
    steps: int = 0
    epochs: float | None = None  # of a run whose length is given in epochs
    data: tuple[str, str] = ("", "")  # data set and its fingerprint
    spec_at: tuple[int, int] = (0, 0)  # offset and length in specs.jsonl, in bytes
    code: str = ""  # folder of the code snapshot
    attempt: AttemptSpec = AttemptSpec()  # under the key `facts`

    @classmethod
    def from_line(cls, line: str) -> "SubmissionRow":
        """Read one line. A missing key has its default, other keys are ignored."""
        content = json.loads(line)
        known = {name: content[name] for name in cls._fields if name in content}
        known["attempt"] = AttemptSpec.from_record(content.get("facts", {}))
        return cls(**known)

    def line(self) -> str:
        """Return the line, with its line end."""
        content = self._asdict()
        del content["attempt"]
        if self.epochs is None:
            del content["epochs"]
        return json.dumps(content | {"facts": self.attempt.record()}) + "\n"


@cached_by_stat(lambda file: [file])
def read_rows(file: Path) -> list[SubmissionRow]:
    """Read a submission's `rows.jsonl`. Empty if a kill came before the file was written.

    Raises:
        ConfigError: the file is damaged.
    """
    try:
        lines = read_regular_text(file).splitlines()
    except FileNotFoundError:
        return []
    try:
        return [SubmissionRow.from_line(line) for line in lines]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{file} is damaged ({error}): move the folder {file.parent} away and submit again"
        ) from None


def runs_of_table(folder: GridFolder, grid: "Grid") -> set[str]:
    """Ids of all runs that were submitted for this table: with the same `--set`."""
    from furnace_hpc.config.grids.grid import results_name

    wanted = results_name(grid)
    return {run for name, runs in runs_by_table(folder) if name == wanted for run in runs}


def runs_by_table(folder: GridFolder) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of the table's folder and the run ids of each submission, oldest first."""
    from furnace_hpc.config.grids.grid import read_grid, results_name

    for submission in folder.all_submissions():
        try:
            submitted = read_grid(submission / "grid.yaml")
            rows = read_rows(submission / "rows.jsonl")
        except (ConfigError, OSError):  # incomplete or damaged
            continue
        yield results_name(submitted), [row.run_id for row in rows]


def find_submitted(name_or_path: str, root: Path) -> GridFolder:
    """Return the folder of a grid, given by its name or by the path of its file.

    Raises:
        ConfigError: it was never submitted below `root`, or the file cannot be read.
    """
    folder = GridFolder(root / grid_name(name_or_path))
    if not folder.all_submissions():
        name = folder.path.name
        others = {path.parent.name for path in root.glob("*/submissions")}
        similar = f" ({nearest(name, others)})" if others else ""
        fix = how_to_submit(name_or_path, root)
        raise ConfigError(f"grid {name!r} has no submissions in {folder.path}{similar}. {fix}")
    return folder


def submitted_run_ids(folder: GridFolder) -> list[str]:
    """Return the ids of all runs that were submitted, in the order of their submission."""
    paths = folder.all_submissions()
    return list(
        dict.fromkeys(row.run_id for path in paths for row in read_rows(path / "rows.jsonl"))
    )


def find_run(folder: GridFolder, name: str) -> RunFolder:
    """Find a submitted run by its name, or by a beginning that no other name has.

    Raises:
        ConfigError: no run, or more than one, has a name that begins with `name`.
    """
    known = submitted_run_ids(folder)
    if name in known:
        return folder.run(name)
    found = [run_id for run_id in known if run_id.startswith(name)]
    if not found:
        raise ConfigError(f"unknown run {name!r}; {nearest(name, known)}")
    if len(found) > 1:
        examples = ", ".join(found[:5]) + f" and {len(found) - 5:,} more" * (len(found) > 5)
        raise ConfigError(
            f"{len(found)} runs begin with {name!r}: give more of the name: {examples}"
        )
    return folder.run(found[0])


def named_run(name: str, root: Path) -> RunFolder:
    """Find a run by the path of its folder, or by GRID/RUN. The beginning of RUN is enough.

    Args:
        name: what the user gave.
        root: the folder of the runs, for GRID/RUN.

    Raises:
        ConfigError: there is no such run, or the beginning fits several runs.
    """
    path = Path(name)
    if (path / "spec.json").is_file():
        return RunFolder(path)
    if path.parent != Path():
        for grid in (GridFolder(path.parent), GridFolder(root / path.parent)):
            if grid.all_submissions():
                return find_run(grid, path.name)
    wanted = f"Give the folder of a run, or GRID/RUN of a grid below {root}"
    if GridFolder(path).all_submissions() or GridFolder(root / path).all_submissions():
        raise ConfigError(f"{name!r} is a grid, wanted one of its runs. {wanted}")
    raise ConfigError(f"{name!r} is not a run. {wanted}")


def how_to_submit(name_or_path: str, root: Path) -> str:
    """Return the hint for a grid that has no submissions."""
    other_root = "give the --runs-root that it was submitted with"
    try:
        find_file("grid", name_or_path)
    except ConfigError:
        return f"{other_root.capitalize()}, or the path of the grid's file"
    command = furnace("submit", "--grid", name_or_path, *_runs_root(root))
    return f"Submit it with `{command}`, or {other_root}"


def grid_command(command: str, folder: GridFolder, *words: str) -> str:
    """Return the command line `furnace COMMAND` for a grid that was submitted."""
    return furnace(command, "--grid", folder.path.name, *_runs_root(folder.path.parent), *words)


def resubmit_command(folder: GridFolder, settings: dict[str, Any], *words: str) -> str:
    """Return the command line that submits the grid again.

    It names the submitted copy of the grid if experiments/ has no file of that name.
    """
    from furnace_hpc.config.grids.grid import load_grid

    name = folder.path.name
    try:
        is_known = load_grid(name).name == name
    except ConfigError:
        is_known = False
    grid = name if is_known else str(folder.grid)
    root = _runs_root(folder.path.parent)
    return furnace("submit", "--grid", grid, *set_options(settings), *root, *words)


def grid_name(name_or_path: str) -> str:
    """Return the name of a grid, given by that name or by the path of its file.

    Other problems of the file are ignored: users may edit it while the grid runs.

    Raises:
        ConfigError: there is no such file, it is not YAML, or it has no valid name.
    """
    if not is_path(name_or_path):
        return name_or_path
    from furnace_hpc.config.base import NAME_PATTERN
    from furnace_hpc.config.grids.grid import read_grid

    path = find_file("grid", name_or_path)
    content = read_yaml(path)
    name = content.get("name") if isinstance(content, dict) else None
    if isinstance(name, str) and re.fullmatch(NAME_PATTERN, name):
        return name
    return read_grid(path).name  # its error names every problem


def set_options(settings: "Overrides") -> list[str]:
    """Return these settings as `--set` options."""
    options = [("--set", f"{key}={_as_text(value)}") for key, value in settings.items()]
    return [word for option in options for word in option]


def _as_text(value: Any) -> str:
    """Return the shortest text that `--set` reads as this value: `zero1`, `1e-3`, else JSON."""
    for text in (str(value), json.dumps(value)):
        try:
            if (read := parse_value(text)) == value and type(read) is type(value):
                return text
        except ConfigError:
            continue
    return json.dumps(value)


def _runs_root(root: Path) -> list[str]:
    return [] if root == Path("runs") else ["--runs-root", str(root)]
