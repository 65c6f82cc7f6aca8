"""All problems of one file at once: place, key path, value as typed, what is wanted, and the nearest valid name."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from furnace_hpc.config.base import NAME_PATTERN
from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.parsing.source_text import Entry
from furnace_hpc.config.parsing.text_safety import masked, short

MAX_PROBLEMS = 100  # that are told of one file
M = TypeVar("M", bound=BaseModel)
# (path, value) -> where it stands; None if it is not known
Find = Callable[[Sequence[int | str], Any], Entry | None]


def validate(
    model: type[M], content: Any, source: str = "", find: Find = lambda path, value: None
) -> M:
    """Return `content` as a `model`; `source` (a file's path) goes before each problem.

    Raises:
        ConfigError: with one line for each problem.
    """
    before = f"{source}: " if source else ""
    if not isinstance(content, dict):
        raise ConfigError(
            f"{before}got {_kind(content)}, wanted a mapping of keys: write `key: value` lines"
        )
    try:
        return model.model_validate(content)
    except ValidationError as error:
        found = _lines(error, model, find)
        lines = [
            masked(_placed(line, entry, source))
            for line, entry in itertools.islice(found, MAX_PROBLEMS)
        ]
        if (more := error.error_count() - MAX_PROBLEMS) > 0:
            lines.append(f"{before}and {more:,} more problems")
        raise ConfigError("\n".join(lines)) from None


def group_by_row(problems: Iterable[tuple[str, str]]) -> list[str]:
    """One line for each different problem of (row, problem): its first row, and how many others share it."""
    rows: dict[str, list[str]] = {}
    for row, problem in dict.fromkeys(problems):
        rows.setdefault(problem, []).append(row)
    return [
        f"row {names[0]!r}{f' and {len(names) - 1:,} more' if names[1:] else ''}: {problem}"
        for problem, names in rows.items()
    ]


def _placed(line: str, entry: Entry | None, source: str) -> str:
    """A problem with the file before it, and the place behind it."""
    before = f"{source}: " if source else ""
    if entry is None:
        return f"{before}{line}"
    return f"{before}{line} ({entry.place.replace(f'{source}:', 'line ', 1) if source else entry.place})"


def _lines(
    error: ValidationError, model: type[BaseModel], find: Find
) -> Iterable[tuple[str, Entry | None]]:
    problems = error.errors(include_url=False)
    for problem in problems:
        path, value = problem["loc"], problem["input"]
        if problem["type"] == "too_short" and any(
            path == other["loc"][: len(path)] != other["loc"] for other in problems
        ):
            continue  # its entries have problems of their own, and were not counted
        place = ".".join(str(part) for part in path if part != "[key]")
        entry = find(path, value) if path else None
        if problem["type"] == "extra_forbidden":
            parent = _model_at(model, path[:-1])
            refused = getattr(parent, "refused", {}).get(path[-1])
            valid = nearest(str(path[-1]), parent.model_fields)
            section = f"{place.rpartition('.')[0]}: ".removeprefix(": ")
            yield (
                f"{section}key {path[-1]!r} {refused}"
                if refused
                else f"unknown key {place!r}; {valid}",
                entry,
            )
        elif problem["type"] == "missing":
            yield f"key {place!r} is missing", None
        else:
            got = "" if isinstance(value, dict) else f": got {_shown(value, entry)}"
            yield f"{place}{got}{_wanted(problem, entry)}".removeprefix(": "), entry


def _wanted(problem: Any, entry: Entry | None) -> str:
    """What is wanted, as the end of a sentence `key: got value`."""
    kind, value = problem["type"], problem["input"]
    typed = short(entry.text if entry and entry.text is not None else _repr(value))
    if kind == "string_type" and not isinstance(value, (dict, list)):
        return ", wanted text" if value is None else f", wanted text: put it in quotes, '{typed}'"
    if kind in {"tuple_type", "list_type"}:
        return (
            f", wanted a list: write [{typed}]"
            if isinstance(value, (str, int, float))
            else ", wanted a list"
        )
    if kind == "string_pattern_mismatch" and problem["ctx"]["pattern"] == NAME_PATTERN:
        return (
            ", wanted a name: 1 to 64 letters, digits, '.', '_' or '-', and a letter or digit first"
        )
    message = problem["msg"].removeprefix("Value error, ")
    if message.startswith("wanted"):
        return f", {message}"
    auto = (
        "; 'auto' is for other programs: write a value, or leave the key out"
        if value == "auto"
        else ""
    )
    return f": {message[0].lower()}{message[1:]}{auto}"


def _shown(value: Any, entry: Entry | None) -> str:
    """A value as it was typed, and what it was read as where that is something else."""
    typed = entry.as_typed() if entry else None
    return short(_repr(value), 200) if typed is None or isinstance(value, str) else typed


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:
        return "a number of thousands of digits"


def _model_at(model: type[BaseModel], path: Sequence[int | str]) -> type[BaseModel]:
    """The model at `path`; numbers and mapping keys in the path are stepped over."""
    for part in path:
        field = model.model_fields.get(str(part))
        inner = _model_inside(field.annotation) if field else None
        model = inner or model
    return model


def _model_inside(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if found := _model_inside(argument):
            return found
    return None


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", type(None): "nothing"}.get(
        type(value), short(_repr(value))
    )
