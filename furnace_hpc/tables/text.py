"""Format values of a config, lists of names and counts."""

import json
import re
import unicodedata
from collections.abc import Sequence

from furnace_hpc.config.parsing.text_safety import printable

WORDS = {True: "on", False: "off", None: "none"}
MAX_NAMES = 5  # of one list
DASH = "\u2013"  # of a missing value


def format_value(value: object) -> str:
    """Format a value of a config, for rows, `--where` and CSV cells.

    Two different values never have the same text. A number has the fewest digits that read back as
    the same number: `0.5`, `0.001234561`. A text that would read as another value is quoted.
    """
    if isinstance(value, bool) or value is None:
        return WORDS[value]
    if isinstance(value, list):
        return "+".join(_format_item(item) for item in value)
    if isinstance(value, float):
        return _format_float(value)
    text = str(value)
    if not isinstance(value, str) or (text.isprintable() and not _is_ambiguous(text)):
        return text
    return printable(json.dumps(text, ensure_ascii=not text.isprintable()))


def format_number(value: float | None, form: str) -> str:
    """Format a number. A missing one is a dash."""
    if value is None:
        return DASH
    return format(value, form)


def percent(value: float | None) -> float | None:
    """A share in percent."""
    return None if value is None else 100 * value


def as_number(text: str) -> float | None:
    """The number that a text is. None if it is no number."""
    try:
        return float(text)
    except ValueError:
        return None


def list_names(names: Sequence[str], separator: str = ", ") -> str:
    """The first names, and the number of the others."""
    text = separator.join(names[:MAX_NAMES])
    if len(names) > MAX_NAMES:
        text += f" and {len(names) - MAX_NAMES} more"
    return text


def count(number: int, noun: str) -> str:
    """A number and its noun: `1 seed`, `1,000 seeds`."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun}s"


def wrap(text: str, width: int, max_lines: int = 4) -> list[str]:
    """Lines of at most `width` letters, broken after spaces and _ - = , where possible.

    A letter of East Asian width counts as two. A text that needs more lines ends in `…`.
    """
    lines = [""]
    for part in re.split(r"(?<=[-_=, ])", text):
        if lines[-1] and text_width(lines[-1] + part.rstrip()) > width:
            lines.append("")
        for letter in part:
            if lines[-1] and text_width(lines[-1] + letter.rstrip()) > width:
                lines.append("")
            lines[-1] += letter
    lines = [line.strip() for line in lines]
    if len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], f"{lines[max_lines - 1][: width - 1]}…"]
    return lines


def text_width(text: str) -> int:
    """Width in letters. A letter of East Asian width counts as two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _format_item(item: object) -> str:
    if "+" in str(item):  # the separator
        return json.dumps(item)
    return format_value(item)


def _format_float(value: float) -> str:
    short = f"{value + 0.0:g}"  # + 0.0 turns -0.0 into 0.0
    if float(short) == value:
        return short
    return repr(value)


def _is_ambiguous(text: str) -> bool:
    return text in WORDS.values() or as_number(text) is not None or '"' in text or ", " in text
