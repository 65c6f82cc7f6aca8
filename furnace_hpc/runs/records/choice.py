"""The values that a tuned row uses, with the trials behind them: `runs/<grid>/tuning/*.json`.

A choice is written once. A trial that is retried later does not change it, because runs of the
table may use its values already. Move the file away to choose again.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from furnace_hpc.config.base import Config
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.trials import Trials, Tuned
from furnace_hpc.config.grids.tune import Values
from furnace_hpc.config.metrics import Direction
from furnace_hpc.config.parsing.format_number import check_not_newer
from furnace_hpc.host.durable_files import create_complete_file, create_file, sync
from furnace_hpc.host.regular_file import read_regular
from furnace_hpc.runs.folder import GridFolder


class Tried(Config):
    """One trial and its results."""

    trial: int
    values: dict[str, Any]
    runs: tuple[str, ...] = Field(description="run ids, one per seed")
    results: tuple[float | None, ...] = Field(description="metric of each run; null if it failed")
    mean: float | None = Field(description="mean over the seeds; null if a run failed")
    failures: tuple[str, ...] = Field(description="why runs failed")


class Choice(Config):
    """The best trial of a row on a pack, and all trials."""

    format: Literal[1] = 1
    row: str
    pack: str
    metric: str
    direction: Direction
    seeds: tuple[int, ...]
    trial: int = Field(description="number of the best trial; the first of equal ones")
    values: dict[str, Any] = Field(description="its values, which the table's runs use")
    code_hashes: tuple[str, ...] = Field(description="code of the trials' runs")
    trials: tuple[Tried, ...]

    @property
    def best(self) -> float:
        """Mean of the metric of the best trial."""
        (mean,) = [tried.mean for tried in self.trials if tried.trial == self.trial]
        assert mean is not None
        return mean

    @property
    def failed(self) -> list[Tried]:
        """Trials with a failed run. They count as the worst."""
        return [tried for tried in self.trials if tried.mean is None]


def path_of(folder: GridFolder, trials: Trials) -> Path:
    """The file of the choice among these trials."""
    return folder.tuning / f"{trials.tuned.row}-{trials.digest}.json"


def read_choice(folder: GridFolder, trials: Trials) -> Choice | None:
    """The choice among these trials. None if it was not made yet.

    Raises:
        ConfigError: the file is damaged, or its values are not those of its trial.
    """
    try:
        return _read(path_of(folder, trials), trials)
    except FileNotFoundError:
        return None


def find_renamed_choice(folder: GridFolder, trials: Trials) -> Choice | None:
    """The choice among the same trials under another name of the row. None if there is none.

    A damaged file counts as no choice.
    """
    for path in sorted(folder.tuning.glob(f"*-{trials.digest}.json")):
        try:
            return _read(path, trials).model_copy(update={"row": trials.tuned.row})
        except (ConfigError, OSError):
            continue
    return None


def _read(path: Path, trials: Trials) -> Choice:
    """Read a file, and check that its values are those of its trial.

    Raises:
        FileNotFoundError: there is none.
        ConfigError: it is damaged, or has other values.
    """
    try:
        choice = Choice.model_validate_json(read_regular(path))
    except ValueError as error:
        check_not_newer(path, error)
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{path} is damaged ({reason}). Move it away, and submit again to choose again"
        ) from None
    drawn = {trial.number: trial.values for trial in trials.trials}
    if drawn.get(choice.trial) != choice.values or drawn.keys() != _numbers(choice):
        raise ConfigError(
            f"{path} has other values than the trials of row {trials.tuned.row!r}. Move it away, "
            f"and submit again to choose again"
        )
    return choice


def _numbers(choice: Choice) -> set[int]:
    """Numbers of the trials. The best one must have a mean."""
    usable = {tried.trial for tried in choice.trials if tried.mean is not None}
    if choice.trial not in usable:
        return set()
    return {tried.trial for tried in choice.trials}


def set_aside(folder: GridFolder, trials: Trials) -> None:
    """Rename the file of a choice that rests on older code. Nothing is deleted."""
    path, number = path_of(folder, trials), 1
    while (target := path.with_name(f"{path.stem}.{number}.json")).exists():
        number += 1
    path.rename(target)


def write_choice(folder: GridFolder, trials: Trials, choice: Choice) -> Choice:
    """Write a choice, unless another process has written one. Return the one in the file."""
    path = path_of(folder, trials)
    content = (choice.model_dump_json(indent=2) + "\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        try:
            create_complete_file(path, content)
        except FileExistsError:
            raise
        except OSError:  # the file system has no hard links
            create_file(path, content)
        sync(path)
        sync(path.parent)
    except FileExistsError:
        pass
    return read_choice(folder, trials) or choice


def read_choices(folder: GridFolder, all_trials: Iterable[Trials]) -> dict[Tuned, Choice]:
    """The choices that were made, by row and pack.

    Raises:
        ConfigError: a file is damaged.
    """
    found = {trials.tuned: read_choice(folder, trials) for trials in all_trials}
    return {tuned: choice for tuned, choice in found.items() if choice}


def values_of(choices: Mapping[Tuned, Choice]) -> dict[Tuned, Values]:
    """The chosen values, by row and pack."""
    return {tuned: choice.values for tuned, choice in choices.items()}
