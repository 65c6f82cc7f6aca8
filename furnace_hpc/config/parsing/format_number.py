"""Format numbers of files on disk. docs/releasing.md says when a number changes."""

import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from furnace_hpc.config.errors import ConfigError


def check_not_newer(path: Path, error: ValueError) -> None:
    """Raise ConfigError if a file cannot be read because a newer Furnace wrote it.

    Args:
        path: the file.
        error: why it cannot be read.
    """
    if not isinstance(error, ValidationError):
        return
    for problem in error.errors(include_url=False):
        is_format = problem["type"] == "literal_error" and problem["loc"][-1:] == ("format",)
        if is_format:
            check_number(path, problem["input"], problem["ctx"]["expected"])


def check_number(path: Path, number: Any, known: str) -> None:
    """Raise ConfigError if the format number of a file is above all known ones.

    Args:
        path: the file.
        number: its number.
        known: the known numbers, such as `1` or `1 or 2`.
    """
    if _is_newer(number, known):
        raise ConfigError(
            f"{path} has format {number}, and this Furnace reads format {known}. Use the newer "
            f"Furnace that wrote it"
        ) from None


def _is_newer(number: Any, known: str) -> bool:
    """Whether a number is above all known ones, which pydantic lists as `1` or `1 or 2`."""
    return isinstance(number, int) and number > max(map(int, re.findall(r"\d+", known)))
