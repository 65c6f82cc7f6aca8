"""The first sections of the report: verdicts, the table with its notes, and the charts.

A section is a function that yields HTML, or nothing if there is no data. `report.py` lists them.
"""

from collections.abc import Iterator

from furnace_hpc.tables.output.captions import caption
from furnace_hpc.tables.output.cells import Cells, all_cells, headings, lettered
from furnace_hpc.tables.output.escape import html
from furnace_hpc.tables.output.render import WORDS
from furnace_hpc.tables.output.verdict import verdict_sentences
from furnace_hpc.tables.table import Ablation


def verdicts(ablation: Ablation) -> Iterator[str]:
    """The verdicts."""
    yield f"""<section aria-labelledby="verdict-title">
<h2 id="verdict-title">Verdict</h2>
{_verdicts(ablation)}
</section>"""


def table(ablation: Ablation) -> Iterator[str]:
    """The table with its explanation and notes."""
    explanation = html(" ".join(caption(ablation, headings(ablation))))
    yield f"""<section aria-labelledby="table-title">
<div class="bar">
<h2 id="table-title">Table</h2>
<label class="filter" hidden>Filter rows
<input type="search" id="filter" placeholder="variant or change" autocomplete="off" spellcheck="false"></label>
</div>
<p id="hint" class="hint" role="status" aria-live="polite"></p>
<div class="wide" tabindex="0" role="region" aria-labelledby="table-title">
<table id="table" class="main">
{_table(ablation)}
</table>
</div>
<details><summary>How to read this table</summary>
<p class="about">{explanation}</p>
</details>
{_notes(ablation)}
</section>"""


def charts(ablation: Ablation) -> Iterator[str]:
    """The place of the charts, which the scripts draw."""
    yield '<div class="charts" id="charts"></div>'


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
