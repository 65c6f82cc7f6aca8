"""Write the needed columns of all tables to Arrow files in one form, which workers read in parts.

Columns: `file`, `row` (from 1), `id`, `split`, `text`, `numbers`, `group`, `weight`,
`label.<name>`, and for each image or sound `<slot>` (path), `<slot>_at`, `<slot>_size` and
`<slot>_name`. If sounds have segments, `audio_start` and `audio_end` in seconds. Of text pairs also
`text_first` and `text_second`, and `text` is both.
"""

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import polars as pl

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.plural import counted, is_are
from furnace_hpc.data.table.cells import (
    label_cells,
    number_cells,
    number_or_null,
    row_of_numbers,
    text_cells,
)
from furnace_hpc.data.table.media import WHOLE, Media, media_at
from furnace_hpc.data.table.options import ColumnOptions, columns_of
from furnace_hpc.data.table.sources.files import Table, readable

BATCH_ROWS = 512  # of a table with files inside
BLOCK_ROWS = 4096  # of the staged rows
MAX_FILES = 65_535
CHECKED = 1000  # rows whose files are looked up before anything is decoded
THREADS = 16  # they wait for the file system


@dataclass(frozen=True)
class Staged:
    """The staged rows of all tables."""

    parts: tuple[Path, ...]
    tables: tuple[str, ...]
    """Name of each table, for messages."""
    slots: tuple[str, ...]
    num_rows: int
    label_separators: dict[str, str]

    @property
    def frame(self) -> pl.LazyFrame:
        """All rows in order."""
        return pl.scan_ipc(list(self.parts))

    def name_of(self, file: int, row: int) -> str:
        """Name a row for a message: the row of its file, from 1, without the header."""
        if len(self.tables) == 1:
            return f"row {row}"
        return f"{self.tables[file]} row {row}"

    def media_of(self, row: dict[str, Any], slot: str) -> Media | None:
        """Return the file in a slot of a row. None if the cell is empty."""
        return media_at(row, slot)


def slots_of(columns: ColumnOptions) -> dict[str, str]:
    """Return slot -> the column or template of its files."""
    slots = {f"image{number}": spec for number, spec in enumerate(columns.image)}
    if columns.audio:
        slots["audio"] = columns.audio
    return slots


def stage(
    tables: list[Table],
    columns: ColumnOptions,
    split_column: str | None,
    scratch: Path,
    separator: str | None,
) -> Staged:
    """Write the rows of all tables.

    Args:
        tables: the opened sources.
        columns: which columns are what.
        split_column: column with the split of each row. None: the table's split.
        scratch: folder of the files.
        separator: between the labels in one cell. None: found in the column.

    Raises:
        ConfigError: a column is missing or has the wrong type, or a path leaves the media root.
    """
    check_columns(tables[0], columns, split_column)
    if len(tables) > MAX_FILES:
        raise ConfigError(f"{len(tables):,} files, wanted at most {MAX_FILES:,}")
    parts, separators, num_rows = [], dict[str, str](), 0
    several = len(tables) > 1
    for number, table in enumerate(tables):
        part = scratch / f"rows-{number}.arrow"
        with readable(table.path):
            separators |= _stage(table, number, columns, split_column, part, separator, several)
            num_rows += pl.scan_ipc(part).select(pl.len()).collect().item()
        parts.append(part)
    if num_rows == 0:
        raise ConfigError(f"{tables[0].path} has no rows")
    parts = [_joined(parts, scratch / "rows.arrow")]
    names = tuple(table.name for table in tables)
    staged = Staged(tuple(parts), names, tuple(slots_of(columns)), num_rows, separators)
    for slot, spec in slots_of(columns).items():
        _check_inside(staged, slot, spec, {table.root for table in tables})
        _check_some_exist(staged, slot, spec)
    return staged


def _joined(parts: list[Path], whole: Path) -> Path:
    """Join the rows of all tables in one file, which workers open faster than many."""
    if len(parts) == 1:
        return parts[0]
    _write(pl.scan_ipc(parts), whole)
    for part in parts:
        part.unlink()
    return whole


def check_columns(table: Table, columns: ColumnOptions, split_column: str | None) -> None:
    """Raise ConfigError if an option names a column that the table does not have."""
    for option, specs in columns.named.items():
        for spec in specs:
            columns_of(spec, table.columns, option)
    if split_column is not None:
        columns_of(split_column, table.columns, "--split-column")


