"""The data of an ablation table. What is missing is None, never a number that stands for it.

Runs of one pack of the data share its samples, train and test split, and are no independent draws of data. So where a
grid has several packs, what intervals and tests count are packs: each stands for the mean of its seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from statistics import fmean
from typing import Any, NamedTuple

from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.result import RunResult
from furnace_hpc.runs.state import RunStatus
from furnace_hpc.tables.cache import Records
from furnace_hpc.tables.costs import Costs, Spent
from furnace_hpc.tables.run_files import Record
from furnace_hpc.tables.statistics import estimates


@dataclass(frozen=True)
class Change:
    """One identity key in which a row's config differs from the reference's."""

    key: str
    reference: Any
    value: Any


class Draw(NamedTuple):
    """What is drawn anew from run to run of a row; runs of two rows that have the same are a pair."""

    pack: str  # of the data; empty where the grid does not have several
    seed: int  # of the training


@dataclass(frozen=True)
class Run:
    """One run with what is known of it. No result: it is missing, and `status` says why."""

    spec: RunSpec
    folder: RunFolder
    status: RunStatus
    result: RunResult | None
    value: float | None  # the table's metric; may be not finite
    draw: Draw
    spent: Spent = Spent()
    record: Record = Record()  # what its files said

    @property
    def run_id(self) -> str:
        """Id of the run, which names its folder; `spec.run_id` hashes the config each time."""
        return self.folder.run_id

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.draw.seed


@dataclass(frozen=True)
class Row:
    """One variant: its runs in the grid's order of packs and seeds, and its difference to the reference."""

    variant: str
    runs: tuple[Run, ...]
    changes: tuple[Change, ...]
    difference: estimates.Difference | None  # None for the reference, and without a common seed

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
        """Number of draws that the grid asks for; each is one run, unless the row holds several variants."""
        return len({run.draw for run in self.runs})

    @cached_property
    def units(self) -> list[float]:
        """What is averaged, and counted by intervals and tests: the seeds' values, or the means of several packs."""
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
        """Sample standard deviation (n-1) of the packs' means; None where the grid does not have several."""
        return estimates.sample_deviation(self.units) if self.has_packs else None

    @property
    def has_packs(self) -> bool:
        """Whether the grid has several packs of the data."""
        return bool(self.runs[0].draw.pack)

    @cached_property
    def interval(self) -> estimates.Interval | None:
        """95 % t interval of the mean."""
        return estimates.t_interval(self.units)

    @cached_property
    def missing(self) -> list[Run]:
        """Runs without a result."""
        return [run for run in self.runs if run.result is None]

    @cached_property
    def costs(self) -> Costs:
        """What the row took; attempts of missing runs are counted too."""
        results = [run.result for run in self.runs if run.result]
        sizes = {result.num_parameters for result in results}
        return Costs(
            train_s=estimates.mean([result.train_s for result in results]),
            samples_per_s=estimates.mean([result.samples_per_s for result in results]),
            attempts=sum(
                run.result.attempts if run.result else run.status.attempt for run in self.runs
            ),
            peak_memory_gib=max((result.peak_memory_gib for result in results), default=None),
            num_parameters=sizes.pop() if len(sizes) == 1 else None,
            wall_s=estimates.mean([result.wall_s for result in results]),
            samples_per_s_each=estimates.mean(
                [result.samples_per_s / result.world_size for result in results]
            ),
            lost_steps=sum(run.spent.lost_steps for run in self.runs),
            hours=sum(run.spent.hours for run in self.runs) or None,
            goodput=estimates.mean(
                [run.spent.goodput for run in self.runs if run.spent.goodput is not None]
            ),
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
    records: Records  # what the files of all runs in the grid's folder said

    @cached_property
    def runs(self) -> list[Run]:
        """All runs, row by row."""
        return [run for row in self.rows for run in row.runs]

    @cached_property
    def missing(self) -> list[Run]:
        """Runs without a result."""
        return [run for run in self.runs if run.result is None]

    @cached_property
    def reference(self) -> Row | None:
        """The row that differences are taken to."""
        return next((row for row in self.rows if row.variant == self.grid.reference), None)

    @property
    def packs(self) -> tuple[str, ...]:
        """The grid's packs of the data; empty where it does not have several."""
        return several_packs(self.grid)

    @cached_property
    def on_gpus(self) -> bool:
        """Whether any attempt was given a GPU."""
        return any(run.spent.gpus for run in self.runs)

    @cached_property
    def stronger_sanity(self) -> tuple[str, ...]:
        """Sanity rows whose mean is better than the reference's: what a plain alternative reaches, it should too."""
        if self.reference is None or self.reference.mean is None:
            return ()
        sign, bar = (1 if self.grid.direction == "max" else -1), self.reference.mean
        rows = [
            row for row in self.rows if row.variant in self.grid.sanity and row.mean is not None
        ]
        return tuple(
            row.variant for row in rows if row.mean is not None and sign * (row.mean - bar) > 0
        )


def several_packs(grid: Grid) -> tuple[str, ...]:
    """The grid's packs of the data; empty where it does not have several."""
    return grid.packs if len(grid.packs) > 1 else ()


def values_by_draw(runs: Sequence[Run]) -> dict[Draw, float]:
    """Draw -> value of the metric; the mean, where several runs have the draw. A draw counts when all of them do."""
    found: dict[Draw, list[float | None]] = {}
    for run in runs:
        found.setdefault(run.draw, []).append(run.value)
    finite = {
        draw: [v for v in values if v is not None and isfinite(v)] for draw, values in found.items()
    }
    return {
        draw: fmean(values) for draw, values in finite.items() if len(values) == len(found[draw])
    }


def by_pack(values: Mapping[Draw, float]) -> list[list[float]]:
    """The values of each pack, in their order."""
    packs: dict[str, list[float]] = {}
    for draw, value in values.items():
        packs.setdefault(draw.pack, []).append(value)
    return list(packs.values())


def units_of(values: Mapping[Draw, float]) -> list[float]:
    """Draws of their own: the values as they are, or the mean of each pack where there are several."""
    if any(draw.pack for draw in values):
        return [fmean(of_pack) for of_pack in by_pack(values)]
    return list(values.values())
