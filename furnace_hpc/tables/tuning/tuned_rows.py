"""The trials that chose the values of the rows: choices, costs, and expected best results."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.grids.trials import Trials, Tuned, as_text
from furnace_hpc.config.grids.tune import Tune
from furnace_hpc.runs.records.choice import Choice, Tried
from furnace_hpc.tables.metric import Metric
from furnace_hpc.tables.reading.cache import Records
from furnace_hpc.tables.reading.costs import AttemptCosts, costs_of_attempts
from furnace_hpc.tables.reading.run_files import Record
from furnace_hpc.tables.statistics.best_of import expected_best
from furnace_hpc.tables.text import format_value


@dataclass(frozen=True)
class TunedRow:
    """The trials of one row on all packs."""

    name: str
    choices: tuple[Choice, ...]  # one per pack; a pack whose trials have not ended is left out
    num_packs: int
    spent: AttemptCosts  # hours of all its trials, failed ones included

    @property
    def values(self) -> str:
        """The chosen values, of each pack if they differ. Empty if there are none yet."""
        texts = [as_text(shown(choice.values)) for choice in self.choices]
        if len(texts) < self.num_packs:
            return ""
        if len(set(texts)) == 1:
            return texts[0]
        named = [f"{choice.pack}: {text}" for choice, text in zip(self.choices, texts, strict=True)]
        return "; ".join(named)

    def curve(self) -> list[float]:
        """Expected best of k trials, for k = 1, 2, ..., as a mean over the packs.

        A failed trial counts as the worst of its row that did not fail.
        """
        curves = [list(_curve(choice)) for choice in self.choices]
        return [fmean(of_k) for of_k in zip(*curves, strict=True)]


@dataclass(frozen=True)
class Tuning:
    """The trials of all rows."""

    tune: Tune
    metric: Metric
    rows: dict[str, TunedRow]
    run_ids: frozenset[str]  # of all trials
    undecided: tuple[Trials, ...]  # trials that have chosen no values yet

    def of(self, variants: Sequence[str]) -> list[TunedRow]:
        """The rows of the grid that a row of the table shows."""
        return [row for name, row in self.rows.items() if name in variants]

    @property
    def hours(self) -> float:
        """Hours of all trials."""
        return sum(row.spent.hours for row in self.rows.values())

    @property
    def on_gpus(self) -> bool:
        """Whether any trial had a GPU."""
        return any(row.spent.gpus for row in self.rows.values())


def read_tuning(
    grid: Grid, all_trials: Sequence[Trials], made: Mapping[Tuned, Choice], records: Records
) -> Tuning | None:
    """The choices and costs of a tuned grid. None if the grid does not tune.

    Args:
        grid: the grid.
        all_trials: the trials of its rows.
        made: the choices among them.
        records: content of the run files.
    """
    if grid.tune is None:
        return None
    found: dict[str, list[Trials]] = {}
    for trials in all_trials:
        found.setdefault(trials.tuned.row, []).append(trials)
    tuned, undecided, ids = {}, list[Trials](), set[str]()
    for name, of_packs in found.items():
        undecided += [trials for trials in of_packs if trials.tuned not in made]
        choices = tuple(made[trials.tuned] for trials in of_packs if trials.tuned in made)
        own = [run_id for trials in of_packs for of_trial in trials.run_ids for run_id in of_trial]
        # A renamed row keeps its choice, so its trials have the name that it had.
        before = [run_id for choice in choices for tried in choice.trials for run_id in tried.runs]
        of_row = dict.fromkeys([*own, *before])
        ids.update(of_row)
        tuned[name] = TunedRow(name, choices, len(of_packs), _spent(list(of_row), records))
    metric = Metric(grid.tuning_metric, grid.tuning_direction)
    return Tuning(grid.tune, metric, tuned, frozenset(ids), tuple(undecided))


def shown(values: dict[str, Any]) -> dict[str, str]:
    """Values as a table shows them."""
    return {key: format_value(value) for key, value in values.items()}


def _curve(choice: Choice) -> Iterator[float]:
    means = trial_means(choice)
    for k in range(1, len(means) + 1):
        yield expected_best(means, k, choice.direction)


def trial_means(choice: Choice) -> list[float]:
    """The mean of each trial. A failed one has the worst mean of the others."""
    known = [tried.mean for tried in choice.trials if tried.mean is not None]
    worst = min(known) if choice.direction == "max" else max(known)
    return [_mean(tried, worst) for tried in choice.trials]


def _mean(tried: Tried, worst: float) -> float:
    return worst if tried.mean is None else tried.mean


def _spent(run_ids: Sequence[str], records: Records) -> AttemptCosts:
    """Hours of these runs together."""
    costs = [costs_of_attempts(records.by_run.get(run_id, Record()), None) for run_id in run_ids]
    return AttemptCosts(
        hours=sum(cost.hours for cost in costs), gpus=any(cost.gpus for cost in costs)
    )
