"""Open the files of a table: CSV, TSV, JSON lines, Parquet, Arrow, lists, folders and tar shards.

A table is a polars `LazyFrame`, so large files are never in memory as a whole.
"""

import codecs
import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl
import xxhash

from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.data.table.options import SourceOptions, split_of
from furnace_hpc.data.table.sources import folders, shards
from furnace_hpc.host.regular_file import check_regular

TEXT_KINDS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
KINDS = (*TEXT_KINDS, *JSON_LINES, ".json", ".parquet", ".arrow", ".txt", ".tar", ".tar.gz", ".tgz")
SPREADSHEETS = (".xlsx", ".xls", ".ods", ".numbers")
BLOCK = 1 << 22
SNIFFED = 1 << 16  # bytes of the first line that are searched for the separator
READ_AGAIN = "download or write the file again"


@dataclass(frozen=True)
class Table:
    """One file of a table, or a folder."""

    path: Path
    frame: pl.LazyFrame
    root: Path
    """Folder to which paths in the table are relative."""
    files: tuple[Path, ...]
    """Files that hold the rows. Their contents identify the table."""
    split: str | None = None
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Column of whole numbers -> names of the classes 0, 1, ..., from the file's metadata."""
    notes: tuple[str, ...] = ()
    name: str = ""
    """Differs from the names of all other tables. Messages and ids use it."""

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return self.frame.collect_schema().names()


def open_tables(options: SourceOptions, scratch: Path) -> list[Table]:
    """Open all sources.

    Args:
        options: the files, in the order of the pack.
        scratch: folder for files that must be converted first.

    Raises:
        ConfigError: a file is missing or damaged, or the files have different columns.
    """
    listed: list[tuple[str | None, str]] = [(None, given) for given in options.files]
    listed += [(split, given) for split, files in options.split_files.items() for given in files]
    tables = []
    for split, given in listed:
        for table in _open_all(given, options, scratch):
            tables.append(_with_columns(table, split, options.path_pattern))
    if options.media_root is not None:
        tables = [replace(table, root=options.media_root) for table in tables]
    _check_same_columns(tables)
    return [replace(table, name=name) for table, name in zip(tables, _names(tables), strict=True)]


def _open_all(given: str, options: SourceOptions, scratch: Path) -> Iterator[Table]:
    """Open a file or folder, or what a pattern matches. Images and sounds are rows of one table."""
    paths = _matches(given)
    if not Path(given).exists() and all(map(folders.is_media, paths)):
        folder, frame = folders.list_matches(given, paths)
        yield Table(folder, frame.lazy(), folder, ())
        return
    for path in paths:
        yield from _open(path, options, scratch)


def _with_columns(table: Table, split: str | None, path_pattern: str | None) -> Table:
    """Add the columns of the path, and the column `split` if an option gives it."""
    frame = table.frame
    if path_pattern is not None:
        frame = folders.with_pattern(frame, path_pattern, table.path)
    if split is not None and "split" not in table.columns:
        frame = frame.with_columns(pl.lit(split).alias("split"))
    return replace(table, frame=frame, split=split or table.split)


def _names(tables: list[Table]) -> list[str]:
    """Return the files' names, with as many of their folders as make them differ."""
    paths = [table.path.absolute().parts for table in tables]
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    raise ConfigError("a file is given twice. Give each file once")


def _matches(given: str) -> list[Path]:
    """Return the file, or the files that a pattern matches, in the order of their names."""
    path = Path(given)
    if path.exists():
        return [path]
    found = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    if not found:
        names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = nearest(path.name, names) if len(names) < 50 else "check the path"
        raise ConfigError(f"{given} does not exist; {hint}")
    return found


def _open(path: Path, options: SourceOptions, scratch: Path) -> list[Table]:
    with readable(path):
        if path.is_dir():
            return _open_folder(path, options, scratch)
        check_regular(path)
        kind = kind_of(path)
        if path.stat().st_size == 0:
            raise ConfigError(f"{path} is empty: {READ_AGAIN}")
        return [_open_file(path, kind, options, scratch)]


