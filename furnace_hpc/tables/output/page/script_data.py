"""The data of the report's scripts, as JSON."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any
from urllib.parse import quote

from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.attempts import Attempt
from furnace_hpc.tables.large.drawn import drawn_rows, drawn_sentence, drawn_table, is_long
from furnace_hpc.tables.large.rendered import Kept, rendered_rows, signature
from furnace_hpc.tables.metric import scale_of
from furnace_hpc.tables.output.cells import (
    FURTHER,
    OPTIONAL,
    Cells,
    all_cells,
    all_headings,
    difference_scale,
    headings,
    optional_texts,
    row_scale,
)
from furnace_hpc.tables.output.escape import json_value
from furnace_hpc.tables.output.latex import to_latex
from furnace_hpc.tables.output.render import to_csv, to_markdown
from furnace_hpc.tables.reading.curves import Curve, logged_curves
from furnace_hpc.tables.table import Ablation, Row, Run, pair_differences
from furnace_hpc.tables.text import DASH, format_value
from furnace_hpc.tables.view import tables_of_other_metrics

# columns of text that depend on the metric
OF_THE_METRIC = ("difference", "verdict", "holm_p", "sign_flip_p", "effect", *OPTIONAL)


def script_data(ablation: Ablation, out: Path | None = None) -> str:
    """The data as JSON that ends no <script>.

    Args:
        ablation: the table.
        out: folder of the report. Logs that exist have links relative to it. If None, no links.
    """
    copies = {
        "LaTeX": to_latex(ablation),
        "CSV": to_csv(ablation),
        "Markdown": to_markdown(ablation),
    }
    text = _object(_data(ablation, out))
    # the copies have several lines, and are escaped already
    return f'{text[:-1]},"copies":{_dumps(copies)}}}'.replace("<", "\\u003c")


def _json_of(name: str, value: Any) -> str:
    """JSON of a part of the data. Each item of a list by itself, because most are plain."""
    if name == "rows":  # each is JSON already
        return f"[{','.join(value)}]"
    if name == "views":
        return f"[{','.join(map(_object, value))}]"
    if isinstance(value, list):
        return f"[{','.join(map(_json, value))}]"
    return _json(value)


def _object(parts: dict[str, Any]) -> str:
    texts = [f"{_json(name)}:{_json_of(name, value)}" for name, value in parts.items()]
    return f"{{{','.join(texts)}}}"


def _json(value: Any) -> str:
    """JSON with all texts on one line, and no control character, NaN or infinite number.

    Most values have nothing to escape. The JSON as a whole shows this, so no text is checked alone.
    """
    with suppress(ValueError):  # NaN or infinite
        text = _dumps(value)
        if text.isprintable() and not any(strange in text for strange in ("\\", "  ", '" ', ' "')):
            return text
    return _dumps(json_value(value))


_dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def _rows(ablation: Ablation, out: Path | None) -> list[str]:
    """The rows with their runs as JSON. Those that did not change are not rendered again."""
    folder = ablation.runs[0].folder.path.parent if ablation.runs else None
    whole = signature("report.html", str(folder), out and os.path.relpath(folder or out, out))
    rendered, records = rendered_rows(ablation), ablation.records
    return [
        rendered.text(whole, row, records, partial(_kept_row, row, out)) for row in ablation.rows
    ]


def _kept_row(row: Row, out: Path | None) -> Kept:
    """The row as JSON, with the paths of logs that exist and of those that do not."""
    existing, absent = list[str](), list[str]()
    if out is not None:
        for run in row.runs:
            for attempt in run.record.ledger():
                log = _log(run.folder, attempt)
                (existing if os.path.isfile(log) else absent).append(log)  # noqa: PTH113
    links = {log: quote(os.path.relpath(log, out)) for log in existing}
    return Kept(_json(_row(row, links)), existing, absent)


def _log(folder: RunFolder, attempt: Attempt) -> str:
    return f"{folder.path}/{RunFolder.log_name(attempt.attempt, 0)}"


def _data(ablation: Ablation, out: Path | None) -> dict[str, Any]:
    """The data of the scripts. The first view is the table itself."""
    titles = headings(ablation)
    tables = [ablation]
    if not ablation.why_no_verdict or (ablation.effects and ablation.effects.are_judged):
        tables += tables_of_other_metrics(ablation)
    data: dict[str, Any] = {
        "reference": ablation.grid.reference,
        "is_foreign": ablation.source is not None,
        "unit_of_pairs": ablation.unit,
        "rows": _rows(ablation, out),
        "views": [_view(table) for table in tables],
        "curves": list(_curves(drawn_table(ablation))),
        "costs": {name: titles[name] for name in vars(ablation.rows[0].costs) if name in titles},
    }
    if sentence := drawn_sentence(ablation):
        data |= {"drawn": list(drawn_rows(ablation)), "drawn_rows": sentence}
    if is_long(ablation):
        cells = all_cells(ablation)
        data["cells"] = [[_cell(of_row, name) for name in titles] for of_row in cells]
    return data


def _cell(cells: Cells, column: str) -> str | list[Any]:
    """A cell of a long table: its text, or its parts if a part is bold or raised."""
    if column == "variant":
        return [cells.variant, cells.marks]
    if column == "metric" or column.startswith(FURTHER):
        return list(cells.of_metric(column))
    return str(getattr(cells, column))


def _view(ablation: Ablation) -> dict[str, Any]:
    """What depends on the metric."""
    scale, titles = ablation.metric.scale, all_headings(ablation)
    sesoi, effect = None, ""
    if ablation.grid.sesoi is not None and not ablation.why_no_verdict:
        sesoi = ablation.grid.sesoi / scale.factor
        effect = scale.show_amount(ablation.grid.sesoi)
    cells = all_cells(ablation)
    return {
        "metric": ablation.metric.name,
        "unit": scale.unit,
        "difference_unit": scale.difference_unit,
        "factor": scale.factor,
        "better": ablation.metric.direction if ablation.has_direction else None,
        "sesoi": sesoi,
        "effect": effect,
        "why_no_verdict": ablation.why_no_verdict,
        "titles": {name: titles[name] for name in ("metric", "difference")},
        "values": [
            _values(ablation, row, of_row) for row, of_row in zip(ablation.rows, cells, strict=True)
        ],
    }


def _values(ablation: Ablation, row: Row, cells: Cells) -> dict[str, Any]:
    """The values of a row, and its cells that depend on the metric."""
    return {
        "draws": [[draw.pack, draw.seed] for draw in row.values],
        "values": list(row.values.values()),
        "mean": row.mean,
        "digits": row_scale(ablation, row).digits,
        "interval": row.interval,
        "of_runs": [_finite(run.value) for run in row.runs],
        "difference": _difference(ablation, row, cells),
        "cells": {name: getattr(cells, name) for name in OF_THE_METRIC}
        | {"metric": [cells.mean, cells.spread, cells.best]},
    }


def _difference(ablation: Ablation, row: Row, cells: Cells) -> dict[str, Any] | None:
    """The difference of a row to the reference."""
    if row.difference is None or ablation.reference is None:
        return None
    return {
        "mean": row.difference.mean,
        "interval": row.difference.shown,
        "digits": difference_scale(ablation, row).digits,
        "pairs": list(pair_differences(row, ablation.reference).items()),
        "facts": _pair_facts(ablation, row),
        "text": cells.difference,
        "verdict": row.verdict,
    }


def _pair_facts(ablation: Ablation, row: Row) -> list[tuple[str, str]]:
    """(title, text) of the statistics of a row's pairs that can be computed."""
    titles, texts = all_headings(ablation), optional_texts(ablation, row)
    names = ("hedges_g", "improvement", "correlation")
    return [(titles[name], texts[name]) for name in names if texts.get(name, DASH) != DASH]


