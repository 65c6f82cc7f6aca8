"""Tables for notebooks, as HTML. All texts are escaped."""

from collections.abc import Iterable, Sequence

from furnace_hpc.tables.output.escape import html

LEFT = ' style="text-align:left"'
RIGHT = ' style="text-align:right"'


def html_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], right: frozenset[str] = frozenset()
) -> str:
    """Return a table of plain texts.

    Args:
        headings: names of the columns.
        rows: the texts of each row.
        right: columns that are aligned to the right.
    """
    align = [RIGHT if name in right else LEFT for name in headings]
    head = _cells("th", headings, align)
    body = "".join(f"<tr>{_cells('td', row, align)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def html_lines(lines: Iterable[str]) -> str:
    """Return a paragraph with these lines."""
    return f"<p>{'<br>'.join(map(html, lines))}</p>"


def _cells(tag: str, texts: Sequence[str], align: Sequence[str]) -> str:
    return "".join(
        f"<{tag}{style}>{html(text)}</{tag}>" for text, style in zip(texts, align, strict=True)
    )
