"""Turn the cells of a table's columns into texts, numbers and labels, as polars expressions."""

import string

import polars as pl

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.numbers import MISSING
from furnace_hpc.data.table.options import LabelColumn, LabelKind, columns_of

SEPARATORS = ("|", ";", ",")
SEEN = 10_000  # rows that are searched for the separator of labels
_QUOTED = r"'[^']*'|\"[^\"]*\"|[^\[\],'\"\s][^\[\],]*"  # an item of a list that is written as text


def text_cells(spec: str, schema: pl.Schema, option: str) -> pl.Expr:
    """Return a column or template as text. Empty cells are null.

    Raises:
        ConfigError: the column holds lists of numbers, structs or bytes.
    """
    columns_of(spec, schema.names(), option)
    if spec in schema.names():
        return _text(spec, schema[spec], option)
    parts = []
    for text, name, _, _ in string.Formatter().parse(spec):
        if text:
            parts.append(pl.lit(text))
        if name is not None:
            parts.append(_text(name, schema[name], option))
    return pl.concat_str(parts)


def _text(name: str, kind: pl.DataType, option: str) -> pl.Expr:
    column = pl.col(name)
    if isinstance(kind, pl.List) and kind.inner == pl.String:
        column, kind = column.list.join("\n"), pl.String()
    if isinstance(kind, pl.List | pl.Array | pl.Struct) or kind in (pl.Binary, pl.Object):
        raise ConfigError(
            f"{option} {name!r} holds {kind}, wanted texts. Choose another column or convert it"
        )
    if kind.is_float():
        whole = column.cast(pl.Int64, strict=False)
        plain = (
            pl.when(column == whole).then(whole.cast(pl.String)).otherwise(column.cast(pl.String))
        )
        return pl.when(column.is_not_nan()).then(plain)
    text = column.cast(pl.String)
    return pl.when(text != "").then(text)


def number_cells(spec: str, schema: pl.Schema, option: str) -> pl.Expr:
    """Return a column as numbers. Text may have decimal commas. What is no number becomes NaN."""
    columns_of(spec, schema.names(), option)
    kind = schema.get(spec)
    if kind is not None and kind.is_numeric():
        return pl.col(spec).cast(pl.Float64)
    return as_number(text_cells(spec, schema, option)).fill_null(float("nan"))


def as_number(text: pl.Expr) -> pl.Expr:
    """Convert text to numbers: `1.5`, `1,5` and `1.234,5`. What is no number becomes null."""
    plain = text.str.strip_chars()
    comma = plain.str.contains(r"^[+-]?[\d.]*,\d+$")
    swapped = plain.str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True)
    return pl.when(comma).then(swapped).otherwise(plain).cast(pl.Float64, strict=False)


def label_cells(
    label: LabelColumn,
    frame: pl.LazyFrame,
    schema: pl.Schema,
    class_names: tuple[str, ...] | None,
    separator: str | None,
) -> tuple[pl.Expr, str]:
    """Return the labels of a column, and the separator if its cells hold several.

    Raises:
        ConfigError: the column has a type that is not a label.
    """
    option = f"--label {label.option}"
    if label.kind is LabelKind.REGRESSION:
        return _targets(label.columns, schema, option), ""
    kind = schema.get(label.column)
    is_list = isinstance(kind, pl.List | pl.Array)
    if label.kind.has_one_class:
        if is_list:
            raise ConfigError(
                f"{option}: the column holds lists. Give --label "
                f"{label.name}={label.column}:multi_label"
            )
        text = text_cells(label.column, schema, option)
        is_integer = kind is not None and kind.is_integer()
        if class_names and is_integer and label.kind is LabelKind.SINGLE:
            text = _named(text, class_names)
        if kind == pl.String or kind is None:
            text = pl.when(~text.is_in([*MISSING])).then(text)
        return text, ""
    if is_list:
        assert isinstance(kind, pl.List | pl.Array)
        if isinstance(kind.inner, pl.List | pl.Struct):
            raise ConfigError(f"{option}: the column holds {kind}, wanted lists of labels")
        cells = pl.col(label.column).cast(pl.List(pl.String))
        return cells, ""
    text = text_cells(label.column, schema, option)
    seen = frame.select(text.alias("cell")).head(SEEN).collect()["cell"].drop_nulls()
    if len(seen) and (seen.str.strip_chars().str.starts_with("[")).all():
        items = text.str.extract_all(_QUOTED)
        return items.list.eval(pl.element().str.strip_chars("'\" ")), "[]"
    used = separator or next(
        (character for character in SEPARATORS if seen.str.contains(character, literal=True).any()),
        "|",
    )
    items = text.str.split(used).list.eval(pl.element().str.strip_chars())
    return items.list.eval(pl.element().filter(pl.element() != "")), used


def _targets(columns: tuple[str, ...], schema: pl.Schema, option: str) -> pl.Expr:
    """Return the numbers of a row as a list. It is null if one is missing, NaN included.

    Text that is no number becomes NaN.
    """
    numbers = [number_or_null(column, schema, option) for column in columns]
    complete = pl.all_horizontal([number.is_not_null() for number in numbers])
    return pl.when(complete).then(pl.concat_list(numbers))


def row_of_numbers(columns: tuple[str, ...], schema: pl.Schema, option: str) -> pl.Expr:
    """Return the numbers of a row as a list with nulls. It is null if all are missing.

    Text that is no number becomes NaN.
    """
    numbers = [number_or_null(column, schema, option) for column in columns]
    any_known = pl.any_horizontal([number.is_not_null() for number in numbers])
    return pl.when(any_known).then(pl.concat_list(numbers))


def number_or_null(column: str, schema: pl.Schema, option: str) -> pl.Expr:
    """Return a column as numbers. Empty cells and NaN become null, other text becomes NaN."""
    kind = schema.get(column)
    if kind is not None and (kind.is_numeric() or kind == pl.Boolean):
        return pl.col(column).cast(pl.Float64).fill_nan(None)
    text = text_cells(column, schema, option)
    known = text.is_not_null() & ~text.str.strip_chars().is_in(["", *MISSING])
    return pl.when(known).then(as_number(text).fill_null(float("nan")))


def _named(text: pl.Expr, names: tuple[str, ...]) -> pl.Expr:
    numbers = [str(number) for number in range(len(names))]
    # The Hub's test splits without labels have -1.
    return pl.when(text.str.starts_with("-").not_()).then(text.replace(numbers, list(names)))
