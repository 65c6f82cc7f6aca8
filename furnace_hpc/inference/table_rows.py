"""Read the samples of a table for `furnace predict`, by the columns that the pack had."""

import string
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.manifest import MODALITIES
from furnace_hpc.data.table.media import WHOLE
from furnace_hpc.data.table.options import ColumnOptions, SourceOptions, columns_of
from furnace_hpc.inference.model_folder import Exported

if TYPE_CHECKING:  # polars is not needed for one sample
    from furnace_hpc.data.table.sources.files import Table
    from furnace_hpc.data.table.staging import Staged

ENDINGS = (".csv", ".tsv", ".tab", ".parquet", ".arrow")
BLOCK_ROWS = 1024
Columns = Mapping[str, Sequence[str]]  # modality or `id` -> columns or templates


def is_table(path: Path) -> bool:
    """Return whether a file is read as a table, not as JSON lines."""
    return path.suffix.lower() in ENDINGS


def input_columns(exported: Exported) -> dict[str, list[str]]:
    """Return modality, or `id` -> the columns or templates of the pack.

    Other packs have no columns: a table for them has columns `text`, `image` and `audio`.
    """
    data = exported.data
    given = data.preprocessing.get("columns")
    named = given if data.dataset == "table" and isinstance(given, dict) else {}
    columns = {name: list(named.get(name, [name])) for name in exported.modalities}
    return columns | {"id": list(named.get("id", ["id"]))}


def parse_columns(given: Sequence[str], modalities: Sequence[str]) -> dict[str, list[str]]:
    """Parse `--column text=review`. A modality may be given several times.

    Raises:
        ConfigError: one is malformed, or the model does not use the modality.
    """
    found: dict[str, list[str]] = {}
    for text in given:
        name, _, column = text.partition("=")
        if not column:
            raise ConfigError(f"--column is {text!r}, wanted NAME=COLUMN such as text=review")
        if name not in (*modalities, "id"):
            raise ConfigError(
                f"--column {text!r} has the name {name!r}; {nearest(name, (*modalities, 'id'))}"
            )
        found.setdefault(name, []).append(column)
    return found


@dataclass(frozen=True)
class InputTable:
    """A table whose rows are staged as those of `furnace pack table`."""

    table: "Table"
    staged: "Staged"
    columns: ColumnOptions

    def samples(self, first: int = 0) -> Iterator[tuple[int, str | None, dict[str, Any]]]:
        """Yield the number of each row from 1, its id, and modality -> text or file.

        Args:
            first: rows that are left out at the start.
        """
        slots = {}
        if self.columns.image:  # of several frames the middle one, as in evaluation
            slots["image"] = f"image{len(self.columns.image) // 2}"
        if self.columns.audio:
            slots["audio"] = "audio"
        for start in range(first, self.staged.num_rows, BLOCK_ROWS):
            block = self.staged.frame.slice(start, BLOCK_ROWS).collect()
            for row in block.iter_rows(named=True):
                sample = {"text": row.get("text")}
                sample |= {name: self._file(row, slot) for name, slot in slots.items()}
                yield row["row"], row["id"] if self.columns.id else None, sample

    def _file(self, row: dict[str, Any], slot: str) -> Any:
        media = self.staged.media_of(row, slot)
        if media is not None and media.at == WHOLE:
            return Path(media.path)
        return media


@contextmanager
def open_input(
    path: Path, exported: Exported, given: Columns, media_root: Path | None, scratch: Path
) -> Iterator[InputTable]:
    """Open a table, and stage its rows in `scratch`.

    Args:
        path: a file of rows, a folder of media, or a tar shard.
        exported: the model.
        given: columns that replace those of the pack.
        media_root: folder to which paths are relative. None: the file's folder.
        scratch: an empty folder for the staged rows.

    Raises:
        ConfigError: the table cannot be read, or has none of the columns.
    """
    from furnace_hpc.data.table.sources.files import open_tables, readable
    from furnace_hpc.data.table.staging import stage

    with readable(path):
        tables = open_tables(SourceOptions(files=(str(path),), media_root=media_root), scratch)
        if len(tables) != 1:
            raise ConfigError(f"{path} has {len(tables)} tables. Give one of their files")
        columns = _choose(path, tables[0].columns, exported, given)
    staged = stage(tables, columns, None, scratch, None)
    yield InputTable(tables[0], staged, columns)


def _choose(path: Path, existing: list[str], exported: Exported, given: Columns) -> ColumnOptions:
    """Return the columns of a table. One that the table lacks is absent from all samples.

    Raises:
        ConfigError: a given column does not exist, or none exists.
    """
    wanted = input_columns(exported)
    chosen: dict[str, list[str]] = {}
    for name, specs in wanted.items():
        if name in given:
            for spec in given[name]:
                columns_of(spec, existing, f"--column {name}=")
            chosen[name] = list(given[name])
        elif found := _existing(name, specs, existing):
            chosen[name] = found
    if not any(name in chosen for name in MODALITIES):
        names = ", ".join(spec for name in MODALITIES for spec in wanted.get(name, []))
        raise ConfigError(
            f"{path} has none of the columns {names}; it has {', '.join(existing)}. Name the "
            "columns with --column NAME=COLUMN"
        )
    return ColumnOptions(
        text=tuple(chosen.get("text", ())),
        image=tuple(chosen.get("image", ())),
        audio=next(iter(chosen.get("audio", ())), None),
        id=next(iter(chosen.get("id", ())), None),
    )


def _existing(name: str, specs: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Return the columns or templates that the table has, else the column `name`."""
    try:
        for spec in specs:
            columns_of(spec, columns, name)
    except ConfigError:
        return [name] if name in columns else []
    return list(specs)


def sample_of(fields: dict[str, Any], columns: Columns) -> dict[str, Any]:
    """Take modality -> text or path, and `id`, from a JSON object with the columns of a pack.

    The name of a modality is also a key. All other keys are left out.
    """
    sample = {}
    for name, specs in columns.items():
        found = _existing(name, specs, list(fields))
        if not found:
            continue
        if name == "image":
            found = [found[len(found) // 2]]
        cells = [_cell(spec, fields) for spec in found]
        if len(cells) > 1 and all(cell is None or isinstance(cell, str) for cell in cells):
            cells = ["\n".join(cell for cell in cells if cell)]
        sample[name] = cells[0]
    return sample


def _cell(spec: str, fields: dict[str, Any]) -> Any:
    if spec in fields:
        return fields[spec]
    parts = []
    for text, name, _, _ in string.Formatter().parse(spec):
        if name is not None and fields[name] is None:
            return None
        parts.append(text if name is None else f"{text}{fields[name]}")
    return "".join(parts)
