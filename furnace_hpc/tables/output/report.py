"""`report.html`: the table and its figures as one page that loads nothing.

The same runs give the same bytes.

The table can be read without scripts. `page/*.js` sort and filter it, draw the figures, and show
the runs.
"""

import json
from collections.abc import Iterator
from importlib.resources import files
from math import isfinite
from string import Template
from typing import Any

from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.attempts import Attempt
from furnace_hpc.tables.metric import Scale, scale_of
from furnace_hpc.tables.output.captions import caption
from furnace_hpc.tables.output.cells import (
    Cells,
    all_cells,
    headings,
    lettered,
    pair_facts,
    row_scale,
)
from furnace_hpc.tables.output.effects import effects_html
from furnace_hpc.tables.output.escape import html, json_value
from furnace_hpc.tables.output.heatmaps import consistency, modalities
from furnace_hpc.tables.output.render import WORDS
from furnace_hpc.tables.output.tuning import tuning_section
from furnace_hpc.tables.output.verdict import verdict_sentences
from furnace_hpc.tables.reading.curves import Curve, logged_curves
from furnace_hpc.tables.table import Ablation, Row, Run
from furnace_hpc.tables.text import format_value

PAGE = files("furnace_hpc.tables.output") / "page"
SCRIPTS = ("charts.js", "curves.js", "report.js")


def to_html(ablation: Ablation) -> str:
    """The whole report."""
    grid = ablation.grid
    state, tone = f"all {len(ablation.runs)} runs done", "good"
    if ablation.missing:
        state, tone = f"{len(ablation.missing)} of {len(ablation.runs)} runs missing", "bad"
    packs = ""
    if ablation.packs:
        packs = f" · packs {html(', '.join(ablation.packs))}"
    page = Template((PAGE / "report.html").read_text(encoding="utf-8"))
    return page.substitute(
        name=html(grid.name),
        description=html(grid.description) or html(grid.metric),
        state=state,
        tone=tone,
        seeds=html(", ".join(map(str, grid.seeds))),
        packs=packs,
        metric=html(grid.metric),
        reference=html(grid.reference),
        verdicts=_verdicts(ablation),
        table=_table(ablation),
        caption=html(" ".join(caption(ablation, headings(ablation)))),
        notes=_notes(ablation),
        effects="\n".join(effects_html(ablation)),
        matrices="\n".join(
            [*tuning_section(ablation), *modalities(ablation), *consistency(ablation)]
        ),
        style=(PAGE / "report.css").read_text(encoding="utf-8"),
        data=_script_safe(_data(ablation)),
        script="\n".join((PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS),
    )


def _verdicts(ablation: Ablation) -> str:
    """One sentence per row, or why there is none."""
    if ablation.why_no_verdict:
        return f"<p>{html(ablation.why_no_verdict)}</p>"
    items = "".join(
        f'<li class="{word}">{html(sentence)}</li>'
        for word, sentence in verdict_sentences(ablation)
    )
    if not items:
        return "<p>There is one row, and nothing to compare.</p>"
    return f'<ul class="verdicts">{items}</ul>'


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
    if name == "variant":
        marks = ""
        if cells.marks:
            marks = f"<sup>{html(cells.marks)}</sup>"
        return f'<th scope="row" class="text">{html(cells.variant)}{marks}</th>'
    if name == "metric":
        mean = html(cells.mean)
        if cells.best:
            mean = f"<strong>{mean}</strong>"
        return f"<td>{mean} {html(cells.spread)}</td>"
    text = html(str(getattr(cells, name)))
    if name == "verdict":
        return f'<td class="text word">{text}</td>'
    if name in WORDS:
        return f'<td class="text">{text}</td>'
    return f"<td>{text}</td>"


def _notes(ablation: Ablation) -> str:
    items = ""
    for letter, note in lettered(ablation):
        mark = f"<sup>{letter}</sup> " * bool(letter)
        items += f"<li>{mark}{html(note.text)}</li>"
    if not items:
        return ""
    return f'<ul class="notes">{items}</ul>'


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
        "rows": [
            _row(row, row_scale(ablation, row)) | {"pairs": pair_facts(ablation, row)}
            for row in ablation.rows
        ],
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
