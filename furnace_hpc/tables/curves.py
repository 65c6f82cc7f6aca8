"""Learning curves: what the runs of a row logged over training, as one curve with a band."""

from collections import Counter
from collections.abc import Sequence
from math import isfinite
from typing import NamedTuple

from furnace_hpc.tables.table import Ablation

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


def curves_of(ablation: Ablation, metrics: Sequence[str]) -> list[list[Curve]]:
    """For each row and metric the curve of the row's finished runs, at the steps where all have a finite value."""
    known = {run_id for run_id, record in ablation.records.by_run.items() if record.result}
    rows = [(number, run) for number, row in enumerate(ablation.rows) for run in row.runs]
    runs = [(run.run_id, number) for number, run in rows if run.result and run.run_id in known]
    # (row, metric) -> step -> the runs' values, in the order of the runs
    found: dict[tuple[int, str], dict[int, list[float]]] = {}
    points = ablation.records.points([run_id for run_id, _ in runs], metrics)
    for place, metric, step, value in points.iter_rows():
        if isfinite(value):
            found.setdefault((runs[place][1], metric), {}).setdefault(step, []).append(value)
    number_of_runs = Counter(row for _, row in runs)
    return [
        [_curve(found.get((row, metric), {}), number_of_runs[row]) for metric in metrics]
        for row in range(len(ablation.rows))
    ]


def _curve(values: dict[int, list[float]], number_of_runs: int) -> Curve:
    steps = sorted(step for step, of_runs in values.items() if len(of_runs) == number_of_runs)
    if len(steps) > MAX_POINTS:
        last = len(steps) - 1
        steps = [steps[round(number * last / (MAX_POINTS - 1))] for number in range(MAX_POINTS)]
    at_step = [values[step] for step in steps]
    return Curve(
        steps,
        [sum(of_runs) / len(of_runs) for of_runs in at_step],
        [min(of_runs) for of_runs in at_step],
        [max(of_runs) for of_runs in at_step],
    )
