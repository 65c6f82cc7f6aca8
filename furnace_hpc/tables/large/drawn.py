"""Choose the rows of a long table that charts, heat maps and figures draw.

A picture of thousands of rows cannot be read, and takes minutes to draw.
"""

from collections.abc import Sequence
from dataclasses import replace

from furnace_hpc.tables.large.once import once_per_table
from furnace_hpc.tables.table import Ablation

MAX_DRAWN = 50  # rows of a chart or figure
MAX_PLAIN = 500  # rows of a table that is written as HTML. Scripts draw a longer one


def is_long(ablation: Ablation) -> bool:
    """Whether the page draws only the rows of the table that are in view."""
    return len(ablation.rows) > MAX_PLAIN


@once_per_table
def drawn_rows(ablation: Ablation) -> Sequence[int]:
    """Numbers of the rows that are drawn: all, or the reference and the best of a long table.

    The best rows have the best means. Rows with equal means are taken in the grid's order, and rows
    without a mean come last.
    """
    numbers = range(len(ablation.rows))
    if len(numbers) <= MAX_DRAWN:
        return numbers
    sign = -1.0 if ablation.metric.direction == "max" else 1.0

    def place(number: int) -> tuple[bool, bool, float]:
        row = ablation.rows[number]
        return row is not ablation.reference, row.mean is None, sign * (row.mean or 0.0)

    return sorted(sorted(numbers, key=place)[:MAX_DRAWN])


@once_per_table
def drawn_table(ablation: Ablation) -> Ablation:
    """The table with the rows that are drawn. Their numbers do not change."""
    numbers = drawn_rows(ablation)
    if len(numbers) == len(ablation.rows):
        return ablation
    return replace(ablation, rows=tuple(ablation.rows[number] for number in numbers))


def drawn_sentence(ablation: Ablation) -> str:
    """Describe the rows of a picture: `50 of 1,999 rows: base and the best means of METRIC`.

    Empty if it has all.
    """
    number, total = len(drawn_rows(ablation)), len(ablation.rows)
    if number == total:
        return ""
    first = ""
    if ablation.reference is not None:
        first = f"{ablation.reference.variant} and "
    return f"{number} of {total:,} rows: {first}the best means of {ablation.metric.name}"
