"""The data of an ablation table. A missing value is None, never a number.

If a grid has several packs, intervals and tests count packs: see `statistics/units.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from statistics import fmean
from typing import Any, NamedTuple

from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.train_config import RunSpec, TrainConfig
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.declaration import Declared
from furnace_hpc.runs.records.result import RunResult
from furnace_hpc.runs.state import RunState, RunStatus
from furnace_hpc.tables.metric import Metric
from furnace_hpc.tables.reading.cache import Records
from furnace_hpc.tables.reading.costs import AttemptCosts, Costs, row_costs
from furnace_hpc.tables.reading.run_files import Record
from furnace_hpc.tables.statistics import estimates, resampling
from furnace_hpc.tables.statistics.factorial import FactorEffects
from furnace_hpc.tables.statistics.ranks import Ranks
from furnace_hpc.tables.statistics.units import Draw, by_pack, pair_up, units_of
from furnace_hpc.tables.statistics.verdicts import Verdict
from furnace_hpc.tables.text import count
from furnace_hpc.tables.tuning.tuned_rows import Tuning

SOURCE_FILE = "source.json"  # in the results of another tool's runs: their files


@dataclass(frozen=True)
class Change:
    """One identity key in which a row's config differs from the reference's."""

    key: str
    reference: Any
    value: Any


@dataclass(frozen=True)
class ForeignSpec:
    """What is known of the plan of another tool's run."""

    variant: str
    pack_is: str = "pack"  # what its pack is called: `pack`, or `data set`


@dataclass(frozen=True)
class ForeignResult:
    """What is known of the result of another tool's run."""

    metrics: dict[str, float]


@dataclass(frozen=True)
class Run:
    """One planned run. If `result` is None, the run is missing, and `status` has the reason."""

    spec: RunSpec | ForeignSpec
    folder: RunFolder
    status: RunStatus
    result: RunResult | ForeignResult | None
    value: float | None  # the table's metric; may be NaN or infinite
    draw: Draw
    spent: AttemptCosts = AttemptCosts()
    record: Record = Record()  # content of its files
    origin: str = ""  # place in another tool's file, such as runs.csv:12

    @property
    def run_id(self) -> str:
        """Id of the run, from its folder, because `spec.run_id` hashes the config each time."""
        return self.folder.run_id

    @property
    def own_spec(self) -> RunSpec | None:
        """The spec. None if the run is of another tool."""
        if isinstance(self.spec, ForeignSpec):
            return None
        return self.spec

    @property
    def own_result(self) -> RunResult | None:
        """The result. None if the run is missing, or of another tool."""
        if isinstance(self.result, ForeignResult):
            return None
        return self.result

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return self.draw.seed

    @property
    def counts(self) -> bool:
        """Whether it has a finite value."""
        return self.value is not None and isfinite(self.value)

    @property
    def has_failed(self) -> bool:
        """Whether it failed, or has a value that is not finite."""
        if self.value is None:
            return self.status.state is RunState.FAILED
        return not isfinite(self.value)


