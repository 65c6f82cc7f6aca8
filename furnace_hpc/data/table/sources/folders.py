"""Make tables of folders and of lists of files: columns `path`, `folder`, `name` and `name_1` ...

Also read the class names that the Hugging Face Hub's files carry.
"""

import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.packing.source_lists import decoded
from furnace_hpc.data.table.options import split_of

IMAGES = (
    ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".ppm", ".avif",
)  # fmt: skip
SOUNDS = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".opus", ".m4a")
MAX_PARTS = 12  # of a name
TABLE_LINES = 20  # of a list of paths that are searched for separators of columns


def list_media(folder: Path, hint: str) -> pl.DataFrame:
    """List the image and sound files of a folder and its subfolders, in the order of their names.

    The column `split` is there if the folders at the top are splits, such as `train` and `test`.

    Raises:
        ConfigError: there is none. `hint` says what to do.
    """
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        inside = Path(place).relative_to(folder)
        for name in files:
            if is_media(Path(name)) and not name.startswith("."):
                found.append(PurePosixPath(inside / name).as_posix())
    if not found:
        raise ConfigError(
            f"folder {folder} has no Parquet files, tar shards, images or sounds. {hint}"
        )
    frame = _with_parts(sorted(found))
    tops = [split_of(PurePosixPath(path).parts[0]) for path in frame["path"]]
    if None in tops or len(set(tops)) == 1:
        return frame
    return frame.with_columns(pl.Series("split", tops))


def is_media(path: Path) -> bool:
    """Return whether a file has the ending of an image or a sound."""
    return path.name.lower().endswith((*IMAGES, *SOUNDS))


def list_matches(pattern: str, files: list[Path]) -> tuple[Path, pl.DataFrame]:
    """Return the folder before the first wildcard, and a row for each file with its path in it."""
    parts = Path(pattern).parts
    first = next(number for number, part in enumerate(parts) if set(part) & set("*?["))
    folder = Path(*parts[:first])
    return folder, _with_parts([file.relative_to(folder).as_posix() for file in files])


def with_pattern(frame: pl.LazyFrame, pattern: str, place: Path) -> pl.LazyFrame:
    """Add a column for each named group of a regular expression, which all paths must match.

    Raises:
        ConfigError: it is malformed, has no named group, or a path does not match.
    """
    columns = frame.collect_schema().names()
    if "path" not in columns:
        raise ConfigError(
            f"--path-pattern needs a column 'path', which {place} lacks. Give it for a folder, a "
            "pattern of files or a list of paths"
        )
    try:
        groups = pl.col("path").str.extract_groups(pattern)
        found = pl.DataFrame({"path": [""]}).select(groups).to_series()
    except pl.exceptions.PolarsError as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"--path-pattern {pattern!r} is not a regular expression: {reason}"
        ) from None
    names = [name for name in found.struct.fields if not name.isdigit()]
    if not names or (double := [name for name in names if name in columns]):
        problem = f"names the column {double[0]!r} again" if names else "has no named group"
        raise ConfigError(
            f"--path-pattern {pattern!r} {problem}. Name its groups, such as (?P<actor>[0-9]+)"
        )
    other = frame.filter(~pl.col("path").str.contains(pattern)).select("path").collect()
    if len(other):
        raise ConfigError(
            f"--path-pattern {pattern!r} does not match {other['path'][0]!r} ({len(other):,} "
            f"paths in all). Correct it, or choose the files with a pattern in --source"
        )
    return frame.with_columns(groups.struct.field(name).alias(name) for name in names)


def read_list(path: Path) -> pl.DataFrame:
    """Read a text file with one path per line, with or without an ending such as .jpg.

    Raises:
        ConfigError: it has no lines, or is a table.
    """
    lines = [line.strip() for line in decoded(path.read_bytes()).splitlines()]
    if not any(lines):
        raise ConfigError(f"{path} has no lines: wanted one path per line")
    for separator, kind in (("\t", ".tsv"), (";", ".csv"), (",", ".csv")):
        is_table = all(separator in line for line in lines[:TABLE_LINES] if line)
        if is_table and not any(is_media(Path(line)) for line in lines):
            raise ConfigError(
                f"{path} is read as a list of paths, but its lines have several columns, with "
                f"{separator!r} between them. Rename it to {path.stem}{kind}"
            )
    return _with_parts([line for line in lines if line])


def _with_parts(paths: list[str]) -> pl.DataFrame:
    """Return the columns `path`, `folder` and `name`, and the parts of the name between `_`.

    The parts are only given if all names have the same number of them.
    """
    pure = [PurePosixPath(path) for path in paths]
    names = [path.stem if path.suffix.lower() in (*IMAGES, *SOUNDS) else path.name for path in pure]
    columns: dict[str, list[str]] = {
        "path": paths,
        "folder": [path.parent.name for path in pure],
        "name": names,
    }
    parts = [name.split("_") for name in names]
    lengths = {len(part) for part in parts}
    if len(lengths) == 1 and 1 < max(lengths) <= MAX_PARTS:
        for number in range(max(lengths)):
            columns[f"name_{number + 1}"] = [part[number] for part in parts]
    return pl.DataFrame(columns)


def class_names_of(metadata: str | None) -> dict[str, tuple[str, ...]]:
    """Return column -> names of its classes, from the metadata that `datasets` writes."""
    try:
        features: Any = json.loads(metadata or "{}")["info"]["features"]
        return {
            column: tuple(str(name) for name in feature["names"])
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
