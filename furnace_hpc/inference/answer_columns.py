"""The columns that `furnace predict --output` adds to a table, and the forms of its file."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.inference.model_folder import Exported
from furnace_hpc.inference.predictor import Answer

FORMS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
FROM, ERROR = "predicted_from", "prediction_error"
BETWEEN = "|"  # labels in a cell of a CSV, as `furnace pack table` reads them
ROWS_WITH_BYTES = 1024  # of a row group of Parquet


def form_of(path: Path) -> str:
    """Return the form of a file by its ending.

    Raises:
        ConfigError: the ending is unknown.
    """
    form = FORMS.get(path.suffix.lower())
    if form is None:
        raise ConfigError(f"--output {path} has the wrong ending. Give one of {', '.join(FORMS)}")
    return form


@dataclass(frozen=True)
class AnswerColumns:
    """The answer columns of a model."""

    exported: Exported
    with_probabilities: bool
    """Whether each class has a column with its probability."""

    @property
    def schema(self) -> pl.Schema:
        """Name -> type of each column."""
        return pl.Schema(dict(self._columns()))

    def _columns(self) -> Iterator[tuple[str, pl.DataType]]:
        for task in self.exported.config.tasks:
            classes = self.exported.data.labels[task.name].classes
            if task.kind == "regression":
                yield from ((name, pl.Float64()) for name in _target_names(task.name, classes))
                continue
            if task.kind == "multi_label":
                yield f"{task.name}_predicted", pl.List(pl.String())
            else:
                yield f"{task.name}_predicted", pl.String()
                yield f"{task.name}_probability", pl.Float64()
            if self.with_probabilities:
                yield from ((f"{task.name}_p_{name}", pl.Float64()) for name in classes)
        yield FROM, pl.String()
        yield ERROR, pl.String()

    def check(self, columns: list[str], path: Path) -> None:
        """Raise ConfigError if the table already has one of the columns, or two have one name."""
        counts = Counter(name for name, _ in self._columns())
        if twice := next((name for name, count in counts.items() if count > 1), None):
            raise ConfigError(
                f"the answers of two tasks would both be named {twice!r}. Leave out --probabilities"
            )
        if double := [name for name in self.schema if name in columns]:
            raise ConfigError(
                f"{path} already has the column {double[0]!r}, which the answers need. Rename it"
            )

    def cells(self, answer: Answer) -> dict[str, Any]:
        """Return column -> cell of an answer. A number that is not finite is empty."""
        found: dict[str, Any] = {FROM: ",".join(answer.modalities)}
        for task in self.exported.config.tasks:
            own = answer.tasks[task.name]
            if task.kind == "regression":
                names = _target_names(task.name, tuple(own.values))
                found |= dict(zip(names, own.values.values(), strict=True))
                continue
            if task.kind == "multi_label":
                found[f"{task.name}_predicted"] = list(own.labels)
            else:
                found[f"{task.name}_predicted"] = own.labels[0]
                found[f"{task.name}_probability"] = own.probabilities[own.labels[0]]
            if self.with_probabilities:
                found |= {f"{task.name}_p_{name}": p for name, p in own.probabilities.items()}
        return {
            name: None if isinstance(cell, float) and not np.isfinite(cell) else cell
            for name, cell in found.items()
        }


def _target_names(task: str, targets: tuple[str, ...]) -> list[str]:
    if len(targets) == 1:
        return [f"{task}_predicted"]
    return [f"{task}_predicted_{target}" for target in targets]


def write_table(table: pl.LazyFrame, answers: pl.LazyFrame, path: Path, form: str) -> list[str]:
    """Write the columns of a table and of its answers. Rows are never in memory as a whole.

    Returns: the columns that the form cannot hold, which are left out.
    """
    schema = table.collect_schema()
    if form == "parquet":
        size = ROWS_WITH_BYTES if any(map(_has_bytes, schema.values())) else None
        _beside(table, answers).sink_parquet(path, row_group_size=size, maintain_order=True)
        return []
    kept = list(_plain(schema, is_csv=form != "jsonl"))
    left_out = [name for name in schema if name not in {cells.meta.output_name() for cells in kept}]
    if form == "jsonl":
        _beside(table.select(kept), answers).sink_ndjson(path, maintain_order=True)
        return left_out
    flat = answers.select(_plain(answers.collect_schema(), is_csv=True))
    separator = "\t" if form == "tsv" else ","
    _beside(table.select(kept), flat).sink_csv(path, separator=separator, maintain_order=True)
    return left_out


def _beside(table: pl.LazyFrame, answers: pl.LazyFrame) -> pl.LazyFrame:
    return pl.concat([table, answers], how="horizontal")


def _plain(schema: pl.Schema, *, is_csv: bool) -> Iterator[pl.Expr]:
    """Yield the columns that text can hold. Of a file inside a table it holds the name."""
    for name, kind in schema.items():
        cells = pl.col(name)
        fields = [field.name for field in kind.fields] if isinstance(kind, pl.Struct) else []
        if "path" in fields and {"bytes", "tar"} & set(fields):
            yield cells.struct.field("path").alias(name)
        elif is_csv and isinstance(kind, pl.List) and kind.inner == pl.String:
            yield cells.list.join(BETWEEN)
        elif not _has_bytes(kind) and not (is_csv and kind.is_nested()):
            yield cells


def _has_bytes(kind: pl.DataType) -> bool:
    if isinstance(kind, pl.Struct):
        return any(_has_bytes(field.dtype) for field in kind.fields)  # type: ignore[arg-type]
    return kind == pl.Binary
