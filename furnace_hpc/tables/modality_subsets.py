"""Scores of a run's end: with subsets of the modalities, and consistency of two modalities.

Their names have an `@`: `test/digit/accuracy@text+image`, `test/consistency/auc@text+image`.
"""

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
    by_column: bool = False  # columns are different metrics: each has its own range of shades

    def shades(self) -> list[list[float]]:
        """Shade of each cell, from 0 (lowest) to 1 (highest). 0 if all values are equal."""
        if self.by_column:
            columns = [_shades(column) for column in zip(*self.means, strict=True)]
            return [list(line) for line in zip(*columns, strict=True)]
        flat = _shades([value for line in self.means for value in line])
        width = len(self.columns)
        return [flat[at : at + width] for at in range(0, len(flat), width)]


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
        matrices.append(_matrix(ablation, title, names, columns, by_column=True))
    return matrices


def _matrix(
    ablation: Ablation,
    title: str,
    names: Sequence[str],
    columns: Sequence[str],
    by_column: bool = False,
) -> Matrix:
    values = [[_values(row, name) for name in names] for row in ablation.rows]
    return Matrix(
        title,
        tuple(columns),
        tuple(row.variant for row in ablation.rows),
        tuple(tuple(estimates.mean(cell) for cell in line) for line in values),
        tuple(tuple(estimates.sample_deviation(cell) for cell in line) for line in values),
        tuple(tuple(len(cell) for cell in line) for line in values),
        by_column,
    )


def _shades(values: Sequence[float | None]) -> list[float]:
    known = [value for value in values if value is not None] or [0.0]
    low, high = min(known), max(known)
    return [_shade(value, low, high) for value in values]


def _shade(value: float | None, low: float, high: float) -> float:
    if value is None or low == high:
        return 0.0
    return (value - low) / (high - low)


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
    for run in ablation.runs:
        if run.own_spec:
            modalities += run.own_spec.config.model.modalities
    place = {name: number for number, name in enumerate(dict.fromkeys(modalities))}

    def order(subset: str) -> tuple[int, list[int], str]:
        parts = subset.split("+")
        return len(parts), [place.get(part, len(place)) for part in parts], subset

    return order
