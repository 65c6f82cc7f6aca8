"""Runs as lines of text that fit a terminal: nothing wraps, and the columns of the least worth go first."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from rich.text import Text

from furnace_hpc.monitor.columns import PICTURE, PLAIN, RUN, Column, bar, short_names
from furnace_hpc.monitor.grid_status import Line
from furnace_hpc.monitor.job_cache import Evidence
from furnace_hpc.runs.state import RunState

ORDER = (  # what moves, what needs somebody, what waits, what is over
    RunState.RUNNING,
    RunState.UNKNOWN,
    RunState.FAILED,
    RunState.INTERRUPTED,
    RunState.QUEUED,
    RunState.NEW,
    RunState.DONE,
)
GAP = 2


def picture(
    lines: Sequence[Line], evidence: Evidence, width: int, height: int = 10**6
) -> list[Text]:
    """The grid in at most `height` lines of `width` characters: progress, a line a run, the rest in one, the sum.

    Only runs that are shown have their loss curves read.
    """
    ordered = sorted(lines, key=lambda line: ORDER.index(line.status.state))
    room = max(1, height - 4)  # progress, headings, the rest, the sum
    shown, rest = (ordered, []) if len(ordered) <= room + 1 else (ordered[:room], ordered[room:])
    done, total = sum(line.status.step for line in lines), sum(line.steps for line in lines)
    words = f" {100 * done // max(1, total)} %   step {done:,} of {total:,}"
    head = bar(done, total, min(40, max(4, width - len(words))), "bold").append(words)
    names = short_names(lines)
    run = replace(RUN, cell=lambda line: Text(names[line.run_id]))
    body = table(shown, (run, *PICTURE[1:]), width)
    if rest:
        body.append(Text(f"{len(rest):,} more: {_counts(rest)}", "dim"))
    return [_cut(text, width) for text in (head, *body, Text(summary(lines, evidence)))]


def plain(lines: Sequence[Line], evidence: Evidence) -> list[str]:
    """The same for a file or a pipe: every run, and every word of it."""
    ordered = sorted(lines, key=lambda line: ORDER.index(line.status.state))
    padded = []
    for column in PLAIN:
        words = [column.name, *(column.cell(line).plain for line in ordered)]
        width = max(map(len, words))
        padded.append([word.rjust(width) if column.right else word.ljust(width) for word in words])
    rows = [(" " * GAP).join(row).rstrip() for row in zip(*padded, strict=True)]
    return [*rows, summary(lines, evidence)]


def summary(lines: Sequence[Line], evidence: Evidence) -> str:
    """How many runs are in which state, and whether Slurm is away."""
    words = [_counts(lines)]
    if evidence.failures:
        since = (
            f"{time.time() - evidence.answered_unix_s:,.0f} s ago"
            if evidence.answered_unix_s
            else "never"
        )
        words.append(f"{evidence.error} (last answer: {since})")
    return f"{len(lines):,} runs: {', '.join(words)}"


def table(
    lines: Sequence[Line], columns: Sequence[Column], width: int, headings: bool = True
) -> list[Text]:
    """A line of headings, and one a run."""
    cells = {column: [column.cell(line) for line in lines] for column in columns}
    wanted = {
        column: max((text.cell_len for text in cells[column]), default=0) for column in columns
    }
    kept = [column for column in columns if wanted[column]]  # an empty one is not worth its heading
    widths = _fit(
        {column: max(wanted[column], len(column.name) if headings else 0) for column in kept}, width
    )
    heads = [
        _row([(Text(column.name, "bold"), widths[column], column.right) for column in widths])
    ] * headings
    return heads + [
        _row([(cells[c][at], widths[c], c.right) for c in widths]) for at in range(len(lines))
    ]


def _fit(wanted: dict[Column, int], width: int) -> dict[Column, int]:
    """The columns that there is room for, and how wide each may be."""
    least = {column: min(full, column.least or full) for column, full in wanted.items()}
    while len(least) > 2 and _sum(least.values()) > width:
        del least[min(least, key=lambda column: column.worth)]
    for column in least:  # what is left over goes to those that were cut, from the first on
        least[column] = min(wanted[column], least[column] + max(0, width - _sum(least.values())))
    return least


def _sum(widths: Iterable[int]) -> int:
    return sum(width + GAP for width in widths) - GAP


def _row(cells: Sequence[tuple[Text, int, bool]]) -> Text:
    row, before = Text(), ""
    for text, width, right in cells:
        fitted = text if text.cell_len <= width else _cut(text.copy(), width)
        pad = " " * (width - fitted.cell_len)
        row.append(before + pad if right else before).append_text(fitted)
        before = " " * GAP if right else pad + " " * GAP
    return row


def _cut(text: Text, width: int) -> Text:
    text.truncate(width, overflow="ellipsis")
    text.rstrip()
    text.no_wrap = True
    return text


def _counts(lines: Iterable[Line]) -> str:
    counts = Counter(line.status.state for line in lines)
    return ", ".join(f"{counts[state]:,} {state.value}" for state in RunState if counts[state])