@dataclass(frozen=True)
class Row:
    """One row: its runs, in the grid's order, and its difference to the reference."""

    variant: str
    runs: tuple[Run, ...]
    changes: tuple[Change, ...]
    difference: estimates.Difference | None  # None for the reference, and without a common draw
    verdict: Verdict | None = None  # None for the reference, and in a table without verdicts

    @cached_property
    def variants(self) -> list[str]:
        """The variants of its runs. One, unless the rows are values of a key."""
        return list(dict.fromkeys(run.spec.variant for run in self.runs))

    @cached_property
    def data_sets(self) -> set[str]:
        """Names of the data sets of its runs. Empty for runs of other tools."""
        return data_sets_of(self.runs)

    @cached_property
    def values(self) -> dict[Draw, float]:
        """Draw -> value of the metric, of the runs that count."""
        return values_by_draw(self.runs)

    @cached_property
    def n(self) -> int:
        """Number of draws in the mean."""
        return len(self.values)

    @cached_property
    def n_expected(self) -> int:
        """Number of draws in the grid. A draw is one run, unless the row has several variants."""
        return len({run.draw for run in self.runs})

    @cached_property
    def units(self) -> list[float]:
        """The values of mean, interval and tests: one per seed, or one per pack."""
        return units_of(self.values)

    @cached_property
    def mean(self) -> float | None:
        """Mean of the metric."""
        return estimates.mean(self.units)

    @cached_property
    def deviation(self) -> float | None:
        """Sample standard deviation (n-1) of the metric over seeds, within a pack."""
        return estimates.pooled_deviation(by_pack(self.values))

    @cached_property
    def packs_deviation(self) -> float | None:
        """Sample standard deviation (n-1) of the packs' means. None if the grid has one pack."""
        if not self.has_packs:
            return None
        return estimates.sample_deviation(self.units)

    @property
    def has_packs(self) -> bool:
        """Whether the grid has several packs of the data."""
        return bool(self.runs[0].draw.pack)

    @property
    def pack_is(self) -> str:
        """What its packs are called: `pack`, or `data set`."""
        spec = self.runs[0].spec
        return spec.pack_is if isinstance(spec, ForeignSpec) else "pack"

    @property
    def unit(self) -> str:
        """What intervals and tests count: `seed`, `pack` or `data set`."""
        return self.pack_is if self.has_packs else "seed"

    @cached_property
    def interval(self) -> estimates.Interval | None:
        """95 % t interval of the mean. None if all values are equal, which is no certainty."""
        if len({*self.units}) < 2:
            return None
        interval = estimates.t_interval(self.units)
        return resampling.corrected_interval(interval, len(self.units), self.test_per_train)

    @cached_property
    def test_per_train(self) -> float:
        """n_test / n_train if packs of this row share samples, else 0."""
        return test_per_train(self.runs)

    @cached_property
    def missing(self) -> list[Run]:
        """Runs without a result."""
        return [run for run in self.runs if run.result is None]

    @cached_property
    def gaps(self) -> str:
        """The runs without a value: `2 of 5 failed`, `1 of 5 failed, 2 missing`. Empty if none."""
        failed = sum(run.has_failed for run in self.runs)
        missing = sum(not run.counts for run in self.runs) - failed
        numbers = {"failed": failed, "missing": missing}
        parts = [f"{number} {word}" for word, number in numbers.items() if number]
        return ", ".join(parts).replace(" ", f" of {len(self.runs)} ", 1)

    @cached_property
    def costs(self) -> Costs:
        """Costs of the row. They include the attempts of missing runs."""
        results = [run.own_result for run in self.runs if run.own_result]
        attempts = sum(result.attempts for result in results)
        attempts += sum(run.status.attempt for run in self.missing)
        return row_costs(results, attempts, [run.spent for run in self.runs])


@dataclass(frozen=True)
class Note:
    """A footnote and the rows that it concerns. Without rows it concerns the whole table."""

    text: str
    variants: tuple[str, ...] = ()


class Source(NamedTuple):
    """The files of a table whose runs are of another tool."""

    files: str
    tool: str  # empty if it is unknown
    of_last_step: bool  # whether a value is that of the last step with one
    is_plain: bool  # whether values are shown as they are, not as percentages
    packs_are: str = ""  # a key of `captions.PACKS_ARE`
    inputs: tuple[str, ...] = ()  # full paths of the files, and the metric


class PlanHistory(NamedTuple):
    """What was declared for a table, and what changed."""

    entries: tuple[Declared, ...]  # the declaration, and changes that were submitted
    not_submitted: tuple[str, ...] = ()  # what the table's grid changes beside them
    removed: tuple[str, ...] = ()  # rows that were removed after runs had results
    problem: str = ""  # why it cannot be read


