"""Guess which columns are numbers that a model can use."""

import re

import polars as pl

from furnace_hpc.config.parsing.numbers import MISSING
from furnace_hpc.data.table.cells import as_number

MOST_NUMBERS = 50  # columns that a guess takes
LEAST_KNOWN = 0.5  # share of a column's cells that are not empty
_NO_MEASURE = re.compile(r"(^|_)(id|ids|index|idx|nr|no|number|code|zip|plz|row|unnamed.*)$")


def numeric_columns(head: pl.DataFrame, used: set[str]) -> tuple[str, ...]:
    """Return the columns of numbers that are neither used, nor ids, nor constant."""
    found = [
        name
        for name in head.columns
        if name not in used and "," not in name and _is_measure(name, head[name])
    ]
    return tuple(found[:MOST_NUMBERS])


def _is_measure(name: str, values: pl.Series) -> bool:
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    if not plain or _NO_MEASURE.search(plain):
        return False
    numbers = numbers_of(values)
    if numbers is None or len(numbers) < LEAST_KNOWN * len(values):
        return False
    is_counter = len(numbers) > 2 and bool((numbers.diff().drop_nulls() == 1).all())
    return numbers.n_unique() > 1 and not is_counter


def numbers_of(values: pl.Series) -> pl.Series | None:
    """Return the known cells of a column as numbers. None if one of them is no number.

    Text with leading zeros, such as 007, is a code.
    """
    if values.dtype.is_numeric():
        numbers = values.cast(pl.Float64).fill_nan(None).drop_nulls()
        return numbers if bool(numbers.is_finite().all()) else None
    if values.dtype != pl.String:
        return None
    text = values.str.strip_chars().drop_nulls()
    text = text.filter(~text.is_in(["", *MISSING]))
    if text.is_empty() or text.str.contains(r"^[+-]?0\d").any():
        return None
    numbers = pl.DataFrame({"text": text}).select(as_number(pl.col("text")))["text"]
    return numbers if numbers.is_finite().fill_null(value=False).all() else None
