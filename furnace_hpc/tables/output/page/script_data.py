"""The data of the report's scripts, as JSON."""

import json
from collections.abc import Iterator
from math import isfinite
from typing import Any

from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.attempts import Attempt
from furnace_hpc.tables.metric import Scale, scale_of
from furnace_hpc.tables.output.cells import headings, row_scale
from furnace_hpc.tables.output.escape import json_value
from furnace_hpc.tables.reading.curves import Curve, logged_curves
from furnace_hpc.tables.table import Ablation, Row, Run
from furnace_hpc.tables.text import format_value


def script_data(ablation: Ablation) -> str:
    """The data as JSON that ends no <script>."""
    return _script_safe(_data(ablation))


def _script_safe(data: Any) -> str:
    """JSON that ends no <script>, with no control character, NaN or infinite number."""
    text = json.dumps(json_value(data), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _data(ablation: Ablation) -> dict[str, Any]:
    """The data of the scripts."""
    scale, titles = ablation.metric.scale, headings(ablation)
    return {
        "metric": ablation.metric.name,
        "unit": scale.unit,
        "factor": scale.factor,
        "reference": ablation.grid.reference,
        "rows": [_row(row, row_scale(ablation, row)) for row in ablation.rows],
        "curves": list(_curves(ablation)),
        "costs": {name: titles[name] for name in vars(ablation.rows[0].costs) if name in titles},
    }


def _row(row: Row, scale: Scale) -> dict[str, Any]:
    changes = [
        [change.key, format_value(change.reference), format_value(change.value)]
        for change in row.changes
    ]
    return {
        "variant": row.variant,
        "changes": changes,
        "values": list(row.values.values()),
        "mean": row.mean,
        "digits": scale.digits,
        "interval": row.interval,
        "costs": vars(row.costs),
        "runs": [_run(run) for run in row.runs],
    }


def _run(run: Run) -> dict[str, Any]:
    status, place = run.status, run.origin or _place(run.folder)
    value: float | str | None = run.value
    if run.value is not None and not isfinite(run.value):
        value = str(run.value)
    step, steps, commit, code = status.step, None, None, None
    if run.own_spec:
        steps = run.own_spec.config.steps
    if result := run.own_result:
        step, commit, code = result.selected_step, result.commit, result.code_hash
    return {
        "id": run.run_id,
        "seed": run.seed,
        "pack": run.draw.pack or None,
        "state": status.state.value,
        "reason": status.reason,
        "value": value,
        "step": step,
        "steps": steps,
        "commit": commit,
        "code": code,
        "job": status.job_id,
        "folder": place,
        "attempts": [_attempt(attempt, place) for attempt in run.record.ledger()],
    }


def _attempt(attempt: Attempt, place: str) -> list[Any]:
    """Number, job id, nodes, seconds, end reason, last step, log."""
    time_s = None
    if attempt.end_unix_s is not None:
        time_s = round(attempt.end_unix_s - attempt.start_unix_s, 1)
    ended = ": ".join(dict.fromkeys(text for text in (attempt.reason, attempt.error) if text))
    log = f"{place}/{RunFolder.log_name(attempt.attempt, 0)}"
    return [attempt.attempt, attempt.job_id, attempt.nodelist, time_s, ended, attempt.step, log]


def _place(folder: RunFolder) -> str:
    """The run's folder, relative to the parent of the runs root.

    So it does not depend on the machine.
    """
    return "/".join(folder.path.parts[-3:])


def _curves(ablation: Ablation) -> Iterator[dict[str, Any]]:
    for metric, curves in logged_curves(ablation).items():
        scale = scale_of(metric)
        yield {
            "metric": metric,
            "unit": scale.unit,
            "digits": scale.digits,
            "series": [_scaled(curve, scale.factor) for curve in curves],
        }


def _scaled(curve: Curve, factor: float) -> list[Any]:
    values = [[float(f"{factor * value:.6g}") for value in part] for part in curve[1:]]
    return [curve.steps, *values]
