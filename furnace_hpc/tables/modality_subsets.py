"""Scores of a run's end: with subsets of the modalities, and consistency of two modalities.

Their names have an `@`: `test/digit/accuracy@text+image`, `test/consistency/auc@text+image`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite

from furnace_hpc.tables.statistics import estimates
from furnace_hpc.tables.table import Ablation, Row

# Consistency metrics in the order of the columns. If a result has none of them, all others are
# shown.
SHOWN = (
    *("cosine_matched", "cosine_mismatched", "auc"),
    *("recall_at_1_there", "recall_at_1_back", "recall_at_1_chance"),
    *("gap", "cka"),
)

# A difference to the reference is coloured if a t test of this level shows it. Its colour is
# strongest from this number of standard errors on.
LEVEL, STRONGEST = 0.99, 10.0


@dataclass(frozen=True)
class Matrix:
    """Mean and sample standard deviation of some metrics (columns) over the runs of each row.

    A cell is None if no run has the metric.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    means: tuple[tuple[float | None, ...], ...]
    deviations: tuple[tuple[float | None, ...], ...]
    counts: tuple[tuple[int, ...], ...]
    reference: int | None = None  # number of the row that the others are compared with

    def shades(self) -> list[list[float]]:
        """Shade of each cell: its difference to the reference in standard errors.

        0 if a t test at 1 % does not show the difference, else from -1 (STRONGEST below) to 1
        (STRONGEST above). The standard deviation is pooled over the rows of a column.
        """
        columns = zip(*self.means, strict=True)
        spreads, counts = zip(*self.deviations, strict=True), zip(*self.counts, strict=True)
        found = [self._shades(*column) for column in zip(columns, spreads, counts, strict=True)]
        return [list(line) for line in zip(*found, strict=True)]

    def _shades(
        self,
        means: Sequence[float | None],
        deviations: Sequence[float | None],
        counts: Sequence[int],
    ) -> list[float]:
        """The shades of one column."""
        start = None if self.reference is None else means[self.reference]
        groups = [(n, spread or 0.0) for n, spread in zip(counts, deviations, strict=True)]
        deviation, degrees = estimates.pool(groups) or (0.0, 0)
        if start is None or self.reference is None or not deviation:
            return [0.0] * len(means)
        n_reference = counts[self.reference]
        errors = [deviation * math.sqrt(1 / n + 1 / n_reference) if n else 0.0 for n in counts]
        distances = [
            (mean - start) / error if mean is not None else 0.0
            for mean, error in zip(means, errors, strict=True)
        ]
        return [_shade(distance, degrees) for distance in distances]


def modality_matrix(ablation: Ablation) -> Matrix | None:
    """The table's metric for each subset of the modalities. None if no result has one."""
    if ablation.source is not None:  # another tool's `recall@5` is one metric
        return None
    metric = ablation.grid.metric.partition("@")[0]
    names = [name for name in _names(ablation) if name.startswith(f"{metric}@")]
    if not names:
        return None
    order = _subset_order(ablation)
    names.sort(key=lambda name: order(_subset(name)))
    return _matrix(ablation, metric, names, [_subset(name) for name in names])


def consistency_blocks(ablation: Ablation) -> list[Matrix]:
    """One matrix per pair of modalities: how their embeddings relate."""
    if ablation.source is not None:
        return []
    prefix = f"{ablation.metric.split}/consistency/"
    found = [name.removeprefix(prefix) for name in _names(ablation) if name.startswith(prefix)]
    matrices = []
    for pair in sorted({_subset(name) for name in found}, key=_subset_order(ablation)):
        metrics = {name.partition("@")[0] for name in found if _subset(name) == pair}
        columns = [name for name in SHOWN if name in metrics] or sorted(metrics)
        suffix = f"@{pair}" if pair else ""
        names = [f"{prefix}{name}{suffix}" for name in columns]
        title = pair.replace("+", " and ")
        matrices.append(_matrix(ablation, title, names, columns))
    return matrices


def _matrix(
    ablation: Ablation,
    title: str,
    names: Sequence[str],
    columns: Sequence[str],
) -> Matrix:
    variants = tuple(row.variant for row in ablation.rows)
    reference = None
    if ablation.reference is not None:
        reference = variants.index(ablation.reference.variant)
    values = [[_values(row, name) for name in names] for row in ablation.rows]
    return Matrix(
        title,
        tuple(columns),
        variants,
        tuple(tuple(estimates.mean(cell) for cell in line) for line in values),
        tuple(tuple(estimates.sample_deviation(cell) for cell in line) for line in values),
        tuple(tuple(len(cell) for cell in line) for line in values),
        reference,
    )


def _shade(distance: float, degrees: int) -> float:
    """Shade of a difference, given in standard errors."""
    from scipy.special import stdtrit

    if abs(distance) < stdtrit(degrees, (1 + LEVEL) / 2):
        return 0.0
    return max(-1.0, min(1.0, distance / STRONGEST))


def _values(row: Row, name: str) -> list[float]:
    found = [run.result.metrics.get(name) for run in row.runs if run.result]
    return [value for value in found if value is not None and isfinite(value)]


def _names(ablation: Ablation) -> list[str]:
    return sorted({name for run in ablation.runs if run.result for name in run.result.metrics})


def _subset(name: str) -> str:
    """The part of a metric's name after the `@`, such as `text+image`."""
    return name.partition("@")[2]


def _subset_order(ablation: Ablation) -> Callable[[str], tuple[int, list[int], str]]:
    """Sort key of subsets: small ones first, modalities in the order of the configs."""
    modalities: list[str] = []
    for config in ablation.configs:
        modalities += config.model.modalities
    place = {name: number for number, name in enumerate(dict.fromkeys(modalities))}

    def order(subset: str) -> tuple[int, list[int], str]:
        parts = subset.split("+")
        return len(parts), [place.get(part, len(place)) for part in parts], subset

    return order
