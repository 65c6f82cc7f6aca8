"""A table for a terminal. No name and no number is cut.

Columns that do not fit go into another block.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len

if TYPE_CHECKING:
    from rich.table import Table

BETWEEN, EDGES = 3, 4  # characters between two columns, and at both ends, of rich's SIMPLE box
# characters beside the name, which is folded if it is too long
LEAST_NUMBERS = 24


def blocks(
    titles: Mapping[str, str],
    rows: Sequence[Mapping[str, str]],
    bold: Sequence[bool],
    words: Collection[str],
    width: int,
) -> "list[Table]":
    """Tables of at most `width` characters. Each begins with the first column.

    Args:
        titles: column -> its heading.
        rows: column -> text, for each row.
        bold: whether each row is bold.
        words: columns that are aligned left, others right.
        width: characters of the terminal.
    """
    cells = {name: [title, *(row[name] for row in rows)] for name, title in titles.items()}
    full = {name: max(map(cell_len, texts)) for name, texts in cells.items()}
    # Words and headings may break between words. Numbers with their intervals may not.
    least = {}
    for name, (title, *texts) in cells.items():
        if name in words:
            texts = " ".join(texts).split()
        least[name] = max(map(cell_len, [*title.split(), *texts]))
    first, *others = titles
    least[first] = min(least[first], max(8, width - EDGES - LEAST_NUMBERS))
    found = []
    for names in _groups(first, others, least, width):
        widths = _fit({name: full[name] for name in names}, least, width)
        found.append(_table(titles, rows, bold, words, widths))
    return found


def _table(
    titles: Mapping[str, str],
    rows: Sequence[Mapping[str, str]],
    bold: Sequence[bool],
    words: Collection[str],
    widths: Mapping[str, int],
) -> "Table":
    """One block with the columns of `widths`."""
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE)
    for name, width in widths.items():
        table.add_column(
            Text(titles[name]),
            justify="left" if name in words else "right",
            width=width,
            overflow="fold",
        )
    for row, is_bold in zip(rows, bold, strict=True):
        table.add_row(*[Text(row[name]) for name in widths], style="bold" * is_bold)
    return table


def _groups(
    first: str, others: Sequence[str], least: Mapping[str, int], width: int
) -> list[list[str]]:
    """The columns of each block, as many as fit."""
    groups = [[first]]
    for name in others:
        if len(groups[-1]) > 1 and _total(least[column] for column in [*groups[-1], name]) > width:
            groups.append([first])
        groups[-1].append(name)
    return groups


def _fit(full: Mapping[str, int], least: Mapping[str, int], width: int) -> dict[str, int]:
    """Widths of a block's columns. The first columns get the characters that remain."""
    widths = {name: min(least[name], full[name]) for name in full}
    for name in widths:
        widths[name] = min(full[name], widths[name] + max(0, width - _total(widths.values())))
    return widths


def _total(widths: Iterable[int]) -> int:
    return EDGES - BETWEEN + sum(width + BETWEEN for width in widths)
