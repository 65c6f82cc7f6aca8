"""Report what is odd about a table but does not stop packing."""

from collections.abc import Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray

from furnace_hpc.config.manifest import SPLITS
from furnace_hpc.config.parsing.plural import counted
from furnace_hpc.data.table.cells import as_number
from furnace_hpc.data.table.checks import SHOWN, Codes, LabelCounts, with_codes
from furnace_hpc.data.table.options import ColumnOptions
from furnace_hpc.data.table.sources.files import Table
from furnace_hpc.data.table.staging import Staged

SEEN = 100_000  # rows in which numeric columns are compared with labels
LEAST_ROWS = 10
LIKE_MISSING = ("n/a", "na", "n.a.", "#n/a", "none", "null", "-", "?", "unknown", "missing")


def label_warnings(counts: list[LabelCounts], num_rows: int) -> Iterator[str]:
    """Yield rows without labels, and classes that a split lacks."""
    for found in counts:
        name = found.label.name
        if found.missing:
            share = f"{found.missing:,} of {counted(num_rows, 'row')}"
            yield f"label {name}: {share} have no value. Such rows are refused"
        if odd := [label for label in found.classes if label.strip().casefold() in LIKE_MISSING]:
            yield (
                f"label {name}: the class {', '.join(map(repr, odd))} looks like a missing value. "
                "If it is one, empty these cells"
            )
        for part in found.ranges:
            if part.least == part.most:
                yield f"label {name}: {part.target} is constant in {part.split}"
        for split in found.counts:
            absent = [label for label in found.classes if not found.counts[split].get(label)]
            if absent:
                more = "" if len(absent) <= SHOWN else f" and {len(absent) - SHOWN:,} more"
                yield f"label {name}: {split} has no {', '.join(absent[:SHOWN])}{more}"


def number_warnings(staged: Staged, columns: ColumnOptions, codes: Codes) -> Iterator[str]:
    """Yield the columns of --numbers that are constant in the train split."""
    train = with_codes(staged, codes).filter(pl.col("split_code") == SPLITS.index("train"))
    for number, column in enumerate(columns.numbers):
        cells = pl.col("numbers").list.get(number)
        found = train.select(cells.min().alias("least"), cells.max().alias("most"))
        least, most = found.collect(engine="streaming").row(0)
        if least == most:
            yield f"column {column!r} of --numbers is {least:g} in all train rows that have it"


def divided_sounds(staged: Staged, codes: Codes) -> Iterator[str]:
    """Yield the number of sounds whose segments are in two splits."""
    frame = with_codes(staged, codes).filter(pl.col("audio").is_not_null())
    used = frame.filter(pl.col("split_code") < len(SPLITS)).group_by("audio", "audio_at")
    found = used.agg(pl.col("split_code").n_unique().alias("splits")).collect(engine="streaming")
    if number := int((found["splits"] > 1).sum()):
        yield (
            f"segments of {number:,} sounds are in two splits. --group with the column of --audio "
            "keeps the segments of a sound in one split"
        )


def determined_labels(tables: list[Table], staged: Staged, columns: ColumnOptions) -> Iterator[str]:
    """Yield the numeric columns that determine a label, such as a score that the label is made of.

    Only the first rows of the first table are compared.
    """
    table = tables[0]
    used = {spec for specs in columns.named.values() for spec in specs} - {*columns.numbers}
    numbers = _numeric_columns(table, used)
    labels = [label for label in columns.labels if label.kind.has_one_class]
    if not numbers or not labels:
        return
    own = [f"label.{label.name}" for label in labels]
    found = staged.frame.filter(pl.col("file") == 0).select(own).head(SEEN).collect()
    for name, values in numbers.items():
        for label in labels:
            classes = found[f"label.{label.name}"]
            if determines(values.to_numpy(), classes):
                warning = (
                    f"column {name!r} determines label {label.name}: it may be made of the label"
                )
                if name in columns.numbers:
                    warning += ". If it is, leave it out of --numbers"
                yield warning


def _numeric_columns(table: Table, used: set[str]) -> dict[str, pl.Series]:
    schema = table.frame.collect_schema()
    chosen = []
    for name, kind in schema.items():
        if name in used:
            continue
        if kind.is_numeric():
            chosen.append(pl.col(name).cast(pl.Float64))
        elif kind == pl.String:
            chosen.append(as_number(pl.col(name)).alias(name))
    if not chosen:
        return {}
    frame = table.frame.select(chosen).head(SEEN).collect()
    return {
        series.name: series.fill_null(np.nan)
        for series in frame.get_columns()
        if series.null_count() <= len(series) // 2
    }


def determines(values: NDArray[np.float64], classes: pl.Series) -> bool:
    """Return whether each value, or each range of values, has one class."""
    known = np.isfinite(values) & classes.is_not_null().to_numpy()
    if known.sum() < LEAST_ROWS or (np.diff(values) > 0).all():  # row numbers of a sorted table
        return False
    _, codes = np.unique(classes.filter(pl.Series(known)).to_numpy(), return_inverse=True)
    order = np.lexsort((codes, values[known]))
    ordered, codes = values[known][order], codes[order]
    num_classes = len(np.unique(codes))
    if num_classes < 2:
        return False
    new_value = ordered[1:] != ordered[:-1]
    new_class = codes[1:] != codes[:-1]
    if (new_class & ~new_value).any():
        return False  # one value has two classes
    num_values = 1 + int(new_value.sum())
    return int(new_class.sum()) == num_classes - 1 or num_values <= len(ordered) // 2
