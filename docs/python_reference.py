"""The page docs/reference/python.md: functions and classes of `import furnace_hpc`."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import furnace_hpc

INTRODUCTION = """\
`import furnace_hpc as furnace`. [In Python](../python.md) has examples. The import loads
nothing else: every call loads what it needs.
"""
SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Examples")
HEADING = re.compile(rf"^({'|'.join(SECTIONS)}):\n", re.MULTILINE)
ENTRY = re.compile(r"^(\w+): ", re.MULTILINE)


def python_page(note: str) -> str:
    """All public functions and classes, with their docstrings."""
    parts = ["# Python\n", note, INTRODUCTION]
    names = sorted(furnace_hpc.__all__, key=lambda name: (name[0].isupper(), name))
    for name in names:
        found = getattr(furnace_hpc, name)
        if inspect.isclass(found):
            parts += [f"## {name}\n", *_docstring(found), *_members(found)]
        else:
            parts += [f"## {name}\n", *_signature(name, found), *_docstring(found)]
    return "\n".join(parts)


def _members(found: type) -> Iterator[str]:
    """Public properties and methods of a class, in the order of its source."""
    for name, member in vars(found).items():
        if name.startswith("_") or not _is_documented(member):
            continue
        yield f"### {found.__name__}.{name}\n"
        if inspect.isfunction(member):
            yield from _signature(name, member)
        yield from _docstring(member)


def _is_documented(member: Any) -> bool:
    is_call = inspect.isfunction(member) or isinstance(member, property)
    return is_call or type(member).__name__ == "cached_property"


def _signature(name: str, function: Any) -> list[str]:
    """The call with its defaults, on one line per argument if it is long."""
    parts = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        text = f"{parameter.name}: {_type(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            text += f" = {parameter.default!r}"
        parts.append(text)
    result = _type(inspect.signature(function).return_annotation)
    call = f"{name}({', '.join(parts)}) -> {result}"
    if len(call) > 100:
        call = f"{name}(\n    " + ",\n    ".join(parts) + f",\n) -> {result}"
    return ["```python", call, "```\n"]


def _type(annotation: Any) -> str:
    """An annotation without the names of modules."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b[a-z_]+\.(?=[\w.]*[A-Z])", "", text)


def _docstring(found: Any) -> list[str]:
    """A docstring in Google's style as Markdown."""
    text = (inspect.getdoc(found) or "") + "\n"
    first, *rest = HEADING.split(text)
    lines = [f"{first.strip()}\n"]
    for title, body in zip(rest[::2], rest[1::2], strict=True):
        lines += _section(title, inspect.cleandoc(f"\n{body}"))
    return lines


def _section(title: str, body: str) -> list[str]:
    if title == "Examples":
        return ["```pycon", body, "```\n"]
    if title == "Returns":
        return [f"Returns: {' '.join(body.split())}\n"]
    headings = "| error | raised if |" if title == "Raises" else "| name | meaning |"
    lines = [headings, "|---|---|"]
    names = ENTRY.split(body)[1:]
    for name, meaning in zip(names[::2], names[1::2], strict=True):
        lines.append(f"| `{name}` | {' '.join(meaning.replace('|', '&#124;').split())} |")
    return [*lines, ""]
