"""Hold the results of checks, and print them."""

import json
import subprocess
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from furnace_hpc.config.parsing.text_safety import printable

Level = Literal["ok", "warn", "fail"]
WIDTH, NAME_WIDTH = 80, 19
INDENT = 2 + 4 + 2 + NAME_WIDTH + 1  # of the text: margin, level, gap, name, gap
_COLOURS = {"ok": "32", "warn": "33", "fail": "31"}


@dataclass(frozen=True)
class Check:
    """The result of one check. `hint` says how to fix it, and is empty if it is ok."""

    name: str
    level: Level
    found: str
    hint: str = ""


def ok(name: str, found: str) -> Check:
    """A check that found no problem."""
    return Check(name, "ok", found)


def warn(name: str, found: str, hint: str) -> Check:
    """A check that found something to improve."""
    return Check(name, "warn", found, hint)


def fail(name: str, found: str, hint: str) -> Check:
    """A check that found a problem which stops runs."""
    return Check(name, "fail", found, hint)


@dataclass(frozen=True)
class Section:
    """The checks of one subject."""

    title: str
    checks: tuple[Check, ...]


def run_checks(title: str, *functions: Callable[[], Check | list[Check]]) -> Section:
    """Make a section of these checks. One that raises, or whose command hangs, is a warning."""
    checks: list[Check] = []
    for function in functions:
        try:
            found = function()
        except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
            name = getattr(function, "__name__", "a check").replace("_", " ")
            found = warn(name, f"not checked: {error}", "check it by hand")
        checks += found if isinstance(found, list) else [found]
    return Section(title, tuple(checks))


def page(sections: Sequence[Section], colour: bool) -> str:
    """Format all sections, aligned, in 80 columns."""
    lines = []
    for section in sections:
        lines += ["", section.title]
        for check in section.checks:
            lines += _lines(check, colour)
    return "\n".join(lines)


def as_json(sections: Sequence[Section]) -> str:
    """Format all sections for programs."""
    content = {
        "worst": worst(sections),
        "counts": count(sections),
        "sections": [asdict(section) for section in sections],
    }
    return json.dumps(content, indent=1)


def from_json(text: str, before: str = "") -> list[Section]:
    """Read the output of `furnace doctor --json`, with `before` in front of each title."""
    return [
        Section(before + section["title"], tuple(Check(**check) for check in section["checks"]))
        for section in json.loads(text)["sections"]
    ]


def count(sections: Iterable[Section]) -> dict[str, int]:
    """Count the checks of each level."""
    levels = [check.level for section in sections for check in section.checks]
    return {level: levels.count(level) for level in ("ok", "warn", "fail")}


def worst(sections: Iterable[Section]) -> Level:
    """The worst level of all checks."""
    counts = count(sections)
    if counts["fail"]:
        return "fail"
    return "warn" if counts["warn"] else "ok"


def _lines(check: Check, colour: bool) -> list[str]:
    level = f"{check.level:<4}"
    if colour:
        level = f"\x1b[{_COLOURS[check.level]}m{level}\x1b[0m"
    texts = _wrapped(check.found)
    if check.hint:
        texts += _wrapped(f"-> {check.hint}")
    first = f"  {level}  {check.name:<{NAME_WIDTH}} {texts[0]}"
    return [first.rstrip(), *(" " * INDENT + text for text in texts[1:])]


def _wrapped(text: str) -> list[str]:
    line = printable(" ".join(text.split()))
    width = WIDTH - INDENT
    return textwrap.wrap(line, width, break_on_hyphens=False, break_long_words=False) or [""]
