"""Numbers in a table: guess their columns, and check their cells."""

import re
from collections.abc import Iterator, Sequence

import polars as pl

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.numbers import MISSING
from furnace_hpc.data.table.cells import as_number
from furnace_hpc.data.table.options import ColumnOptions
from furnace_hpc.data.table.staging import Staged

MOST_NUMBERS = 50  # columns that a guess takes
MOST_LEVELS = 20  # of a label that is read as classes or ordered levels
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


def is_quantity(values: pl.Series) -> bool:
    """Return whether a label is a quantity, not a class: many numbers, of which few repeat.

    Numbers with decimals may repeat more often than whole numbers.
    """
    numbers = numbers_of(values)
    if numbers is None or numbers.n_unique() <= MOST_LEVELS:
        return False
    is_whole = bool((numbers == numbers.round()).all())
    return not is_whole or numbers.n_unique() > len(numbers) / 2


def are_levels(values: pl.Series) -> bool:
    """Return whether a label has a few whole numbers without a gap, such as 1 to 5."""
    numbers = numbers_of(values)
    if numbers is None or numbers.is_empty() or not bool((numbers == numbers.round()).all()):
        return False
    distinct = numbers.unique().sort()
    has_gap = bool((distinct.diff().drop_nulls() != 1).any())
    return 3 <= len(distinct) <= MOST_LEVELS and not has_gap


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


def check_numbers(staged: Staged, columns: ColumnOptions, train: pl.LazyFrame) -> None:
    """Raise ConfigError if a number is not finite, or a column has none in the train rows."""
    check_finite(staged, "numbers", columns.numbers, "--numbers", "")
    for column, cells in _cells(columns.numbers, pl.col("numbers")):
        if not train.select(cells.count()).collect(engine="streaming").item():
            raise ConfigError(
                f"--numbers: column {column!r} has no number in the train split. Leave it out"
            )


def _cells(columns: Sequence[str], row: pl.Expr) -> Iterator[tuple[str, pl.Expr]]:
    """Yield each column, and its number in a list of numbers."""
    for number, column in enumerate(columns):
        yield column, row.list.get(number)


def check_segments(staged: Staged, columns: ColumnOptions) -> None:
    """Raise ConfigError if a start or an end of a sound is no number, or the end is not later."""
    if not (columns.audio_start or columns.audio_end):
        return
    start, end = pl.col("audio_start"), pl.col("audio_end")
    sounds = staged.frame.filter(pl.col("audio").is_not_null())
    for option, given, wrong in (
        ("--audio-start", columns.audio_start, ~start.is_finite() | (start < 0)),
        ("--audio-end", columns.audio_end, end.is_nan()),
    ):
        found = sounds.filter(wrong).select("file", "row").collect(engine="streaming")
        if len(found):
            raise ConfigError(
                f"{option} {given!r}: {staged.name_of(*found.row(0))} has no number of seconds, 0 "
                f"or more (rows like it: {len(found):,}). Correct it"
            )
    ended = sounds.filter(end <= start).select("file", "row", "audio_start", "audio_end")
    late = ended.collect(engine="streaming")
    if len(late):
        file, row, first, last = late.row(0)
        raise ConfigError(
            f"the sound of {staged.name_of(file, row)} starts at {first:g} s and ends at "
            f"{last:g} s (rows like it: {len(late):,}). Correct the columns of --audio-start and "
            "--audio-end"
        )


def check_finite(
    staged: Staged, name: str, columns: Sequence[str], option: str, left_out: str
) -> None:
    """Raise ConfigError if one of the numbers in the staged column `name` is not finite."""
    for column, cells in _cells(columns, pl.col(name)):
        rows = staged.frame.filter(~cells.is_finite()).select("file", "row")
        found = rows.collect(engine="streaming")
        if len(found):
            raise ConfigError(
                f"{option}: {staged.name_of(*found.row(0))} has no finite number in column "
                f"{column!r} (rows like it: {len(found):,}). Correct it, or empty the cell"
                f"{left_out}"
            )
