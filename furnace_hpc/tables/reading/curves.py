"""Learning curves: the logged values of a row's runs, as one curve with a band."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from furnace_hpc.tables.large.once import once_per_table
from furnace_hpc.tables.table import Ablation

TRAIN_LOSS = "train/loss"
MAX_POINTS = 200  # of one curve; a screen or a column of paper shows no more


class Curve(NamedTuple):
    """One metric over training: mean, minimum and maximum over the row's seeds at each step."""

    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


def validation_metric(ablation: Ablation) -> str:
    """The table's metric on the validation split, as it is logged during training."""
    return "val/" + ablation.grid.metric.partition("/")[2].partition("@")[0]


@once_per_table
def logged_curves(ablation: Ablation) -> dict[str, list[Curve]]:
    """Metric -> curve of each row. Metrics that were not logged are left out."""
    metrics = (validation_metric(ablation), TRAIN_LOSS)
    rows = curves_of(ablation, metrics)
    found = {}
    for number, metric in enumerate(metrics):
        curves = [of_row[number] for of_row in rows]
        if any(curve.steps for curve in curves):
            found[metric] = curves
    return found


def curves_of(ablation: Ablation, metrics: Sequence[str]) -> list[list[Curve]]:
    """The curve of each row and metric, over steps at which all finished runs have a value."""
    import polars as pl

    known = {run_id for run_id, record in ablation.records.by_run.items() if record.result}
    rows = [(number, run) for number, row in enumerate(ablation.rows) for run in row.runs]
    runs = [(run.run_id, number) for number, run in rows if run.result and run.run_id in known]
    points = ablation.records.points([run_id for run_id, _ in runs], metrics)
    points = points.filter(pl.col("value").is_finite())
    row_of_run = pl.Series("row", [row for _, row in runs], dtype=pl.UInt32)
    points = points.with_columns(row_of_run.gather(points["place"]))
    at_step = points.group_by("row", "metric", "step", maintain_order=True).agg("value")
    # (row, metric) -> step -> values of the runs, in their order
    found: dict[tuple[int, str], dict[int, list[float]]] = {}
    for row, metric, step, values in at_step.iter_rows():
        found.setdefault((row, metric), {})[step] = values
    num_runs = Counter(row for _, row in runs)
    return [
        [_curve(found.get((row, metric), {}), num_runs[row]) for metric in metrics]
        for row in range(len(ablation.rows))
    ]


def _curve(values: dict[int, list[float]], num_runs: int) -> Curve:
    """The curve of one row. `values`: step -> values of the runs."""
    steps = sorted(step for step, of_runs in values.items() if len(of_runs) == num_runs)
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