@dataclass(frozen=True)
class Ablation:
    """The table of one grid, or of runs of another tool."""

    grid: Grid
    rows: tuple[Row, ...]
    notes: tuple[Note, ...]
    records: Records  # content of all run files in the grid's folder
    source: Source | None = None  # None if the runs are of Furnace
    why_no_verdict: str = ""  # why no row has a verdict, as a sentence; empty if rows have one
    resolution: float = 0.0  # smallest possible change of a value; 0 if unknown
    effects: FactorEffects | None = None  # None without a full product and without 2 x 2 parts
    ranks: Ranks | None = None  # of the methods over data sets; None if there are not several
    tuning: Tuning | None = None  # the trials behind the rows; None if they were not tuned
    suffix: str = ""  # of the results folder, if the table is a view of its grid
    declared: PlanHistory | None = None  # None if no plan was recorded
    others: tuple["Ablation", ...] = ()  # the table with each further metric, without verdicts
    has_direction: bool = True  # whether it is known which values of the metric are better
    num_removed: int = 0  # rows that were removed after a look; the correction counts them

    @cached_property
    def metric(self) -> Metric:
        """The metric of the table."""
        is_plain = self.source is not None and self.source.is_plain
        return Metric(self.grid.metric, self.grid.direction, is_plain)

    @cached_property
    def runs(self) -> list[Run]:
        """All runs, row by row."""
        return [run for row in self.rows for run in row.runs]

    @cached_property
    def configs(self) -> list[TrainConfig]:
        """The configs of the runs, one for each row and data. The others differ in the seed."""
        specs = [run.own_spec for run in self.runs]
        found = {(spec.variant, spec.data_fingerprint): spec.config for spec in specs if spec}
        return list(found.values())

    @cached_property
    def missing(self) -> list[Run]:
        """Runs without a result."""
        return [run for run in self.runs if run.result is None]

    @cached_property
    def reference(self) -> Row | None:
        """The row that the others are compared with."""
        return next((row for row in self.rows if row.variant == self.grid.reference), None)

    @cached_property
    def row_of(self) -> dict[str, Row]:
        """Variant -> its row."""
        return {row.variant: row for row in self.rows}

    @cached_property
    def compared(self) -> list[Row]:
        """The rows that are compared with the reference: those on the same data."""
        others = [row for row in self.rows if row is not self.reference]
        if self.reference is None:
            return others
        return [row for row in others if row.data_sets == self.reference.data_sets]

    @property
    def family(self) -> str:
        """The comparisons that are corrected together: `3 rows, 5 effects and 1 test`."""
        parts = []
        if not self.why_no_verdict:
            parts.append(count(len(self.compared), "row"))
        if self.num_removed and not self.why_no_verdict:
            parts.append(count(self.num_removed, "removed row"))
        if self.effects is not None and self.effects.are_judged:
            parts.append(count(len(self.effects.effects), "effect"))
            if self.effects.tests:
                parts.append(count(len(self.effects.tests), "test"))
        *first, last = parts or [""]
        return " and ".join(filter(None, [", ".join(first), last]))

    @property
    def packs(self) -> tuple[str, ...]:
        """The grid's packs of the data. Empty if it has one."""
        return several_packs(self.grid)

    @property
    def unit(self) -> str:
        """What intervals and tests count: `seed`, `pack` or `data set`."""
        return self.rows[0].pack_is if self.packs else "seed"

    def tuned_cells(self, row: Row) -> tuple[str, float | None]:
        """Chosen values and hours of the trials of a row. Empty and None without any."""
        if self.tuning is None:
            return "", None
        rows = self.tuning.of(row.variants)
        values = rows[0].values if len(rows) == 1 else ""
        return values, sum(tuned.spent.hours for tuned in rows) or None

    @cached_property
    def on_gpus(self) -> bool:
        """Whether any attempt had a GPU."""
        return any(run.spent.gpus for run in self.runs)

    @cached_property
    def stronger_sanity(self) -> tuple[str, ...]:
        """Sanity rows with the verdict better. They show that the reference is under-trained."""
        return tuple(
            row.variant
            for row in self.rows
            if row.variant in self.grid.sanity and row.verdict is Verdict.BETTER
        )


def several_packs(grid: Grid) -> tuple[str, ...]:
    """The grid's packs of the data. Empty if it has one."""
    if len(grid.packs) < 2:
        return ()
    return grid.packs


def data_sets_of(runs: Sequence[Run]) -> set[str]:
    """Names of the data sets of some runs. Empty for runs of other tools."""
    specs = [run.own_spec for run in runs]
    return {spec.config.data.name for spec in specs if spec}


def test_per_train(runs: Sequence[Run]) -> float:
    """n_test / n_train if the packs of these runs share samples, else 0."""
    found = [(run.draw.pack, run.own_result) for run in runs]
    origins = {pack: result.data_origin for pack, result in found if result}
    return resampling.test_per_train(origins.values())


def values_by_draw(runs: Sequence[Run], missing: float | None = None) -> dict[Draw, float]:
    """Draw -> mean value of the metric over the runs with this draw.

    Runs without a finite value get the value `missing`. If it is None, a draw counts only if all of
    its runs have a finite value.
    """
    found: dict[Draw, list[float | None]] = {}
    for run in runs:
        found.setdefault(run.draw, []).append(run.value if run.counts else missing)
    means = {}
    for draw, values in found.items():
        finite = [value for value in values if value is not None and isfinite(value)]
        if len(finite) == len(values):
            means[draw] = fmean(finite)
    return means


def pair_differences(row: Row, reference: Row) -> dict[str, float]:
    """Name of a pack, or of a seed -> difference to the reference, of each pair of a comparison."""
    pairs = pair_up(row.values, reference.values)
    return dict(zip(pairs.names, pairs.differences, strict=True))