def _open_folder(path: Path, options: SourceOptions, scratch: Path) -> list[Table]:
    if (path / "dataset_dict.json").is_file():
        names = json.loads((path / "dataset_dict.json").read_bytes())["splits"]
        return [
            table
            for name in names
            for table in _saved_dataset(path / str(name), split_of(str(name)))
        ]
    if (path / "state.json").is_file():
        return _saved_dataset(path, None)
    inner = [
        file
        for file in sorted(path.rglob("*"))
        if file.suffix in (".parquet", ".tar") and file.is_file()
    ]
    if inner:
        tables = [_open_file(file, kind_of(file), options, scratch) for file in inner]
        return [replace(table, split=_split_in_name(table.path)) for table in tables]
    kinds = (*TEXT_KINDS, *JSON_LINES)
    lists = sorted(file for file in path.iterdir() if file.suffix.lower() in kinds)
    hint = ", ".join(f"--source {file}" for file in lists[:3])
    frame = folders.list_media(path, f"Give {hint or '--source FILE'}")
    notes = (f"the images and sounds of {path} are packed. For its tables give {hint}",)
    return [Table(path, frame.lazy(), path, (), notes=notes if lists else ())]


def _split_in_name(path: Path) -> str | None:
    """Return the split in a name such as `validation-00000-of-00002.parquet`."""
    return split_of(path.name.partition("-")[0].partition(".")[0])


def kind_of(path: Path) -> str:
    """Return the ending that decides how a file is read.

    Raises:
        ConfigError: it is none of the known ones.
    """
    name = path.name.lower()
    for kind in KINDS:
        if name.endswith(kind):
            return kind
    if path.suffix.lower() in SPREADSHEETS:
        raise ConfigError(
            f"{path} is a spreadsheet. Save it as CSV UTF-8 in the spreadsheet program"
        )
    raise ConfigError(f"{path} is not a table: wanted a file that ends in {', '.join(KINDS)}")


def _open_file(path: Path, kind: str, options: SourceOptions, scratch: Path) -> Table:
    class_names: dict[str, tuple[str, ...]] = {}
    notes: tuple[str, ...] = ()
    if kind in TEXT_KINDS:
        frame, notes = _open_text(path, TEXT_KINDS[kind], options, scratch)
    elif kind in JSON_LINES:
        frame = pl.scan_ndjson(path, infer_schema_length=None)
    elif kind == ".json":
        frame = pl.read_json(path, infer_schema_length=None).lazy()
    elif kind == ".parquet":
        frame = pl.scan_parquet(path)
        class_names = folders.class_names_of(pl.read_parquet_metadata(path).get("huggingface"))
    elif kind == ".arrow":
        frame = _open_arrow(path)
    elif kind == ".txt":
        frame = folders.read_list(path).lazy()
    else:
        frame = shards.index_shard(path, scratch).lazy()
    if not frame.collect_schema().names():
        raise ConfigError(f"{path} has no columns: {READ_AGAIN}")
    return Table(path, frame, path.parent, (path,), None, class_names, notes)


def _open_arrow(path: Path) -> pl.LazyFrame:
    with path.open("rb") as file:
        is_file_format = file.read(6) == b"ARROW1"
    if is_file_format:
        return pl.scan_ipc(path)
    return pl.read_ipc_stream(path).lazy()


def _saved_dataset(folder: Path, split: str | None) -> list[Table]:
    """Open a folder that `datasets.save_to_disk` has written."""
    state = json.loads((folder / "state.json").read_bytes())
    info_file = folder / "dataset_info.json"
    info = info_file.read_text(encoding="utf-8") if info_file.is_file() else None
    names = folders.class_names_of(json.dumps({"info": json.loads(info)}) if info else None)
    tables = []
    for entry in state["_data_files"]:
        path = folder / entry["filename"]
        if not path.is_file():
            raise ConfigError(f"{path} is missing, but {folder / 'state.json'} lists it")
        tables.append(Table(path, _open_arrow(path), folder, (path,), split, names))
    if not tables:
        raise ConfigError(f"{folder / 'state.json'} lists no files: write the data set again")
    return tables