def _row(row: Row, links: Mapping[str, str]) -> dict[str, Any]:
    """The row. `links`: path of a log -> its link."""
    changes = [
        [change.key, format_value(change.reference), format_value(change.value)]
        for change in row.changes
    ]
    return {
        "variant": row.variant,
        "changes": changes,
        "costs": row.costs.shown(),
        "ranges": row.costs.range_texts(),
        "runs": [_run(run, links) for run in row.runs],
    }


def _finite(value: float | None) -> float | str | None:
    """The value, as text if it is NaN or infinite."""
    if value is not None and not isfinite(value):
        return str(value)
    return value


def _run(run: Run, links: Mapping[str, str]) -> dict[str, Any]:
    status, place = run.status, run.origin or _place(run.folder)
    step, steps, commit, code = status.step, None, None, None
    if run.own_spec:
        steps = run.own_spec.config.steps or None  # 0 if it follows from epochs, not yet known
    if result := run.own_result:
        step, commit, code = result.selected_step, result.commit, result.code_hash
    return {
        "id": run.run_id,
        "seed": run.seed,
        "pack": run.draw.pack or None,
        "state": status.state.value,
        "reason": status.reason,
        "step": step,
        "steps": steps,
        "commit": commit,
        "code": code,
        "job": status.job_id,
        "folder": place,
        "attempts": [_attempt(attempt, run.folder, links) for attempt in run.record.ledger()],
    }


def _attempt(attempt: Attempt, folder: RunFolder, links: Mapping[str, str]) -> list[Any]:
    """Number, job id, nodes, seconds, end reason, last step, name of the log and its link."""
    time_s = None
    if attempt.end_unix_s is not None:
        time_s = round(attempt.end_unix_s - attempt.start_unix_s, 1)
    ended = ": ".join(dict.fromkeys(text for text in (attempt.reason, attempt.error) if text))
    name = RunFolder.log_name(attempt.attempt, 0)
    log = [f"{_place(folder)}/{name}", links.get(_log(folder, attempt))]
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
