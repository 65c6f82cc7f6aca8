r"""Text from elsewhere, made harmless for each format that a table is written in. latex.py does the same for LaTeX.

Names, descriptions, metrics, settings, hosts, errors and paths may come from a foreign file. In every format control
characters, lone surrogates and marks that reverse the writing direction stand as escapes, such as `\x1b`.
"""

import re
from html import escape
from math import isfinite
from typing import Any

from furnace_hpc.config.parsing.text_safety import printable

_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?")
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]")  # ASCII and full-width
_MARKDOWN = re.compile(
    r"[\\|*<`]"  # escapes, cells, emphasis, HTML, code
    r"|~(?=~)|(?<=~)~"  # struck out
    r"|(?<![^\W_])_|_(?![^\W_])"  # emphasis; between two letters or digits it is none
    r"|(?<=!)\[|(?<=\])[\[(:]"  # images, links, and what a link means
    r"|&(?=#?\w+;)"  # a character by its name or number
    # addresses that become links by themselves
    r"|(?<=www)\.|(?<=[A-Za-z]):(?=//)|(?<=mailto):|(?<=xmpp):",
    re.IGNORECASE,
)


def one_line(text: str) -> str:
    """The text on one line, each gap one space, and nothing in it that is no visible character."""
    return printable(" ".join(text.split()))


def csv_cell(value: Any) -> Any:
    r"""A value for a cell of CSV. Numbers, and text that is one number such as `-0.5`, stay as they are.

    Text that a spreadsheet would run as a formula gets a leading `'`, as OWASP advises: text that begins with one of
    `= + - @`. So does each part behind a `;`, where spreadsheets of some countries begin a new cell, and each line.
    Control characters but the line feed stand as escapes, so no tab or CR can begin a cell either.
    """
    if not isinstance(value, str):
        return value
    return "".join(
        part if part in "\n;" else _no_formula(printable(part))
        for part in re.split("([;\n])", value)
    )


def _no_formula(text: str) -> str:
    if _FORMULA.match(text) and not _NUMBER.fullmatch(text.strip()):
        gap = len(text) - len(text.lstrip())
        return f"{text[:gap]}'{text[gap:]}"
    return text


def markdown(text: str) -> str:
    """The text for a line or a cell of Markdown: no HTML, no image, no link, no emphasis."""
    return _MARKDOWN.sub(lambda found: f"\\{found.group()}", one_line(text))


def html(text: str) -> str:
    """The text between tags, or in a quoted attribute, of HTML."""
    return escape(one_line(text))


def json_value(value: Any) -> Any:
    """Data for JSON with all text on one line, and None for numbers that JSON lacks."""
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, dict):
        return {one_line(key): json_value(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(inner) for inner in value]
    return None if isinstance(value, float) and not isfinite(value) else value