def _stage(
    table: Table,
    number: int,
    columns: ColumnOptions,
    split_column: str | None,
    part: Path,
    separator: str | None,
    several: bool,
) -> dict[str, str]:
    schema = table.frame.collect_schema()
    frame = table.frame.with_row_index("__row__", offset=1)
    chosen: list[pl.Expr] = [
        pl.lit(number, pl.UInt16).alias("file"),
        pl.col("__row__").cast(pl.UInt32).alias("row"),
    ]
    prefix = f"{table.name.removesuffix(table.path.suffix)}/" if several else ""
    own_id = pl.concat_str([pl.lit(prefix), pl.col("__row__").cast(pl.String)])
    if columns.id:
        own_id = text_cells(columns.id, schema, "--id")
    chosen.append(own_id.alias("id"))
    split = pl.lit(table.split, pl.String)
    if split_column:
        split = text_cells(split_column, schema, "--split-column")
    chosen.append(split.alias("split"))
    if columns.text:
        chosen += _texts(columns, schema)
    if columns.numbers:
        chosen.append(row_of_numbers(columns.numbers, schema, "--numbers").alias("numbers"))
    chosen += _segments(columns, schema)
    if columns.group:
        chosen.append(text_cells(columns.group, schema, "--group").alias("group"))
    if columns.weight:
        chosen.append(number_cells(columns.weight, schema, "--weight").alias("weight"))
    separators = {}
    for label in columns.labels:
        names = table.class_names.get(label.column)
        cells, used = label_cells(label, table.frame, schema, names, separator)
        chosen.append(cells.alias(f"label.{label.name}"))
        if used:
            separators[label.name] = used
    with_bytes = []
    for slot, spec in slots_of(columns).items():
        kind = schema.get(spec)
        if kind == pl.Binary or (isinstance(kind, pl.Struct) and "bytes" in _fields(kind)):
            chosen.append(pl.col(spec).alias(slot))
            with_bytes.append(slot)
        else:
            chosen += _places(slot, spec, schema, table.root)
    selected = frame.select(chosen)
    if with_bytes:
        _write_with_bytes(selected, with_bytes, part, table.root)
    else:
        _write(selected, part)
    return separators


def _write(rows: pl.LazyFrame, path: Path) -> None:
    """Write rows in blocks: a reader of a few rows reads whole blocks."""
    rows.sink_ipc(
        path, compression="uncompressed", record_batch_size=BLOCK_ROWS, maintain_order=True
    )


def _texts(columns: ColumnOptions, schema: pl.Schema) -> list[pl.Expr]:
    """Return the text of a row, and of a pair also both texts."""
    texts = [text_cells(spec, schema, "--text") for spec in columns.text]
    joined = pl.concat_str(texts, separator="\n", ignore_nulls=True)
    if not columns.text_pair:
        return [_or_null(joined).alias("text")]
    second = text_cells(columns.text_pair, schema, "--text-pair")
    both = pl.concat_str([_or_null(joined), second], separator="\n", ignore_nulls=True)
    pair = [joined.fill_null("").alias("text_first"), second.fill_null("").alias("text_second")]
    return [_or_null(both).alias("text"), *pair]


def _segments(columns: ColumnOptions, schema: pl.Schema) -> list[pl.Expr]:
    """Return start and end of each sound in seconds. Text that is no number becomes NaN."""
    if not (columns.audio_start or columns.audio_end):
        return []
    cells = []
    for name, given, default in (
        ("audio_start", columns.audio_start, 0.0),
        ("audio_end", columns.audio_end, math.inf),
    ):
        cell = pl.lit(default)
        if given:
            option = f"--{name.replace('_', '-')}"
            columns_of(given, schema.names(), option)
            cell = number_or_null(given, schema, option).fill_null(default)
        cells.append(cell.alias(name))
    return cells


def _or_null(text: pl.Expr) -> pl.Expr:
    return pl.when(text.str.strip_chars() != "").then(text)


def _fields(kind: pl.Struct) -> list[str]:
    return [field.name for field in kind.fields]


def _places(slot: str, spec: str, schema: pl.Schema, root: Path) -> list[pl.Expr]:
    """Return the columns of a slot whose files are not in the table itself."""
    kind = schema.get(spec)
    if isinstance(kind, pl.Struct) and "tar" in _fields(kind):
        inside = pl.col(spec).struct
        return [
            inside.field("tar").alias(slot),
            inside.field("offset").cast(pl.Int64).alias(f"{slot}_at"),
            inside.field("size").cast(pl.Int64).alias(f"{slot}_size"),
            inside.field("path").alias(f"{slot}_name"),
        ]
    name = text_cells(spec, schema, f"--{slot.rstrip('0123456789')}").str.replace_all(
        "\\", "/", literal=True
    )
    return _whole_files(slot, name, root)


def _folder(root: Path) -> str:
    """Return the absolute folder with a slash at its end. Links stay links."""
    return os.path.normpath(root.absolute()) + "/"


def _whole_files(slot: str, name: pl.Expr, root: Path) -> list[pl.Expr]:
    folder = _folder(root)
    path = (
        pl.when(name.str.starts_with("/"))
        .then(name)
        .otherwise(pl.concat_str([pl.lit(folder), name]))
    )
    return [
        path.alias(slot),
        pl.lit(WHOLE, pl.Int64).alias(f"{slot}_at"),
        pl.lit(WHOLE, pl.Int64).alias(f"{slot}_size"),
        name.alias(f"{slot}_name"),
    ]


