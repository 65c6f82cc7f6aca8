"""Read the lines of a CSV, JSON Lines or Parquet file, with bounded memory.

An error names the file and the line. Lines of text count from 1, and so do rows of Parquet.
"""

import csv
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.text_safety import short
from furnace_hpc.host.regular_file import check_regular, open_regular

MAX_LINE_BYTES = 1_000_000
MAX_COLUMNS = 20_000
BATCH_ROWS = 20_000  # rows of a Parquet file that are in memory at a time
SEPARATORS = (",", ";", "\t")

Values = Mapping[str, Any]  # column -> text, number or None


@dataclass(frozen=True)
class LinesFile:
    """A file whose lines are runs or measurements."""

    path: Path
    columns: tuple[str, ...]
    read: Callable[[Sequence[str]], Iterator[tuple[int, Values]]]  # columns -> (number, values)
    is_text: bool = True

    def place(self, number: int) -> str:
        """Where a line is, for errors."""
        if self.is_text:
            return f"{self.path}:{number}"
        return f"{self.path}: row {number}"

    def lines(self, columns: Sequence[str]) -> Iterator[tuple[int, Values]]:
        """The number and the values of each line, in these columns.

        Raises:
            ConfigError: a column has a duplicate, or a line is damaged.
        """
        for column in columns:
            if self.columns.count(column) > 1:
                found = [str(at) for at, name in enumerate(self.columns, 1) if name == column]
                raise ConfigError(
                    f"{self.path}:1: columns {' and '.join(found)} have the name {column!r}, "
                    f"wanted one column of this name. Rename or remove the others"
                )
        return self.read(columns)


def open_lines(path: Path) -> LinesFile:
    """Open a file. Its suffix tells the format.

    Raises:
        ConfigError: it is missing, empty or damaged, or has another suffix.
    """
    opener = _OPENERS.get(path.suffix.lower())
    if opener is None:
        raise ConfigError(
            f"{path}: the suffix {path.suffix!r} is unknown. Give a file with one of the suffixes "
            f"{', '.join(_OPENERS)}"
        )
    try:
        check_regular(path)
        if not path.stat().st_size:
            raise ConfigError(f"{path}: the file is empty. Export the runs again")
        return opener(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"{path}: cannot be read: {reason}. Give a readable file") from None


def _open_csv(path: Path) -> LinesFile:
    header = next(_texts(path), (1, ""))[1]
    separator = max(SEPARATORS, key=header.count)
    columns = next((fields for _, fields in _csv_fields(path, separator)), [])
    names = tuple(name.strip() for name in columns)
    _check_columns(path, names)
    return LinesFile(path, names, partial(_csv_lines, path, separator, names))


def _csv_lines(
    path: Path, separator: str, names: Sequence[str], columns: Sequence[str]
) -> Iterator[tuple[int, Values]]:
    places = [(name, names.index(name)) for name in columns]
    rows = _csv_fields(path, separator)
    next(rows)
    for number, fields in rows:
        if len(fields) != len(names):
            raise ConfigError(
                f"{path}:{number}: the line has {len(fields):,} fields, and the header has "
                f"{len(names):,}. Put text with {separator!r} in quotes"
            )
        yield number, {name: fields[at] for name, at in places}


def _csv_fields(path: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each line that is not blank."""
    texts = (text for _, text in _texts(path))
    reader = csv.reader(texts, delimiter=separator, strict=True)
    number = 1
    try:
        for fields in reader:
            if fields:
                yield number, fields
            number = reader.line_num + 1
    except csv.Error as error:
        raise ConfigError(f"{path}:{number}: not valid CSV: {error}. Export it again") from None


def _open_json_lines(path: Path) -> LinesFile:
    names: dict[str, None] = {}
    for _, values in _json_objects(path):
        names.update(dict.fromkeys(values))
        _check_columns(path, names)
    return LinesFile(path, tuple(names), partial(_json_lines, path))


def _json_lines(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Values]]:
    for number, values in _json_objects(path):
        yield number, {name: values[name] for name in columns if name in values}


def _json_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, text in _texts(path):
        if not text.strip():
            continue
        try:
            content = from_json(text, allow_inf_nan=True)
        except ValueError as error:
            raise ConfigError(
                f"{path}:{number}: not valid JSON: {error}. Write one JSON object on each line"
            ) from None
        if not isinstance(content, dict):
            raise ConfigError(
                f"{path}:{number}: got {short(text.strip())}, wanted a JSON object. Write one on "
                f"each line"
            )
        pairs = list(_flat(content))
        values = dict(pairs)
        if len(values) < len(pairs):
            name = next(name for name in values if [key for key, _ in pairs].count(name) > 1)
            raise ConfigError(
                f"{path}:{number}: two values have the name {name!r}, wanted one. Rename or remove "
                f"one: keys of nested objects are joined by dots"
            )
        yield number, values


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys of nested objects are joined by dots."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _open_parquet(path: Path) -> LinesFile:
    import polars as pl

    schema = _parquet(path, lambda: pl.scan_parquet(path).collect_schema())
    return LinesFile(path, tuple(schema), partial(_parquet_lines, path), is_text=False)


def _parquet_lines(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Values]]:
    import polars as pl

    frame = pl.scan_parquet(path).select(columns)
    start = 0
    while True:
        rows = _parquet(path, frame.slice(start, BATCH_ROWS).collect).rows(named=True)
        yield from enumerate(rows, start + 1)
        start += len(rows)
        if len(rows) < BATCH_ROWS:
            return


def _parquet(path: Path, read: Callable[[], Any]) -> Any:
    """What `read` returns. A damaged file is an error of the user's input."""
    import polars as pl

    try:
        return read()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        reason = short(" ".join(str(error).split()), 200)
        raise ConfigError(
            f"{path}: not a readable Parquet file ({reason}). Export it again"
        ) from None


def _texts(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line, its end included."""
    with open_regular(path) as file:
        for number, raw in enumerate(iter(partial(file.readline, MAX_LINE_BYTES + 1), b""), 1):
            if len(raw) > MAX_LINE_BYTES:
                raise ConfigError(
                    f"{path}:{number}: the line has more than {MAX_LINE_BYTES:,} bytes. "
                    f"Write one run on each line"
                )
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise ConfigError(
                    f"{path}:{number}: not UTF-8 text. Save the file as UTF-8"
                ) from None
            yield number, text


def _check_columns(path: Path, names: Sequence[str] | Mapping[str, None]) -> None:
    if len(names) > MAX_COLUMNS:
        raise ConfigError(
            f"{path}: more than {MAX_COLUMNS:,} columns. Export only the columns of the table"
        )


_OPENERS: dict[str, Callable[[Path], LinesFile]] = {
    ".csv": _open_csv,
    ".tsv": _open_csv,
    ".jsonl": _open_json_lines,
    ".ndjson": _open_json_lines,
    ".parquet": _open_parquet,
}
SUFFIXES = tuple(_OPENERS)


def name_of_folder(path: Path) -> str:
    """Name of the folder that has a file."""
    return path.parent.name or os.path.basename(path.resolve().parent)  # noqa: PTH119
