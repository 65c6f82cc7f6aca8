"""Read the files that list a set's samples. Errors name the wrong row."""

import codecs
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xxhash

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.host.regular_file import read_regular


def read_json_file(path: Path) -> Any:
    """Parse a JSON file of any size.

    Raises:
        ConfigError: it is missing, no regular file or not JSON.
    """
    try:
        return json.loads(read_regular(path, at_most=None))
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing: check --source") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder, wanted a JSON file") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): check --source") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON ({error}): download it again") from None


def decoded(content: bytes) -> str:
    """Decode a list: UTF-8, or UTF-16 with a byte-order mark, as spreadsheet programs write it.

    Raises:
        UnicodeDecodeError: it is neither.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    return content.decode("utf-8-sig")


def fingerprint_of(rows: Any) -> str:
    """Return a hash of the listed rows in their order, 16 hexadecimal digits."""
    return xxhash.xxh3_64_hexdigest(json.dumps(rows, sort_keys=True, default=_plain).encode())


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        return value.item()
    return list(value)


def check_disjoint(splits: dict[str, Iterable[str]]) -> None:
    """Raise ConfigError if an id is in two splits."""
    seen: dict[str, str] = {}
    for split, ids in splits.items():
        for sample in ids:
            if seen.setdefault(sample, split) != split:
                raise ConfigError(
                    f"sample {sample!r} is in {seen[sample]} and in {split}: remove one of them"
                )
