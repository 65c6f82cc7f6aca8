"""`report.html`: the table and its figures as one page that needs nothing else. The same runs give the same bytes.

The table stands in the page as it is read without scripts; `page/*.js` sorts, filters, draws and opens the runs.
"""

import json
from collections.abc import Iterable
from importlib.resources import files
from math import isfinite
from string import Template
from typing import Any

from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.attempts import Attempt
from furnace_hpc.tables.curves import TRAIN_LOSS, Curve, curves_of, validation_metric
from furnace_hpc.tables.output.captions import caption
from furnace_hpc.tables.output.cells import Cells, all_cells, headings, lettered, scale_of, word
from furnace_hpc.tables.output.escape import html, json_value
from furnace_hpc.tables.output.heatmaps import consistency, modalities
from furnace_hpc.tables.output.render import WORDS
from furnace_hpc.tables.table import Ablation, Row, Run

PAGE = files("furnace_hpc.tables.output") / "page"
SCRIPTS = ("charts.js", "curves.js", "report.js")


def to_html(ablation: Ablation) -> str:
    """The whole report."""
    grid = ablation.grid
    missing = len(ablation.missing)
    state = (
        f"{missing} of {len(ablation.runs)} runs missing"
        if missing
        else f"all {len(ablation.runs)} runs done"
    )
    page = Template((PAGE / "report.html").read_text(encoding="utf-8"))
    return page.substitute(
        name=html(grid.name),
        description=html(grid.description) or html(grid.metric),
        state=state,
        tone="bad" if missing else "good",
        seeds=html(", ".join(map(str, grid.seeds))),
        packs=f" · packs {html(', '.join(ablation.packs))}" if ablation.packs else "",
        metric=html(grid.metric),
        reference=html(grid.reference),
        table=_table(ablation),
        caption=html(" ".join(caption(ablation, headings(ablation)))),
        notes=_notes(ablation),
        matrices="\n".join([*modalities(ablation), *consistency(ablation)]),
        style=(PAGE / "report.css").read_text(encoding="utf-8"),
        data=_script_safe(_data(ablation)),
        script="\n".join((PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS),
    )


def _table(ablation: Ablation) -> str:
    titles = headings(ablation)
    head = "".join(
        f'<th scope="col" data-column="{name}">{html(title)}</th>' for name, title in titles.items()
    )
    body = [
        f'<tr data-row="{number}">{"".join(_cell(cells, name) for name in titles)}</tr>'
        for number, cells in enumerate(all_cells(ablation))
    ]
    return "\n".join([f"<thead><tr>{head}</tr></thead>", "<tbody>", *body, "</tbody>"])


def _cell(cells: Cells, name: str) -> str:
    kind = ' class="text"' if name in WORDS else ""
    if name == "variant":
        marks = f"<sup>{html(cells.marks)}</sup>" if cells.marks else ""
        return f'<th scope="row" class="text">{html(cells.variant)}{marks}</th>'
    if name == "metric":
        mean = f"<strong>{html(cells.mean)}</strong>" if cells.best else html(cells.mean)
        return f"<td>{mean} {html(cells.spread)}</td>"
    return f"<td{kind}>{html(str(getattr(cells, name)))}</td>"


def _notes(ablation: Ablation) -> str:
    notes = [
        f"<li>{f'<sup>{letter}</sup> ' if letter else ''}{html(text)}</li>"
        for letter, text, _ in lettered(ablation)
    ]
    return f'<ul class="notes">{"".join(notes)}</ul>' if notes else ""


def _script_safe(data: Any) -> str:
    """JSON that ends no <script>, and holds no control character and no number that JSON lacks."""
    text = json.dumps(json_value(data), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _data(ablation: Ablation) -> dict[str, Any]:
    scale, grid = scale_of(ablation.grid.metric), ablation.grid
    titles = headings(ablation)
    return {
        "metric": grid.metric,
        "unit": scale.unit,
        "factor": scale.factor,
        "digits": scale.digits,
        "reference": grid.reference,
        "rows": [_row(row) for row in ablation.rows],
        "curves": list(_curves(ablation)),
        "costs": {name: titles[name] for name in vars(ablation.rows[0].costs) if name in titles},
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "variant": row.variant,
        "changes": [
            [change.key, word(change.reference), word(change.value)] for change in row.changes
        ],
        "values": list(row.values.values()),
        "mean": row.mean,
        "interval": row.interval,
        "costs": vars(row.costs),
        "runs": [_run(run) for run in row.runs],
    }


def _run(run: Run) -> dict[str, Any]:
    result, status = run.result, run.status
    return {
        "id": run.run_id,
        "seed": run.seed,
        "pack": run.draw.pack or None,
        "state": status.state.value,
        "reason": status.reason,
        "value": run.value if run.value is None or isfinite(run.value) else str(run.value),
        "step": result.selected_step if result else status.step,
        "steps": run.spec.config.steps,
        "commit": result.commit if result else None,
        "code": result.code_hash if result else None,
        "job": status.job_id,
        "folder": (place := _place(run.folder)),
        "attempts": [_attempt(attempt, place) for attempt in run.record.ledger()],
    }


def _attempt(attempt: Attempt, place: str) -> list[Any]:
    """Number, job id, nodes, seconds, why it ended, last step, log."""
    took_s = (
        None if attempt.end_unix_s is None else round(attempt.end_unix_s - attempt.start_unix_s, 1)
    )
    ended = ": ".join(dict.fromkeys(text for text in (attempt.reason, attempt.error) if text))
    log = f"{place}/{RunFolder.log_name(attempt.attempt, 0)}"
    return [attempt.attempt, attempt.job_id, attempt.nodelist, took_s, ended, attempt.step, log]


def _place(folder: RunFolder) -> str:
    """The run's folder as seen from where the runs' root lies: the same wherever that is."""
    return "/".join(folder.path.parts[-3:])


def _curves(ablation: Ablation) -> Iterable[dict[str, Any]]:
    metrics = (validation_metric(ablation), TRAIN_LOSS)
    rows = curves_of(ablation, metrics)
    for number, metric in enumerate(metrics):
        series = [curves[number] for curves in rows]
        if any(curve.steps for curve in series):
            scale = scale_of(metric)
            yield {
                "metric": metric,
                "unit": scale.unit,
                "digits": scale.digits,
                "series": [_scaled(curve, scale.factor) for curve in series],
            }


def _scaled(curve: Curve, factor: float) -> list[Any]:
    return [
        curve.steps,
        *([float(f"{factor * value:.6g}") for value in part] for part in curve[1:]),
    ]
