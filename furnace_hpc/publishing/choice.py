"""Choose the run whose model is published, by validation alone."""

from math import isfinite
from statistics import fmean
from typing import NamedTuple

from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.parsing.plural import counted
from furnace_hpc.config.train_config import TrainConfig
from furnace_hpc.tables.table import Ablation, Row, Run


class Chosen(NamedTuple):
    """The published run, and why it was chosen."""

    row: Row
    run: Run
    metric: str
    """The validation metric that chose it."""
    value: float
    rule: str
    """The reason in one or two sentences."""


def choose(ablation: Ablation, variant: str | None) -> Chosen:
    """Return the run of a row with the best score on the validation split.

    Without `variant` it is the row with the best mean score on validation. Test scores have no
    influence. If scores are equal, the first seed is chosen.

    Raises:
        ConfigError: there is no such row, it has no finished run, or rows cannot be compared.
    """
    scored = {row.variant: scores_of(row) for row in ablation.rows}
    if variant is None:
        variant, why = _best_row(ablation, scored)
    else:
        if variant not in scored:
            raise ConfigError(f"unknown row --variant {variant!r}; {nearest(variant, scored)}")
        why = f"Row {variant} was chosen by name."
    scores = scored[variant]
    if not scores:
        raise ConfigError(
            f"row {variant!r} has no finished run with a finite score on validation. Wait for its "
            "runs, or choose another --variant"
        )
    row = next(row for row in ablation.rows if row.variant == variant)
    runs = [run for run in row.runs if run.run_id in scores]
    config = _config_of(runs[0])
    sign = -1 if config.selection_direction == "min" else 1
    best = max(runs, key=lambda run: sign * scores[run.run_id])
    metric = config.selection_metric
    rule = f"{why} Of its {counted(len(runs), 'finished run')}, this one has the best {metric}."
    return Chosen(row, best, metric, scores[best.run_id], rule)


def scores_of(row: Row) -> dict[str, float]:
    """Run id -> score on validation, of the finished runs with a finite one."""
    found = {}
    for run in row.runs:
        if run.own_result is None or run.own_spec is None:
            continue
        value = run.own_result.metrics.get(_config_of(run).selection_metric)
        if value is not None and isfinite(value):
            found[run.run_id] = value
    return found


def _best_row(ablation: Ablation, scored: dict[str, dict[str, float]]) -> tuple[str, str]:
    rows = [row for row in ablation.rows if scored[row.variant]]
    if not rows:
        raise ConfigError(
            f"grid {ablation.grid.name!r} has no finished run with a score on validation. Wait for "
            "its runs: `furnace status`"
        )
    if len(rows) == 1:
        return rows[0].variant, "It is the only row with finished runs."
    kinds = {
        (config.selection_metric, config.selection_direction, config.data.name)
        for config in (_config_of(run) for row in rows for run in row.runs)
    }
    metrics = {kind[:2] for kind in kinds}
    if len(metrics) > 1:
        names = ", ".join(sorted({metric for metric, _ in metrics}))
        raise ConfigError(
            f"rows are selected by different metrics ({names}) and cannot be compared. Choose a "
            "row with --variant"
        )
    [(metric, direction)] = metrics
    sign = -1 if direction == "min" else 1
    best = max(rows, key=lambda row: sign * fmean(scored[row.variant].values()))
    return best.variant, f"Of {len(rows)} rows, {best.variant} has the best mean {metric}."


def _config_of(run: Run) -> TrainConfig:
    assert run.own_spec is not None
    return run.own_spec.config
