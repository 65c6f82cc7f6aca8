"""Learning curves: what the runs of a row logged over training, as one curve with a band."""

from collections import Counter
from collections.abc import Sequence
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
    import polars as pl

    known = {run_id for run_id, record in ablation.records.by_run.items() if record.result}
    rows = [(number, run) for number, row in enumerate(ablation.rows) for run in row.runs]
    runs = [(run.run_id, number) for number, run in rows if run.result and run.run_id in known]
    points = ablation.records.points([run_id for run_id, _ in runs], metrics).filter(
        pl.col("value").is_finite()
    )
    rows_of_points = pl.Series("row", [row for _, row in runs], dtype=pl.UInt32).gather(
        points["place"]
    )
    at_step = (
        points.with_columns(rows_of_points)
        .group_by("row", "metric", "step", maintain_order=True)
        .agg("value")
    )
    # (row, metric) -> step -> the runs' values, in the order of the runs
    found: dict[tuple[int, str], dict[int, list[float]]] = {}
    for row, metric, step, values in at_step.iter_rows():
        found.setdefault((row, metric), {})[step] = values
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
