"""The first sections of the report: verdicts, the table with its notes, and the charts.

A section is a function that yields HTML, or nothing if there is no data. `report.py` lists them.
Text of the class `of-grid` is hidden while the page shows another metric than the grid's.
"""

from collections.abc import Iterator, Sequence

from furnace_hpc.tables.large.drawn import MAX_DRAWN, is_long
from furnace_hpc.tables.output.captions import caption, main_sentences
from furnace_hpc.tables.output.cells import FURTHER, Cells, all_cells, headings, lettered
from furnace_hpc.tables.output.escape import html
from furnace_hpc.tables.output.render import WORDS
from furnace_hpc.tables.output.verdict import effect_sentences, verdict_sentences
from furnace_hpc.tables.statistics.verdicts import Verdict
from furnace_hpc.tables.table import Ablation

MAX_SENTENCES = 8  # with more, undecided rows are folded
FIRST_ROWS = 100  # of a long table, as HTML for readers without JavaScript


def verdicts(ablation: Ablation) -> Iterator[str]:
    """The verdicts, and the place of the forest plot."""
    yield f"""<section class="first" aria-labelledby="verdict-title">
<div>
<h2 id="verdict-title">Verdict</h2>
<div class="of-grid">{_verdicts(ablation)}</div>
</div>
<div id="differences"></div>
</section>"""


def table(ablation: Ablation) -> Iterator[str]:
    """The table with its explanation and notes."""
    titles = headings(ablation)
    brief = html(" ".join(main_sentences(ablation)))
    explanation = html(" ".join(caption(ablation, titles)))
    yield f"""<section aria-labelledby="table-title">
<div class="bar">
<h2 id="table-title">Table</h2>
<div class="tools"><label class="filter" hidden id="metrics">Metric </label>
<label class="filter" hidden>Filter rows
<input type="search" id="filter" placeholder="variant or change"
autocomplete="off" spellcheck="false"></label>
</div></div>
<div class="bar"><p id="hint" class="hint" role="status" aria-live="polite"></p>
<p id="cue" class="hint"></p></div>
<div class="wide" tabindex="0" role="region" aria-labelledby="table-title">
<table id="table" class="main">
{_table(ablation)}
</table>
</div>
{_more_rows(ablation)}<p id="of-metric" class="about"></p>
<div class="of-grid">
<p class="about">{brief}</p>
<details><summary>How to read this table</summary>
<p class="about">{explanation}</p>
</details>
{_notes(ablation)}
</div>
<p id="copies" class="about copies" hidden>Copy the table as </p>
</section>"""


def charts(ablation: Ablation) -> Iterator[str]:
    """The place of the charts, which the scripts draw."""
    yield '<div class="charts" id="charts"></div>'


def _verdicts(ablation: Ablation) -> str:
    """One sentence per row, or why there is none. Many undecided rows are folded."""
    if ablation.why_no_verdict:
        effects = effect_sentences(ablation)
        return (_list(effects) if effects else "") + f"<p>{html(ablation.why_no_verdict)}</p>"
    found = [*verdict_sentences(ablation), *effect_sentences(ablation)]
    if not found:
        return "<p>There is one row, and nothing to compare.</p>"
    undecided = [item for item in found if item[0] == Verdict.UNDECIDED]
    if len(found) <= MAX_SENTENCES or len(undecided) < 2:
        return _list(found)
    decided = [item for item in found if item[0] != Verdict.UNDECIDED]
    shown = _list(decided) if decided else ""
    if len(decided) > MAX_DRAWN:
        shown = _folded(f"{len(decided):,} verdicts are decided", decided)
    return shown + _folded(f"{len(undecided)} rows are undecided", undecided)


def _folded(summary: str, found: Sequence[tuple[str, str]]) -> str:
    return f"<details><summary>{summary}</summary>{_list(found)}</details>"


def _list(found: Sequence[tuple[str, str]]) -> str:
    items = "".join(f'<li class="{word}">{html(sentence)}</li>' for word, sentence in found)
    return f'<ul class="verdicts">{items}</ul>'


def _table(ablation: Ablation) -> str:
    titles = headings(ablation)
    head = "".join(
        f'<th scope="col" data-column="{name}">{html(title)}</th>' for name, title in titles.items()
    )
    rows = all_cells(ablation)
    if is_long(ablation):
        rows = rows[:FIRST_ROWS]
    body = [
        f'<tr data-row="{number}">{"".join(_cell(cells, name) for name in titles)}</tr>'
        for number, cells in enumerate(rows)
    ]
    return "\n".join([f"<thead><tr>{head}</tr></thead>", "<tbody>", *body, "</tbody>"])


def _more_rows(ablation: Ablation) -> str:
    """A note on rows that the HTML lacks, which scripts replace. Empty if it has all rows."""
    if not is_long(ablation):
        return ""
    text = f"The first {FIRST_ROWS} of {len(ablation.rows):,} rows. JavaScript shows all of them"
    return f'<p id="more-rows" class="about">{text}. table.csv and table.md have all, too.</p>\n'


def _cell(cells: Cells, name: str) -> str:
    if name == "variant":
        marks = ""
        if cells.marks:
            marks = f"<sup>{html(cells.marks)}</sup>"
        return f'<th scope="row" class="text">{_breakable(cells.variant)}{marks}</th>'
    if name == "metric":
        mean = html(cells.mean)
        if cells.best:
            mean = f"<strong>{mean}</strong>"
        return f'<td class="metric">{mean} {_joined(cells.spread)}</td>'
    if name.startswith(FURTHER):
        further = cells.of_metric(name)
        mean = html(further.mean)
        if further.best:
            mean = f"<strong>{mean}</strong>"
        return f"<td>{mean} {_joined(further.spread)}</td>"
    if name == "difference":
        return f'<td class="difference">{_joined(cells.difference)}</td>'
    text = html(str(getattr(cells, name)))
    if name == "verdict":
        return f'<td class="text word">{text}</td>'
    if name in WORDS:
        return f'<td class="text {name}">{text}</td>'
    return f'<td class="{name}">{text}</td>'


def _joined(text: str) -> str:
    """Escaped text that is not broken within an interval, or between ± and its number."""
    return html(text).replace(", ", ",&nbsp;").replace("± ", "±&nbsp;")


def _breakable(name: str) -> str:
    """The name, which may be broken after _ and -."""
    text = html(name).replace("_", "_<wbr>").replace("-", "-<wbr>")
    return f"<span>{text}</span>"


def _notes(ablation: Ablation) -> str:
    items = ""
    for letter, note in lettered(ablation):
        mark = f"<sup>{letter}</sup> " * bool(letter)
        items += f"<li>{mark}{html(note.text)}</li>"
    if not items:
        return ""
    return f'<ul class="notes">{items}</ul>'
