"""Read numbers as people type them. An error says what to write instead."""

import re

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.text_safety import short

_CLOCK = re.compile(r"(?:([0-9]{1,6})-)?([0-9]{1,6})(?::([0-9]{1,2}))?(?::([0-9]{1,2}))?")
_SECONDS = {"s": 1, "min": 60, "hours": 3600}  # by the end of a field's name
_UNITS = {"s": "seconds", "min": "minutes", "hours": "hours"}
_LEADING_ZEROS = re.compile(r"([-+]?)0+([0-9]+)")
# Text of a missing number or label. None is not in the list, because it may be a class.
MISSING = ("nan", "NaN", "NAN", "null", "NULL", "<NA>")


def wanted_number(name: str, value: object) -> str:
    """Say what to write in place of text, or of true or false, in a field that wants a number."""
    unit = name.rsplit("_", 1)[-1]
    wanted = "wanted a number"
    if unit in _UNITS:
        wanted += f" of {_UNITS[unit]}"
    if not isinstance(value, str):
        return wanted
    if unit in _UNITS and re.search(r"[0-9][:-][0-9]", value):
        seconds = _slurm_seconds(value)
        if seconds is None:
            return f"{wanted}, without `:` and `-`"
        return f"{wanted}. Write {seconds / _SECONDS[unit]:g}"
    if found := _LEADING_ZEROS.fullmatch(value):
        return f"{wanted}. Write {found[1]}{found[2]}, without leading zeros"
    if re.search(r"[0-9]:[0-9]", value):
        return f"{wanted}, without `:`"
    if re.fullmatch(r"[-+]?[0-9]+(\.[0-9]+)?", value):
        return f"{wanted}. Write {value}, without quotes"
    return wanted


def _slurm_seconds(text: str) -> int | None:
    """Seconds of `h:min:s`, `d-h`, `d-h:min` or `d-h:min:s`.

    None if it has another form, or the form `a:b`, which can be h:min or min:s.
    """
    found = _CLOCK.fullmatch(text)
    if not found or (found[1] is None and found[4] is None):
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def whole_number(text: str | int) -> int:
    """Read a number of the command line by the rules of a grid's file: 010 is not a number.

    Raises:
        ConfigError: it is not a whole number of 0 or more.
    """
    if isinstance(text, int):  # typer parses the default of an option too
        return text
    if not re.fullmatch(r"0|[1-9][0-9]*(_[0-9]+)*", text) or len(text) > 18:
        found = _LEADING_ZEROS.fullmatch(text)
        fix = f". Write {found[2]}, without leading zeros" if found else ""
        raise ConfigError(f"got {short(text)!r}, wanted a whole number{fix}")
    return int(text)


def number_of_text(text: str) -> float:
    """Parse a number of a table: `1.5`, `1,5` or `1.234,5`.

    Raises:
        ValueError: it is no number.
    """
    text = text.strip()
    if re.fullmatch(r"[+-]?[\d.]*,\d+", text):
        text = text.replace(".", "").replace(",", ".")
    if "_" in text:  # Python allows it between digits
        raise ValueError(f"{text!r} is no number")
    return float(text)