def _write_with_bytes(frame: pl.LazyFrame, slots: list[str], part: Path, root: Path) -> None:
    """Write files that are inside a table to one file beside the rows."""
    beside = part.with_suffix(".media").resolve()
    pieces = part.with_suffix(".pieces")
    pieces.mkdir()
    with beside.open("wb") as out:
        batches = frame.collect_batches(chunk_size=BATCH_ROWS, maintain_order=True)
        for number, batch in enumerate(batches):
            for slot in slots:
                batch = _without_bytes(batch, slot, out, beside, root)
            batch.write_ipc(pieces / f"{number:08}.arrow", compression="uncompressed")
    files = sorted(pieces.iterdir())
    if not files:
        raise ConfigError("it has no rows")
    _write(pl.scan_ipc(files), part)
    for file in files:
        file.unlink()
    pieces.rmdir()


def _without_bytes(
    batch: pl.DataFrame, slot: str, out: BinaryIO, beside: Path, root: Path
) -> pl.DataFrame:
    """Replace a column of bytes by places in `beside`."""
    places: dict[str, list[Any]] = {
        slot: [],
        f"{slot}_at": [],
        f"{slot}_size": [],
        f"{slot}_name": [],
    }
    for row, content, name in _contents(batch, slot):
        place: tuple[Any, ...] = (None, WHOLE, WHOLE, None)
        if content is not None:
            place = (str(beside), out.tell(), len(content), name or f"row {row}")
            out.write(content)
        elif name is not None:
            place = (_folder(root) + name, WHOLE, WHOLE, name)
        for values, value in zip(places.values(), place, strict=True):
            values.append(value)
    types = (pl.String, pl.Int64, pl.Int64, pl.String)
    made = [
        pl.Series(name, values, kind)
        for (name, values), kind in zip(places.items(), types, strict=True)
    ]
    return batch.drop(slot).with_columns(made)


def _contents(batch: pl.DataFrame, slot: str) -> Iterator[tuple[int, bytes | None, str | None]]:
    for row, cell in zip(batch["row"], batch[slot], strict=True):
        if isinstance(cell, dict):
            yield row, cell["bytes"], cell.get("path")
        else:
            yield row, cell, None


def _check_inside(staged: Staged, slot: str, spec: str, roots: set[Path]) -> None:
    """Raise ConfigError if a path of the table leaves its folder."""
    name = pl.col(f"{slot}_name")
    odd = (
        staged.frame.filter(pl.col(f"{slot}_at") == WHOLE)
        .filter(name.str.contains(r"(^|/)\.\.(/|$)") | name.str.starts_with("/"))
        .select("file", "row", slot, f"{slot}_name")
        .collect(engine="streaming")
    )
    folders = [_folder(root) for root in roots]
    for row in odd.iter_rows(named=True):
        path = os.path.normpath(row[slot])
        if not any(path.startswith(folder) for folder in folders):
            raise ConfigError(
                f"{staged.name_of(row['file'], row['row'])}: {spec!r} is "
                f"{row[f'{slot}_name']!r}, which is not in {folders[0].rstrip('/')}. Fix the "
                "path, or give the folder of all files with --media-root"
            )


def _check_some_exist(staged: Staged, slot: str, spec: str) -> None:
    """Raise ConfigError if none of the first files exists: the root is wrong."""
    first = staged.frame.filter(pl.col(slot).is_not_null()).select(slot).head(100).collect()
    if len(first) and not any(Path(path).exists() for path in first[slot]):
        raise ConfigError(
            f"none of the first {len(first)} files of {spec!r} exists, such as {first[slot][0]}. "
            "Give their folder with --media-root, or a template such as 'images/{name}.jpg'"
        )


def missing_files(staged: Staged, max_refused: float) -> Iterator[str]:
    """Yield how many of the first files are missing, for each column of files.

    Raises:
        ConfigError: so many are missing that packing would fail.
    """
    for slot in staged.slots:
        rows = staged.frame.filter(pl.col(f"{slot}_at") == WHOLE, pl.col(slot).is_not_null())
        first = rows.select("file", "row", slot, f"{slot}_name").head(CHECKED).collect()
        with ThreadPoolExecutor(THREADS) as pool:
            exists = list(pool.map(os.path.exists, first[slot]))
        lost = first.filter(~pl.Series(exists, dtype=pl.Boolean))
        if lost.is_empty():
            continue
        file, row, _, name = lost.row(0)
        problem = (
            f"{len(lost):,} of the first {counted(len(first), f'{kind_of_slot(slot)} file')} "
            f"{is_are(len(lost))} missing, such as {name!r} of {staged.name_of(file, row)}"
        )
        if len(lost) > max_refused * staged.num_rows:
            share = min(1.0, len(lost) / staged.num_rows + 0.01)
            raise ConfigError(
                f"{problem} (--max-refused is {max_refused:.1%}). Fix the paths, give their folder "
                f"with --media-root, or accept them with --max-refused {share:.2f}"
            )
        yield problem


def kind_of_slot(slot: str) -> str:
    """Return `image` or `audio`."""
    return slot.rstrip("0123456789")
