"""The data of an ablation table. What is missing is None, never a number that stands for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records import RunResult
from furnace_hpc.runs.state import RunStatus
from furnace_hpc.spec.config import RunSpec
from furnace_hpc.spec.grid import Grid
from furnace_hpc.tables import statistics


@dataclass(frozen=True)
class Change:
    """One identity key in which a row's config differs from the reference's."""

    key: str
    reference: Any
    value: Any


@dataclass(frozen=True)
class Run:
    """One run with what is known of it. No result: it is missing, and `status` says why."""

    spec: RunSpec
    folder: RunFolder
    status: RunStatus
    result: RunResult | None
    value: float | None  # the table's metric; may be not finite

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.spec.config.seed


@dataclass(frozen=True)
class Costs:
    """What a row took. Times and rates are means over its results, in seconds and samples per second."""

    train_s: float | None
    samples_per_s: float | None
    attempts: int
    peak_memory_gib: float | None
    num_parameters: int | None


@dataclass(frozen=True)
class Row:
    """One variant: its runs in the grid's order of seeds, and its difference to the reference."""

    variant: str
    runs: tuple[Run, ...]
    changes: tuple[Change, ...]
    difference: statistics.Difference | None  # None for the reference, and without a common seed

    @property
    def values(self) -> dict[int, float]:
        """Seed -> value of the metric, of the runs that count."""
        return values_by_seed(self.runs)

    @property
    def n(self) -> int:
        """Number of runs in the mean."""
        return len(self.values)

    @property
    def n_expected(self) -> int:
        """Number of runs that the grid asks for."""
        return len(self.runs)

    @property
    def mean(self) -> float | None:
        """Mean of the metric."""
        return statistics.mean(list(self.values.values()))

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation (n-1) of the metric."""
        return statistics.sample_deviation(list(self.values.values()))

    @property
    def interval(self) -> statistics.Interval | None:
        """95 % t interval of the mean."""
        return statistics.t_interval(list(self.values.values()))

    @property
    def missing(self) -> list[Run]:
        """Runs without a result."""
        return [run for run in self.runs if run.result is None]

    @property
    def costs(self) -> Costs:
        """What the row took; attempts of missing runs are counted too."""
        results = [run.result for run in self.runs if run.result]
        sizes = {result.num_parameters for result in results}
        return Costs(
            train_s=statistics.mean([result.train_s for result in results]),
            samples_per_s=statistics.mean([result.samples_per_s for result in results]),
            attempts=sum(run.result.attempts if run.result else run.status.attempt for run in self.runs),
            peak_memory_gib=max((result.peak_memory_gib for result in results), default=None),
            num_parameters=sizes.pop() if len(sizes) == 1 else None,
        )


@dataclass(frozen=True)
class Note:
    """A footnote, and the rows that it speaks of (none: the whole table)."""

    text: str
    variants: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ablation:
    """The table of one grid."""

    grid: Grid
    rows: tuple[Row, ...]
    notes: tuple[Note, ...]

    @property
    def runs(self) -> list[Run]:
        """All runs, row by row."""
        return [run for row in self.rows for run in row.runs]

    @property
    def missing(self) -> list[Run]:
        """Runs without a result."""
        return [run for run in self.runs if run.result is None]


def values_by_seed(runs: Sequence[Run]) -> dict[int, float]:
    """Seed -> value of the metric, of the runs that count."""
    return {run.seed: run.value for run in runs if run.value is not None and isfinite(run.value)}
