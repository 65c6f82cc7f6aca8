"""Read the samples of a table for `furnace predict`, by the columns that the pack had."""

import math
import string
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.manifest import MODALITIES, TEXT_SECOND, number_names
from furnace_hpc.data.table.media import WHOLE
from furnace_hpc.data.table.options import ColumnOptions, SourceOptions, columns_of
from furnace_hpc.inference.model_folder import Exported

if TYPE_CHECKING:  # polars is not needed for one sample
    import polars as pl

    from furnace_hpc.data.table.sources.files import Table
    from furnace_hpc.data.table.staging import Staged

STAGED_SEGMENT = ("audio_start", "audio_end")
ENDINGS = (".csv", ".tsv", ".tab", ".parquet", ".arrow")
BLOCK_ROWS = 1024
PAIR = "text-pair"  # option of the pack with the column of the second text
SEGMENT = {"audio-start": "start", "audio-end": "end"}  # option of the pack -> key of a sample
Columns = Mapping[str, Sequence[str]]  # modality, `id` or option -> columns or templates


def is_table(path: Path) -> bool:
    """Return whether a file is read as a table, not as JSON lines."""
    return path.suffix.lower() in ENDINGS


def input_columns(exported: Exported) -> dict[str, list[str]]:
    """Return modality, `id`, or option of a pair or segment -> columns or templates of the pack.

    Other packs have no columns: a table for them has columns `text`, `image` and `audio`.
    """
    data = exported.data
    given = data.preprocessing.get("columns")
    named = given if data.dataset == "table" and isinstance(given, dict) else {}
    columns = {name: list(named.get(name, [name])) for name in exported.modalities}
    needed = {PAIR: "text", **dict.fromkeys(SEGMENT, "audio")}
    columns |= {
        name: list(named[name])
        for name, modality in needed.items()
        if name in named and modality in columns
    }
    return columns | {"id": list(named.get("id", ["id"]))}


def parse_columns(given: Sequence[str], exported: Exported) -> dict[str, list[str]]:
    """Parse `--column text=review`. A modality may be given several times.

    Raises:
        ConfigError: one is malformed, or the model does not use the modality.
    """
    names = [*input_columns(exported)]
    if "audio" in names:
        names += [name for name in SEGMENT if name not in names]
    found: dict[str, list[str]] = {}
    for text in given:
        name, _, column = text.partition("=")
        if not column:
            raise ConfigError(f"--column is {text!r}, wanted NAME=COLUMN such as text=review")
        if name not in names:
            raise ConfigError(f"--column {text!r} has the name {name!r}; {nearest(name, names)}")
        found.setdefault(name, []).append(column)
    numbers = number_names(exported.data)
    if "numbers" in found and len(found["numbers"]) != len(numbers):
        raise ConfigError(
            f"--column numbers= is given for {', '.join(found['numbers'])}, wanted a column for "
            f"each of {', '.join(numbers)}, in this order"
        )
    return found


@dataclass(frozen=True)
class InputTable:
    """A table whose rows are staged as those of `furnace pack table`."""

    table: "Table"
    staged: "Staged"
    columns: ColumnOptions
    numbers: tuple[str, ...] = ()
    """Columns of `numbers` in the order of the pack. The table may lack some."""
    is_pair: bool = False
    """Whether the model reads text pairs."""

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
            given = self._given_numbers(block, start)
            for place, row in enumerate(block.iter_rows(named=True)):
                sample: dict[str, Any] = {"text": self._text(row)}
                sample |= {name: self._file(row, slot) for name, slot in slots.items()}
                cells = {name: column[place] for name, column in given.items()}
                if self.columns.numbers:
                    sample["numbers"] = self._row_of_numbers(row, cells)
                if sample.get("audio") is not None and "audio_start" in row:
                    sample["audio"] = self._segment(sample["audio"], row, cells)
                yield row["row"], row["id"] if self.columns.id else None, sample

    def _text(self, row: dict[str, Any]) -> str | list[str] | None:
        """Return the text, or both texts of a pair."""
        text: str | None = row.get("text")
        if text is None or not self.is_pair:
            return text
        return [row["text_first"], row["text_second"]] if "text_first" in row else [text, ""]

    def _given_numbers(self, block: "pl.DataFrame", start: int) -> "dict[str, pl.Series]":
        """Return column -> its cells in the table, if the block has text that is no number.

        The error of such a row shows the cell.
        """
        is_wrong = [block[name].is_nan().any() for name in STAGED_SEGMENT if name in block.columns]
        if "numbers" in block.columns:
            is_wrong.append(block["numbers"].explode().is_nan().any())
        if not any(is_wrong):
            return {}
        columns = self.columns
        names = {*columns.numbers, *filter(None, (columns.audio_start, columns.audio_end))}
        cells = self.table.frame.select(sorted(names)).slice(start, len(block)).collect()
        return cells.to_dict()

    def _row_of_numbers(self, row: dict[str, Any], cells: dict[str, Any]) -> list[Any] | None:
        """Return the numbers of a row in the order of the pack. Text that is none stays text."""
        if row["numbers"] is None:
            return None
        staged = dict(zip(self.columns.numbers, row["numbers"], strict=True))
        return [_number_or_cell(staged.get(name), cells.get(name)) for name in self.numbers]

    def _segment(self, file: Any, row: dict[str, Any], cells: dict[str, Any]) -> dict[str, Any]:
        start = _number_or_cell(row["audio_start"], cells.get(self.columns.audio_start or ""))
        end = _number_or_cell(row["audio_end"], cells.get(self.columns.audio_end or ""))
        return {"path": file, "start": start, "end": None if end == math.inf else end}

    def _file(self, row: dict[str, Any], slot: str) -> Any:
        media = self.staged.media_of(row, slot)
        if media is not None and media.at == WHOLE:
            return Path(media.path)
        return media


