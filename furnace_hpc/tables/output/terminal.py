"""A table on a terminal: no name and no number is cut; columns that do not fit go into a further block."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len

if TYPE_CHECKING:
    from rich.table import Table

BETWEEN, EDGES = 3, 4  # characters between two columns, and at both ends, of the SIMPLE box
# characters that are left beside the name, however long it is: a longer name is folded
LEAST_NUMBERS = 24


def blocks(
    titles: Mapping[str, str],
    rows: Sequence[Mapping[str, str]],
    bold: Sequence[bool],
    words: Collection[str],
    width: int,
) -> "list[Table]":
    """Tables of at most `width` characters, each with the first column.

    Args:
        titles: column -> its heading.
        rows: column -> text, for each row.
        bold: whether each row is bold.
        words: columns that are aligned left, others right.
        width: characters of the terminal.
    """
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    cells = {name: [title, *(row[name] for row in rows)] for name, title in titles.items()}
    full = {name: max(map(cell_len, texts)) for name, texts in cells.items()}
    # Words and headings may break between words; numbers with their intervals may not.
    parts = {
        name: " ".join(texts).split() if name in words else texts[1:]
        for name, texts in cells.items()
    }
    least = {name: max(map(cell_len, [*titles[name].split(), *parts[name]])) for name in titles}
    first, *others = titles
    least[first] = min(least[first], max(8, width - EDGES - LEAST_NUMBERS))
    found = []
    for names in _groups(first, others, least, width):
        widths = _fit({name: full[name] for name in names}, least, width)
        table = Table(box=SIMPLE)
        for name, given in widths.items():
            table.add_column(
                Text(titles[name]),
                justify="left" if name in words else "right",
                width=given,
                overflow="fold",
            )
        for row, is_bold in zip(rows, bold, strict=True):
            table.add_row(*[Text(row[name]) for name in names], style="bold" if is_bold else "")
        found.append(table)
    return found


def _groups(
    first: str, others: Sequence[str], least: Mapping[str, int], width: int
) -> list[list[str]]:
    """Columns of each block, as many as there is room for."""
    groups = [[first]]
    for name in others:
        if len(groups[-1]) > 1 and _total(least[column] for column in [*groups[-1], name]) > width:
            groups.append([first])
        groups[-1].append(name)
    return groups


def _fit(full: Mapping[str, int], least: Mapping[str, int], width: int) -> dict[str, int]:
    """Widths of a block's columns: the least, and what is left over from the first column on."""
    widths = {name: min(least[name], full[name]) for name in full}
    for name in widths:
        widths[name] = min(full[name], widths[name] + max(0, width - _total(widths.values())))
    return widths


def _total(widths: Iterable[int]) -> int:
    return EDGES - BETWEEN + sum(width + BETWEEN for width in widths)
