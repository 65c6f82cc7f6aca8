"""Print runs as lines that fit a terminal. Nothing wraps: columns of low priority are left out."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from rich.text import Text

from furnace_hpc.config.parsing.plural import counted
from furnace_hpc.config.parsing.run_names import TRIAL
from furnace_hpc.monitor.columns import PICTURE, PLAIN, RUN, StatusColumn, bar, short_names
from furnace_hpc.monitor.grid_status import StatusLine
from furnace_hpc.monitor.job_cache import JobCache
from furnace_hpc.runs.state import RunState

ORDER = (
    RunState.RUNNING,
    # these need the user
    RunState.UNKNOWN,
    RunState.FAILED,
    RunState.INTERRUPTED,
    RunState.QUEUED,
    RunState.NEW,
    RunState.DONE,
)
GAP = 2
OTHER_LINES = 4  # progress bar, headings, number of runs not shown, summary


def picture(
    lines: Sequence[StatusLine], job_cache: JobCache, width: int, height: int = 10**6
) -> list[Text]:
    """Draw the grid in at most `height` lines of `width` characters.

    The lines are a progress bar, headings, one line per run, the number of runs that are not shown,
    and a summary. Only the loss curves of shown runs are read.
    """
    shown = in_order(lines)
    rest: list[StatusLine] = []
    most = max(1, height - OTHER_LINES)
    if len(shown) > most + 1:
        shown, rest = shown[:most], shown[most:]
    names = short_names(lines)
    run = replace(RUN, cell=lambda line: Text(names[line.run_id]))
    drawn = [_progress(lines, width), *table(shown, (run, *PICTURE[1:]), width)]
    if rest:
        drawn.append(Text(f"{len(rest):,} more: {_counts(rest)}", "dim"))
    drawn.append(Text(summary(lines, job_cache)))
    return [_cut(text, width) for text in drawn]


def _progress(lines: Sequence[StatusLine], width: int) -> Text:
    done, total = sum(line.status.step for line in lines), sum(line.steps for line in lines)
    text = f" {100 * done // max(1, total)} %   step {done:,} of {total:,}"
    return bar(done, total, min(40, max(4, width - len(text))), "bold").append(text)


def plain(lines: Sequence[StatusLine], job_cache: JobCache) -> list[str]:
    """The lines for a file or a pipe: all runs, and each text in full."""
    columns = []
    for column, cells in plain_cells(in_order(lines)).items():
        texts = [column.name, *cells]
        width = max(map(len, texts))
        align = str.rjust if column.right else str.ljust
        columns.append([align(text, width) for text in texts])
    rows = [(" " * GAP).join(row).rstrip() for row in zip(*columns, strict=True)]
    return [*rows, summary(lines, job_cache)]


def plain_cells(lines: Sequence[StatusLine]) -> dict[StatusColumn, list[str]]:
    """Map each column for a file to its texts. Columns without values are left out."""
    cells = {column: [str(column.cell(line)) for line in lines] for column in PLAIN}
    return {column: texts for column, texts in cells.items() if any(texts) or not column.if_known}


def summary(lines: Sequence[StatusLine], job_cache: JobCache) -> str:
    """Count the runs in each state, and report if Slurm does not answer."""
    text = f"{counted(len(lines), 'run')}: {_counts(lines)}{_tuning(lines)}{_stuck(lines)}"
    if not job_cache.failures:
        return text
    since = "never"
    if job_cache.answered_unix_s:
        since = f"{time.time() - job_cache.answered_unix_s:,.0f} s ago"
    hint = job_cache.error.removeprefix(job_cache.problem)
    return f"{text}. {job_cache.problem} (last answer: {since}){hint}"


def _stuck(lines: Sequence[StatusLine]) -> str:
    """How many runs do not start without an action of the user."""
    count = sum(line.waiting is not None and line.waiting.needs_action for line in lines)
    if not count:
        return ""
    return f"; {counted(count, 'run')} cannot start without an action of yours: see the reason"


def _tuning(lines: Sequence[StatusLine]) -> str:
    """The progress of trials, if the grid is tuned."""
    trials = [line for line in lines if TRIAL in line.run_id]
    if not trials:
        return ""
    ended = sum(line.status.state in (RunState.DONE, RunState.FAILED) for line in trials)
    return f"; tuning {ended}/{len(trials)}"


def table(
    lines: Sequence[StatusLine], columns: Sequence[StatusColumn], width: int, headings: bool = True
) -> list[Text]:
    """Draw one line of headings and one line per run. Empty columns are left out."""
    cells = {column: [_text(column.cell(line)) for line in lines] for column in columns}
    wanted: dict[StatusColumn, int] = {}
    for column in columns:
        longest = max((text.cell_len for text in cells[column]), default=0)
        if longest:
            wanted[column] = max(longest, len(column.name) * headings)
    widths = _fit(wanted, width)
    rows = [[cells[column][number] for column in widths] for number in range(len(lines))]
    if headings:
        rows.insert(0, [Text(column.name, "bold") for column in widths])
    return [_row(row, widths) for row in rows]


def _text(cell: Text | str) -> Text:
    return Text(cell) if isinstance(cell, str) else cell


def _fit(wanted: dict[StatusColumn, int], width: int) -> dict[StatusColumn, int]:
    """Choose the columns that fit, and their widths."""
    widths = {column: min(full, column.min_width or full) for column, full in wanted.items()}
    while len(widths) > 2 and _sum(widths.values()) > width:
        del widths[min(widths, key=lambda column: column.priority)]
    for column in widths:  # spare width goes to the columns that were cut, from left to right
        spare = max(0, width - _sum(widths.values()))
        widths[column] = min(wanted[column], widths[column] + spare)
    return widths


def _sum(widths: Iterable[int]) -> int:
    return sum(width + GAP for width in widths) - GAP


def _row(cells: Sequence[Text], widths: dict[StatusColumn, int]) -> Text:
    row, before = Text(), ""
    for text, (column, width) in zip(cells, widths.items(), strict=True):
        if text.cell_len > width:
            text = _cut(text.copy(), width)
        pad = " " * (width - text.cell_len)
        if column.right:
            row.append(before + pad).append_text(text)
            before = " " * GAP
        else:
            row.append(before).append_text(text)
            before = pad + " " * GAP
    return row


def _cut(text: Text, width: int) -> Text:
    text.truncate(width, overflow="ellipsis")
    text.rstrip()
    text.no_wrap = True
    return text


def in_order(lines: Iterable[StatusLine]) -> list[StatusLine]:
    """Sort runs by state: running ones, those that need the user, and done ones last."""
    return sorted(lines, key=lambda line: ORDER.index(line.status.state))


def _counts(lines: Iterable[StatusLine]) -> str:
    counts = Counter(line.status.state for line in lines)
    return ", ".join(f"{counts[state]:,} {state.value}" for state in RunState if counts[state])
