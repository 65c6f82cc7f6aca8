"""Read the samples of a CSV, TSV or Parquet file for `furnace predict`, by the pack's columns."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import MODALITIES, Manifest

if TYPE_CHECKING:
    import polars as pl

ENDINGS = (".csv", ".tsv", ".parquet")
BATCH_ROWS = 1024
PAIR = "text-pair"  # option of the pack with the column of the second text
SEGMENT = {"audio-start": "start", "audio-end": "end"}  # option of the pack -> key of a sample


def is_table(path: Path) -> bool:
    """Return whether a file is read as a table, not as JSON lines."""
    return path.suffix.lower() in ENDINGS


def input_columns(data: Manifest) -> dict[str, list[str]]:
    """Return modality, or `id` -> the columns or templates of the pack.

    Other packs have no columns: a table for them has columns `text`, `image` and `audio`. Each
    column of `numbers` is a column of the table.
    """
    given = data.preprocessing.get("columns")
    named = given if data.dataset == "table" and isinstance(given, dict) else {}
    columns = {str(name): list(named.get(name, [name])) for name in data.modalities}
    columns |= {name: list(named[name]) for name in (*SEGMENT, PAIR) if name in named}
    return columns | {"id": list(named.get("id", ["id"]))}


def read_rows(path: Path, columns: Mapping[str, list[str]]) -> Iterator[dict[str, Any]]:
    """Yield the samples of a table: modality -> text, path of a file or numbers, and `id`.

    A column that the table lacks is absent from all samples, but one of them must exist.

    Raises:
        ConfigError: the table cannot be read, or has none of the columns.
    """
    import polars as pl

    from furnace_hpc.data.table.cells import text_cells
    from furnace_hpc.data.table.options import SourceOptions
    from furnace_hpc.data.table.sources.files import open_tables, readable

    with tempfile.TemporaryDirectory() as scratch, readable(path):
        table = open_tables(SourceOptions(files=(str(path),)), Path(scratch))[0]
        schema = table.frame.collect_schema()
        chosen = []
        for name, specs in columns.items():
            if name in SEGMENT or name == PAIR:
                continue
            if name == "numbers":
                chosen += _numbers(specs, schema)
                continue
            found = _existing(name, specs, schema.names())
            if found:
                cells = [text_cells(spec, schema, name) for spec in found]
                joined = pl.concat_str(cells, separator="\n", ignore_nulls=True)
                cell = pl.when(joined.str.strip_chars() != "").then(joined).alias(name)
                if name == "audio":
                    cell = _with_segment(cell, columns, schema)
                elif name == "text" and PAIR in columns:
                    cell = _with_second(joined, columns[PAIR], schema)
                chosen.append(cell)
        if not any(cells.meta.output_name() in MODALITIES for cells in chosen):
            wanted = ", ".join(spec for name in MODALITIES for spec in columns.get(name, []))
            raise ConfigError(
                f"{path} has none of the columns {wanted}; it has {', '.join(schema.names())}"
            )
        for batch in table.frame.select(chosen).collect_batches(
            chunk_size=BATCH_ROWS, maintain_order=True
        ):
            yield from batch.iter_rows(named=True)


def _with_second(first: "pl.Expr", specs: list[str], schema: "pl.Schema") -> "pl.Expr":
    """Return both texts of a pair as a list. It is null if both are empty."""
    import polars as pl

    from furnace_hpc.data.table.cells import text_cells

    found = _existing(PAIR, specs, schema.names())
    second = text_cells(found[0], schema, PAIR) if found else pl.lit(None, pl.String)
    texts = [text.fill_null("") for text in (first, second)]
    known = pl.any_horizontal([text.str.strip_chars() != "" for text in texts])
    return pl.when(known).then(pl.concat_list(texts)).alias("text")


def _with_segment(
    path: "pl.Expr", columns: Mapping[str, list[str]], schema: "pl.Schema"
) -> "pl.Expr":
    """Return a path, or path, start and end of a sound if the table has columns for them."""
    import polars as pl

    found = [
        pl.col(columns[name][0]).alias(key)
        for name, key in SEGMENT.items()
        if name in columns and columns[name][0] in schema
    ]
    if not found:
        return path
    return pl.when(path.is_not_null()).then(pl.struct(path.alias("path"), *found)).alias("audio")


def _numbers(specs: list[str], schema: "pl.Schema") -> "list[pl.Expr]":
    """Return the numbers of a row as one column of name -> cell. It is null if all are missing."""
    import polars as pl

    from furnace_hpc.data.table.cells import number_or_null

    found = [name for name in specs if name in schema]
    if not found:
        return []
    known = [number_or_null(name, schema, "numbers").is_not_null() for name in found]
    return [pl.when(pl.any_horizontal(known)).then(pl.struct(found)).alias("numbers")]


def _existing(name: str, specs: list[str], columns: list[str]) -> list[str]:
    """Return the columns or templates that the table has, else the column `name`."""
    from furnace_hpc.data.table.options import columns_of

    try:
        for spec in specs:
            columns_of(spec, columns, name)
    except ConfigError:
        return [name] if name in columns else []
    return specs
