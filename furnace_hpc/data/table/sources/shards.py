"""Index WebDataset's tar shards: files with the same name before the first dot are one sample.

Media stay in the tar file. Their place is recorded, so that a worker reads only its own samples.
"""

import gzip
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import polars as pl
import xxhash

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.table.sources.folders import IMAGES, SOUNDS

TEXTS = ("txt", "text", "caption", "cls", "cls2", "label", "id")
MAX_TEXT_BYTES = 10_000_000


def index_shard(path: Path, scratch: Path) -> pl.DataFrame:
    """Return a row for each sample, with a column for each kind of file and each key of its JSON.

    Raises:
        ConfigError: it is not a tar file, or it ends too early.
    """
    if path.name.endswith(("gz", "tgz")):
        path = _unpacked(path, scratch)
    rows: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                if member.isfile():
                    _add(rows, shard, member, path)
    except tarfile.TarError as error:
        raise ConfigError(
            f"{path} is not a complete tar file ({error}): download it again"
        ) from None
    if not rows:
        raise ConfigError(f"{path} holds no files: download it again")
    return pl.DataFrame(list(rows.values()), infer_schema_length=None)


def _unpacked(path: Path, scratch: Path) -> Path:
    copy = scratch / f"{xxhash.xxh3_64_hexdigest(str(path.resolve()).encode())}.tar"
    with gzip.open(path) as source, copy.open("wb") as out:
        shutil.copyfileobj(source, out)
    return copy


def _add(
    rows: dict[str, dict[str, Any]], shard: tarfile.TarFile, member: tarfile.TarInfo, path: Path
) -> None:
    folder, _, file = member.name.rpartition("/")
    stem, _, ending = file.partition(".")
    key = f"{folder}/{stem}".lstrip("/")
    row = rows.setdefault(key, {"__key__": key})
    kind = f".{ending.lower().rpartition('.')[2]}"
    if kind in IMAGES or kind in SOUNDS:
        name = "image" if kind in IMAGES else "audio"
        if "." in ending:  # such as 000.left.png
            name = ending.rpartition(".")[0]
        row[name] = {
            "tar": str(path.resolve()),
            "offset": member.offset_data,
            "size": member.size,
            "path": member.name,
        }
        return
    if member.size > MAX_TEXT_BYTES or ending.lower() not in (*TEXTS, "json"):
        return
    opened = shard.extractfile(member)
    assert opened is not None
    content = opened.read().decode("utf-8-sig")
    if ending.lower() == "json":
        fields = json.loads(content)
        if not isinstance(fields, dict):
            raise ConfigError(f"{path}: {member.name} is not a JSON object")
        row |= {name: _plain(value) for name, value in fields.items() if name not in row}
        return
    row[ending.lower()] = content.strip()


def _plain(value: Any) -> Any:
    """Return a value that fits into a column: lists stay, objects become JSON."""
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True)
    if isinstance(value, list):
        return [str(entry) for entry in value]
    return value