def _open_text(
    path: Path, default: str, options: SourceOptions, scratch: Path
) -> tuple[pl.LazyFrame, tuple[str, ...]]:
    """Open a CSV with every cell as text, so that `007` stays `007`."""
    with path.open("rb") as file:
        head = file.read(SNIFFED)
    notes = []
    encoding = options.encoding or _encoding_of(head)
    read = path
    if encoding.lower() not in ("utf-8", "utf8", "utf-8-sig"):
        read = _as_utf8(path, encoding, scratch)
        notes.append(f"{path.name}: read as {encoding}")
        head = read.open("rb").read(SNIFFED)
    separator = _separator_of(head, default)
    if separator != default:
        notes.append(f"{path.name}: columns are separated by {separator!r}")
    _check_header(path, head, separator)
    frame = pl.scan_csv(read, separator=separator, infer_schema=False)
    return frame, tuple(notes)


def _encoding_of(head: bytes) -> str:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    return "utf-8"


def _as_utf8(path: Path, encoding: str, scratch: Path) -> Path:
    """Write a copy in UTF-8.

    Raises:
        ConfigError: the file has another encoding.
    """
    copy = scratch / f"{xxhash.xxh3_64_hexdigest(str(path).encode())}.csv"
    try:
        with (
            path.open(encoding=encoding, newline="") as source,
            copy.open("w", encoding="utf-8", newline="") as out,
        ):
            while block := source.read(BLOCK):
                out.write(block)
    except (LookupError, UnicodeError) as error:
        raise ConfigError(f"{path} is not {encoding} ({error}). Give its --encoding") from None
    return copy


def _separator_of(head: bytes, default: str) -> str:
    """Return the character that separates the columns of the first line."""
    line = head.decode("utf-8-sig", errors="replace").split("\n", 1)[0]
    quoted, counts = False, dict.fromkeys((default, ",", ";", "\t", "|"), 0)
    for character in line:
        quoted ^= character == '"'
        if not quoted and character in counts:
            counts[character] += 1
    best = max(counts, key=counts.__getitem__)
    return best if counts[best] > counts[default] else default


def _check_header(path: Path, head: bytes, separator: str) -> None:
    """Raise ConfigError if two columns have the same name."""
    line = head.decode("utf-8-sig", errors="replace").split("\n", 1)[0]
    names = next(csv.reader([line.rstrip("\r")], delimiter=separator), [])
    if double := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"{path} has two columns {double!r}. Rename one of them")


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn errors of polars and of the file system into one line that names the file."""
    try:
        yield
    except ConfigError:
        raise
    except pl.exceptions.PolarsError as error:
        raise ConfigError(f"{path} cannot be read ({_first_line(error)}): {_hint(error)}") from None
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"{path} cannot be read ({_first_line(error)}): {READ_AGAIN}") from None


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip()[:200] if lines else type(error).__name__


def _hint(error: Exception) -> str:
    text = str(error)
    if "utf-8" in text.lower() or "utf8" in text.lower():
        return "save it as CSV UTF-8, or give its encoding, such as --encoding cp1252"
    if "more fields than" in text:
        return "a row has more cells than the header. Put cells with separators in quotes"
    return READ_AGAIN


def _check_same_columns(tables: list[Table]) -> None:
    """Raise ConfigError if a file lacks a column of the first file."""
    if not tables:
        raise ConfigError("no file is given. Give --source FILE, or --train, --val and --test")
    first = set(tables[0].columns)
    for table in tables[1:]:
        if missing := first - set(table.columns):
            raise ConfigError(
                f"{table.path} has no column {min(missing)!r}, which {tables[0].path} has. Give "
                "files with the same columns"
            )


def content_of(tables: list[Table]) -> dict[str, str]:
    """Return file -> hash of its content. A folder of media has the hash of its listing."""
    found = {}
    for table in tables:
        for path in table.files:
            digest = xxhash.xxh3_128()
            with path.open("rb") as file:
                while block := file.read(BLOCK):
                    digest.update(block)
            found[str(path.relative_to(path.parent))] = digest.hexdigest()
        if not table.files:
            listing = table.frame.collect().write_ndjson()
            found[table.path.name] = xxhash.xxh3_128_hexdigest(listing.encode())
    return found
