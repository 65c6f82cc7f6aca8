"""One line of a check-up, and how lines are printed."""

import json
import subprocess
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from furnace_hpc.config.parsing.text_safety import printable

Level = Literal["ok", "warn", "fail"]
WIDTH, NAME_WIDTH = 80, 19
_COLOURS = {"ok": "32", "warn": "33", "fail": "31"}


@dataclass(frozen=True)
class Check:
    """What was found, and what to do about it; an ok line needs no fix."""

    name: str
    level: Level
    found: str
    hint: str = ""


@dataclass(frozen=True)
class Section:
    """Lines about one thing."""

    title: str
    checks: tuple[Check, ...]


def look(name: str, *ways: Callable[[], Check | list[Check]]) -> Section:
    """Make a section; what cannot be looked at is a line of its own, and costs no other."""
    checks: list[Check] = []
    for way in ways:
        try:
            found = way()
        # one that hangs, too
        except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
            what = way.__name__.replace("_", " ") if hasattr(way, "__name__") else "a check"
            found = Check(what, "warn", f"could not be looked at: {error}", "look at it by hand")
        checks += found if isinstance(found, list) else [found]
    return Section(name, tuple(checks))


def page(sections: Sequence[Section], colour: bool) -> str:
    """All sections, aligned, in 80 columns."""
    lines = []
    for section in sections:
        lines += ["", section.title]
        for check in section.checks:
            lines += _lines(check, colour)
    return "\n".join(lines)


def as_json(sections: Sequence[Section]) -> str:
    """The same for programs."""
    counts = count(sections)
    return json.dumps(
        {"worst": worst(sections), "counts": counts, "sections": [asdict(s) for s in sections]},
        indent=1,
    )


def from_json(text: str, before: str = "") -> list[Section]:
    """Sections that another `furnace doctor --json` has written."""
    content = json.loads(text)
    return [
        Section(before + section["title"], tuple(Check(**check) for check in section["checks"]))
        for section in content["sections"]
    ]


def count(sections: Iterable[Section]) -> dict[str, int]:
    """How many lines there are of each level."""
    levels = [check.level for section in sections for check in section.checks]
    return {level: levels.count(level) for level in ("ok", "warn", "fail")}


def worst(sections: Iterable[Section]) -> Level:
    """The worst level of all lines."""
    counts = count(sections)
    return "fail" if counts["fail"] else "warn" if counts["warn"] else "ok"


def _lines(check: Check, colour: bool) -> list[str]:
    level = f"{check.level:<4}"
    if colour:
        level = f"\x1b[{_COLOURS[check.level]}m{level}\x1b[0m"
    indent = " " * (2 + 4 + 2 + NAME_WIDTH + 1)
    rest = _wrapped(check.found) + (_wrapped(f"-> {check.hint}") if check.hint else [])
    first = f"  {level}  {check.name:<{NAME_WIDTH}} {rest[0]}"
    return [first.rstrip(), *(indent + line for line in rest[1:])]


def _wrapped(text: str) -> list[str]:
    width = WIDTH - (2 + 4 + 2 + NAME_WIDTH + 1)
    return textwrap.wrap(
        printable(" ".join(text.split())), width, break_on_hyphens=False, break_long_words=False
    ) or [""]
