"""Make tables of folders and of lists of files: columns `path`, `folder`, `name` and `name_1` ...

Also read the class names that the Hugging Face Hub's files carry.
"""

import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.table.options import split_of

IMAGES = (
    ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".ppm", ".avif",
)  # fmt: skip
SOUNDS = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".opus", ".m4a")
MAX_PARTS = 12  # of a name


def list_media(folder: Path) -> pl.DataFrame:
    """List the image and sound files of a folder and its subfolders, in the order of their names.

    The column `split` is there if the folders at the top are splits, such as `train` and `test`.

    Raises:
        ConfigError: there is none.
    """
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        inside = Path(place).relative_to(folder)
        for name in files:
            if name.lower().endswith((*IMAGES, *SOUNDS)) and not name.startswith("."):
                found.append(PurePosixPath(inside / name).as_posix())
    if not found:
        raise ConfigError(
            f"folder {folder} has no table, no tar shards and no image or sound files. Give "
            "--source FILE"
        )
    frame = _with_parts(sorted(found))
    tops = [split_of(PurePosixPath(path).parts[0]) for path in frame["path"]]
    if None in tops or len(set(tops)) == 1:
        return frame
    return frame.with_columns(pl.Series("split", tops))


def read_list(path: Path) -> pl.DataFrame:
    """Read a text file with one path per line, with or without an ending such as .jpg.

    Raises:
        ConfigError: it has no lines.
    """
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    if not any(lines):
        raise ConfigError(f"{path} has no lines: wanted one path per line")
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
