"""Choose the values of tuned rows when their trials have ended.

While a row lacks a choice, its trials are planned. Then the runs of the
table are planned, with the values of the best trial.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import fmean

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.grids.row import GridRow
from furnace_hpc.config.grids.trials import Trials, Tuned, as_text, expand_chosen, expand_trials
from furnace_hpc.config.grids.tune import Values
from furnace_hpc.config.parsing.plural import counted
from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.records.choice import (
    Choice,
    Tried,
    find_renamed_choice,
    read_choice,
    set_aside,
    values_of,
    write_choice,
)
from furnace_hpc.runs.records.result import RunResult, read_result
from furnace_hpc.runs.state import RunState, RunStatus

GetStatus = Callable[[RunFolder], RunStatus]


@dataclass(frozen=True)
class Stage:
    """What is to be run now of a tuned grid, and what waits."""

    runs: tuple[RunSpec, ...]  # trials of rows without a choice, and the table's runs of the others
    choices: Mapping[Tuned, Choice]
    waiting: Mapping[Tuned, str]  # rows without a choice -> the reason
    trials: Mapping[int, Values]  # number -> values, the same for every row

    def lines(self, num_later: int) -> list[str]:
        """What was chosen, and what waits. `num_later` runs of the table wait for a choice."""
        found = [_choice_line(tuned, choice) for tuned, choice in self.choices.items()]
        if self.waiting:
            drawn = [f"{number}: {as_text(values)}" for number, values in self.trials.items()]
            found.append(f"trials of each row: {'; '.join(drawn)}")
        found += [f"{_name(tuned)}: {reason}" for tuned, reason in self.waiting.items()]
        if num_later:
            found.append(
                f"{counted(num_later, 'run')} of the table will follow, with the values that "
                f"the trials choose"
            )
        return found


def next_stage(
    grid: Grid,
    rows: Sequence[GridRow],
    fingerprints: Mapping[str, str],
    folder: GridFolder,
    get_status: GetStatus,
    *,
    write: bool,
    code_hash: str = "",
    adopt: bool = True,
) -> Stage:
    """What a tuned grid runs next. It chooses values for each row whose trials have all ended.

    Args:
        grid: the grid.
        rows: its rows, or some of them.
        fingerprints: data set name -> fingerprint of its packed contents.
        folder: folder of the grid's runs.
        get_status: returns the status of a run.
        write: whether to write new choices. The caller holds the grid's lock.
        code_hash: if given, only trials by this code count, as with `--code new`.
        adopt: whether a row takes the choice that it had under another name.

    Raises:
        ConfigError: a trial is not valid, or the file of a choice is damaged.
    """
    all_trials = expand_trials(grid, rows, fingerprints)
    choices: dict[Tuned, Choice] = {}
    waiting: dict[Tuned, str] = {}
    runs: list[RunSpec] = []
    for trials in all_trials:
        found = _choose(folder, trials, get_status, write, code_hash, adopt)
        if isinstance(found, Choice):
            choices[trials.tuned] = found
        else:
            waiting[trials.tuned] = found
            runs += trials.runs
    runs += expand_chosen(grid, rows, fingerprints, values_of(choices))
    drawn = {trial.number: trial.values for trial in all_trials[0].trials}
    return Stage(tuple(runs), choices, waiting, drawn)


def choose(
    trials: Trials, folder: GridFolder, get_status: GetStatus, code_hash: str = ""
) -> Choice | str:
    """The best of the trials, or why there is none.

    A trial counts as the worst if one of its runs failed, or has no finite value.
    """
    grid, tried, codes, still = trials.grid, list[Tried](), set[str](), 0
    for trial, ids in zip(trials.trials, trials.run_ids, strict=True):
        results: list[float | None] = []
        failures = []
        for run_id in ids:
            outcome = _outcome(folder.run(run_id), grid.tuning_metric, get_status, code_hash)
            if outcome is None:
                still += 1
                continue
            value, failure, code = outcome
            results.append(value)
            failures += [f"{run_id}: {failure}"] * bool(failure)
            codes |= {code} - {""}
        values = [value for value in results if value is not None]
        mean = fmean(values) if values and len(values) == len(ids) else None
        tried.append(
            Tried(
                trial=trial.number,
                values=trial.values,
                runs=tuple(ids),
                results=tuple(results),
                mean=mean,
                failures=tuple(failures),
            )
        )
    if still:
        total = sum(map(len, trials.run_ids))
        return f"tuning {total - still}/{total}"
    means = {one.trial: one.mean for one in tried if one.mean is not None}
    if not means:
        return (
            f"all {len(tried)} trials failed, so no values can be chosen ({tried[0].failures[0]}). "
            f"Change tune.space, or fix the cause and give --retry failed"
        )
    direction = grid.tuning_direction
    best = {"max": max, "min": min}[direction](means, key=lambda number: means[number])
    return Choice(
        row=trials.tuned.row,
        pack=trials.tuned.pack,
        metric=grid.tuning_metric,
        direction=direction,
        seeds=grid.tune.seeds if grid.tune else (),
        trial=best,  # max and min return the first of equal ones
        values=tried[best - 1].values,
        code_hashes=tuple(sorted(codes)),
        trials=tuple(tried),
    )


def _choose(
    folder: GridFolder,
    trials: Trials,
    get_status: GetStatus,
    write: bool,
    code_hash: str,
    adopt: bool,
) -> Choice | str:
    """The choice in the file, else that of a renamed row, else a new one, or why there is none."""
    known = read_choice(folder, trials)
    if known and _is_by(known, code_hash):
        return known
    renamed = find_renamed_choice(folder, trials) if adopt and not known else None
    found: Choice | str
    if renamed and _is_by(renamed, code_hash):
        found = renamed
    else:
        found = choose(trials, folder, get_status, code_hash)
    if not write or not isinstance(found, Choice):
        return found
    if known:
        set_aside(folder, trials)
    return write_choice(folder, trials, found)


def _is_by(choice: Choice, code_hash: str) -> bool:
    """Whether all its trials ran this code. Any code is right if none is given."""
    return not code_hash or choice.code_hashes == (code_hash,)


def _outcome(
    run: RunFolder, metric: str, get_status: GetStatus, code_hash: str
) -> tuple[float | None, str, str] | None:
    """Value, failure and code of a run that has ended. None if it has not."""
    try:
        result = read_result(run)
    except ConfigError as error:
        return None, str(error), ""
    if result is None:
        status = get_status(run)
        if status.state is RunState.FAILED:
            return None, status.reason, ""
        return None
    if code_hash and result.code_hash != code_hash:
        return None
    return *_value(result, metric), result.code_hash


def _value(result: RunResult, metric: str) -> tuple[float | None, str]:
    """The metric of a result, or why it cannot be used."""
    value = result.metrics.get(metric)
    if value is None:
        return None, f"the result has no {metric}"
    if not isfinite(value):
        return None, f"{metric} is {value}"
    return value, ""


def _choice_line(tuned: Tuned, choice: Choice) -> str:
    values, number = as_text(choice.values), len(choice.trials)
    return (
        f"{_name(tuned)}: {values}, trial {choice.trial} of {number} "
        f"({choice.metric} {choice.best:.4g})"
    )


def _name(tuned: Tuned) -> str:
    return f"row {tuned.row} on {tuned.pack}"
