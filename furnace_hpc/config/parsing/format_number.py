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
        if is_format and _is_newer(problem["input"], problem["ctx"]["expected"]):
            raise ConfigError(
                f"{path} has format {problem['input']}, and this Furnace reads format "
                f"{problem['ctx']['expected']}. Use the newer Furnace that wrote it"
            ) from None


def _is_newer(number: Any, known: str) -> bool:
    """Whether a number is above all known ones, which pydantic lists as `1` or `1 or 2`."""
    return isinstance(number, int) and number > max(map(int, re.findall(r"\d+", known)))