def _number_or_cell(number: float | None, cell: Any) -> Any:
    """Return a staged number, or the table's cell if its text is no number."""
    return cell if number is not None and math.isnan(number) else number


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
        chosen = _choose(path, tables[0].columns, exported, given)
    single = {name: next(iter(chosen.get(name, ())), None) for name in (*SEGMENT, "audio", "id")}
    columns = ColumnOptions(
        text=tuple(chosen.get("text", ())),
        image=tuple(chosen.get("image", ())),
        audio=single["audio"],
        id=single["id"],
        numbers=tuple(name for name in chosen.get("numbers", ()) if name in tables[0].columns),
        audio_start=single["audio-start"] if single["audio"] else None,
        audio_end=single["audio-end"] if single["audio"] else None,
        text_pair=next(iter(chosen.get(PAIR, ())), None) if "text" in chosen else None,
    )
    staged = stage(tables, columns, None, scratch, None)
    is_pair = TEXT_SECOND in exported.data.columns
    yield InputTable(tables[0], staged, columns, tuple(chosen.get("numbers", ())), is_pair)


def _choose(
    path: Path, existing: list[str], exported: Exported, given: Columns
) -> dict[str, list[str]]:
    """Return the columns of a table. One that the table lacks is absent from all samples.

    A table may lack some of the columns of `numbers`.

    Raises:
        ConfigError: a given column does not exist, or none exists.
    """
    wanted = input_columns(exported)
    wanted |= {name: [name] for name in given if name not in wanted}
    chosen: dict[str, list[str]] = {}
    for name, specs in wanted.items():
        if name in given:
            for spec in given[name]:
                columns_of(spec, existing, f"--column {name}=")
            chosen[name] = list(given[name])
        elif name == "numbers" and any(spec in existing for spec in specs):
            chosen[name] = specs
        elif found := _existing(name, specs, existing):
            chosen[name] = found
    if not any(name in chosen for name in MODALITIES):
        names = ", ".join(spec for name in MODALITIES for spec in wanted.get(name, []))
        raise ConfigError(
            f"{path} has none of the columns {names}; it has {', '.join(existing)}. Name the "
            "columns with --column NAME=COLUMN"
        )
    return chosen


def _existing(name: str, specs: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Return the columns or templates that the table has, else the column `name`."""
    try:
        for spec in specs:
            columns_of(spec, columns, name)
    except ConfigError:
        return [name] if name in columns else []
    return list(specs)


def sample_of(fields: dict[str, Any], columns: Columns) -> dict[str, Any]:
    """Take modality -> text, path or numbers, and `id`, from a JSON object with a pack's columns.

    The name of a modality is also a key. All other keys are left out.
    """
    sample = {}
    for name, specs in columns.items():
        if name == "numbers":
            if any(spec in fields for spec in (name, *specs)):
                sample[name] = _numbers_in(fields, specs)
            continue
        found = _existing(name, specs, list(fields))
        if not found:
            continue
        if name == "image":
            found = [found[len(found) // 2]]
        cells = [_cell(spec, fields) for spec in found]
        if len(cells) > 1 and all(cell is None or isinstance(cell, str) for cell in cells):
            cells = ["\n".join(cell for cell in cells if cell)]
        sample[name] = cells[0]
    return _combined(sample)


def _numbers_in(fields: dict[str, Any], specs: Sequence[str]) -> Any:
    """Return the value of the key `numbers`, or those of the columns in the order of the pack."""
    given = fields.get("numbers")
    if given is not None and ("numbers" not in specs or isinstance(given, dict | list)):
        return given
    row = [fields.get(spec) for spec in specs]
    return None if all(cell is None for cell in row) else row


def _combined(sample: dict[str, Any]) -> dict[str, Any]:
    """Join both texts of a pair, and a sound with its start and end."""
    others = {name: sample[name] for name in (PAIR, *SEGMENT) if name in sample}
    sample = {name: value for name, value in sample.items() if name not in others}
    text, audio = sample.get("text"), sample.get("audio")
    if PAIR in others and not isinstance(text, list):
        texts = [text, others[PAIR]]
        sample["text"] = None if texts == [None, None] else texts
    times = {key: others[name] for name, key in SEGMENT.items() if name in others}
    if times and isinstance(audio, str):
        sample["audio"] = {"path": audio} | times
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
