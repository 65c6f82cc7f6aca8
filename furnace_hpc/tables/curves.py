"""Learning curves: what the runs of a row logged over training, as one curve with a band."""

from collections.abc import Iterator, Sequence
from math import isfinite
from typing import Any, NamedTuple

from furnace_hpc.runs.records import read_metrics
from furnace_hpc.tables.table import Ablation, Row

TRAIN_LOSS = "train/loss"
MAX_POINTS = 200  # of one curve; more than a screen or a column of paper shows


class Curve(NamedTuple):
    """One metric over training: mean, minimum and maximum over the row's seeds at each step."""

    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


def validation_metric(ablation: Ablation) -> str:
    """The table's metric as it was looked at while training."""
    return "val/" + ablation.grid.metric.partition("/")[2].partition("@")[0]


def curves_of(row: Row, metrics: Sequence[str]) -> Iterator[Curve]:
    """For each metric the curve of the row's finished runs, at the steps where all of them have a finite value."""
    records = [read_metrics(run.folder) for run in row.runs if run.result]
    for metric in metrics:
        yield _curve([_values(of_run, metric) for of_run in records])


def _curve(runs: list[dict[int, float]]) -> Curve:
    steps = sorted(set[int].intersection(*(set(run) for run in runs))) if runs else []
    if len(steps) > MAX_POINTS:
        last = len(steps) - 1
        steps = [steps[round(number * last / (MAX_POINTS - 1))] for number in range(MAX_POINTS)]
    at_step = [[run[step] for run in runs] for step in steps]
    return Curve(
        steps,
        [sum(values) / len(values) for values in at_step],
        [min(values) for values in at_step],
        [max(values) for values in at_step],
    )


def _values(records: Sequence[dict[str, Any]], metric: str) -> dict[int, float]:
    found = {record["step"]: record.get(metric) for record in records if record["kind"] == metric.partition("/")[0]}
    return {step: value for step, value in found.items() if isinstance(value, int | float) and isfinite(value)}
