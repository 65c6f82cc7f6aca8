"""What is measured once, at a run's end: the score with a part of the modalities, and the consistency block.

Both stand in the results under names with `@`: `test/digit/accuracy@text+image`, `test/consistency/auc@text+image`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite

from furnace_hpc.tables.statistics import estimates
from furnace_hpc.tables.table import Ablation, Row

# Read first, in this order; a result may have more.
SHOWN = (
    *("cosine_matched", "cosine_mismatched", "auc"),
    *("recall_at_1_there", "recall_at_1_back", "recall_at_1_chance"),
    *("gap", "cka"),
)


@dataclass(frozen=True)
class Matrix:
    """Mean and sample deviation over the runs of each row, of one measure a column; None where no run has it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    means: tuple[tuple[float | None, ...], ...]
    deviations: tuple[tuple[float | None, ...], ...]
    counts: tuple[tuple[int, ...], ...]
    by_column: bool = False  # columns are measures of their own, and are shaded each for itself

    def shades(self) -> list[list[float]]:
        """How deep each cell is coloured, from 0 (lowest) to 1 (highest); 0 where there is nothing to tell apart."""
        groups = (
            list(zip(*self.means, strict=True))
            if self.by_column
            else [[v for line in self.means for v in line]]
        )
        ranges = [
            (min(known), max(known))
            for group in groups
            if (known := [v for v in group if v is not None] or [0])
        ]
        return [
            [_share(value, *ranges[at if self.by_column else 0]) for at, value in enumerate(line)]
            for line in self.means
        ]


def modality_matrix(ablation: Ablation) -> Matrix | None:
    """The table's metric where the network sees these modalities alone; None when no result has it."""
    metric = ablation.grid.metric.partition("@")[0]
    names = [name for name in _names(ablation) if name.startswith(f"{metric}@")]
    place = _place_of(ablation)
    names.sort(key=lambda name: place(_at(name)))
    return _matrix(ablation, metric, names, [_at(name) for name in names]) if names else None


def consistency_blocks(ablation: Ablation) -> list[Matrix]:
    """A matrix for each pair of modalities: what their embeddings have to do with each other."""
    prefix = f"{ablation.grid.metric.partition('/')[0]}/consistency/"
    found = [name.removeprefix(prefix) for name in _names(ablation) if name.startswith(prefix)]
    matrices = []
    for pair in sorted({_at(name) for name in found}, key=_place_of(ablation)):
        words = {name.partition("@")[0] for name in found if _at(name) == pair}
        columns = [word for word in SHOWN if word in words] or sorted(words)
        names = [f"{prefix}{word}{'@' * bool(pair)}{pair}" for word in columns]
        matrices.append(
            _matrix(ablation, pair.replace("+", " and "), names, columns, by_column=True)
        )
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


def _share(value: float | None, low: float, high: float) -> float:
    return 0.0 if value is None or low == high else (value - low) / (high - low)


def _values(row: Row, name: str) -> list[float]:
    found = [run.result.metrics.get(name) for run in row.runs if run.result]
    return [value for value in found if value is not None and isfinite(value)]


def _names(ablation: Ablation) -> list[str]:
    return sorted({name for run in ablation.runs if run.result for name in run.result.metrics})


def _at(name: str) -> str:
    return name.partition("@")[2]


def _place_of(ablation: Ablation) -> Callable[[str], tuple[int, list[int], str]]:
    """What subsets (`text+image`) are sorted by: small ones first, modalities in the order of the configs."""
    order = list(
        dict.fromkeys(name for run in ablation.runs for name in run.spec.config.model.modalities)
    )

    def place(subset: str) -> tuple[int, list[int], str]:
        parts = subset.split("+")
        return (
            len(parts),
            [order.index(part) if part in order else len(order) for part in parts],
            subset,
        )

    return place
