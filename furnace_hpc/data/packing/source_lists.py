"""Reading the files that list a set's samples. What is wrong there is an error that names the row."""

import codecs
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xxhash

from furnace_hpc.config.errors import ConfigError


def read_json_file(path: Path) -> Any:
    """Parse a JSON file of any size.

    Raises:
        ConfigError: it is missing or no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing: look at --source") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder, wanted a JSON file") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON ({error}): fetch it again") from None


def decoded(content: bytes) -> str:
    """The text of a list: UTF-8 with or without a byte-order mark, or UTF-16 with one, as spreadsheets write it.

    Raises:
        UnicodeDecodeError: it is neither.
    """
    return content.decode(
        "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    )


def fingerprint_of(rows: Any) -> str:
    """16 hexadecimal digits over what is listed, in its order."""
    return xxhash.xxh3_64_hexdigest(json.dumps(rows, sort_keys=True, default=_plain).encode())


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else list(value)


def check_disjoint(splits: dict[str, Iterable[str]]) -> None:
    """Raise ConfigError where an id stands in two splits."""
    seen: dict[str, str] = {}
    for split, ids in splits.items():
        for sample in ids:
            if seen.setdefault(sample, split) != split:
                raise ConfigError(
                    f"sample {sample!r} is in {seen[sample]} and in {split}: the split files overlap"
                )
