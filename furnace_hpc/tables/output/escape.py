r"""Escape untrusted text for each format of a table. latex.py does it for LaTeX.

Names, descriptions, metrics, settings, hosts, errors and paths may come from untrusted files. In
every format control characters, lone surrogates and marks that reverse the writing direction are
escaped, such as `\x1b`.
"""

import re
from functools import lru_cache
from html import escape
from math import isfinite
from typing import Any

from furnace_hpc.config.parsing.text_safety import printable

_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?")
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]")  # ASCII and full-width
_MARKDOWN = re.compile(
    r"[\\|*<`]"  # escapes, cells, emphasis, HTML, code
    r"|~(?=~)|(?<=~)~"  # strikethrough
    r"|(?<![^\W_])_|_(?![^\W_])"  # emphasis, unless it is between two letters or digits
    r"|(?<=!)\[|(?<=\])[\[(:]"  # images, links, link definitions
    r"|&(?=#?\w+;)"  # character references
    # addresses that become links without markup
    r"|(?<=www)\.|(?<=[A-Za-z]):(?=//)|(?<=mailto):|(?<=xmpp):",
    re.IGNORECASE,
)


def one_line(text: str) -> str:
    """The text on one line, with single spaces and visible characters only."""
    # most texts: fast, and with the same result
    if text.isprintable() and "  " not in text and len(text.strip()) == len(text):
        return text
    return printable(" ".join(text.split()))


def csv_cell(value: Any) -> Any:
    r"""A value for a cell of CSV.

    Numbers, and texts that are one number such as `-0.5`, do not change.

    A text that a spreadsheet would run as a formula gets a leading `'`, as OWASP advises. Such a
    text begins with `=`, `+`, `-` or `@`. Each line is treated in the same way. So is each part
    after a semicolon, because it begins a new cell in the spreadsheets of some countries. Control
    characters except the line feed are escaped, so no tab or CR can begin a cell.
    """
    if not isinstance(value, str):
        return value
    # most texts: fast, and with the same result
    if value[:1].isalnum() and ";" not in value and value.isprintable():
        return value
    parts = re.split("([;\n])", value)  # texts and separators in turn
    parts[::2] = [_no_formula(printable(part)) for part in parts[::2]]
    return "".join(parts)


def _no_formula(text: str) -> str:
    if _FORMULA.match(text) and not _NUMBER.fullmatch(text.strip()):
        gap = len(text) - len(text.lstrip())
        return f"{text[:gap]}'{text[gap:]}"
    return text


@lru_cache(maxsize=10_000)  # cells of a long table have few different numbers
def markdown(text: str) -> str:
    """The text for a line or cell of Markdown, without HTML, images, links or emphasis."""
    return _MARKDOWN.sub(lambda found: f"\\{found.group()}", one_line(text))


def html(text: str) -> str:
    """The text for HTML, between tags or in a quoted attribute."""
    return escape(one_line(text))


def json_value(value: Any) -> Any:
    """Data for JSON, with all texts on one line, and None for NaN and infinite numbers."""
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, dict):
        return {one_line(key): json_value(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(inner) for inner in value]
    if isinstance(value, float) and not isfinite(value):
        return None
    return value
