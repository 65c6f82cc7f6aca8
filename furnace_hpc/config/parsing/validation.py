"""Validate the content of a file, and report all problems at once.

A problem names its place, the key, the value as typed, what is wanted, and the nearest valid name.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from furnace_hpc.config.base import NAME_PATTERN
from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.parsing.source_text import Entry
from furnace_hpc.config.parsing.text_safety import masked, short

MAX_PROBLEMS = 100  # reported of one file
M = TypeVar("M", bound=BaseModel)
# (path, value) -> the entry of the file that gave the value. None if it is not known.
Find = Callable[[Sequence[int | str], Any], Entry | None]
_KINDS = {list: "a list", str: "text", type(None): "nothing"}
_MAPPING_TYPES = {"dict_type", "model_type", "model_attributes_type"}  # of pydantic's problems
_LIST_TYPES = {"tuple_type", "list_type"}
_WANTED = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "wanted a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "wanted a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "wanted true or false"),
    **dict.fromkeys(_MAPPING_TYPES, "wanted a mapping. Write lines of `key: value`"),
    "string_type": "wanted text",
}


def validate(
    model: type[M], content: Any, source: str = "", find: Find = lambda path, value: None
) -> M:
    """Return `content` as a `model`.

    Args:
        model: the class of the result.
        content: plain data.
        source: path of the file, written before each problem.
        find: find the place of a value in the file.

    Raises:
        ConfigError: one line for each problem.
    """
    if not isinstance(content, dict):
        kind = _KINDS.get(type(content)) or short(_repr(content))
        raise ConfigError(
            f"{_before(source)}got {kind}, wanted a mapping. Write lines of `key: value`"
        )
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = _without_consequences(error.errors(include_url=False))
        lines = [masked(_line(problem, model, find, source)) for problem in problems[:MAX_PROBLEMS]]
        if (more := len(problems) - MAX_PROBLEMS) > 0:
            lines.append(f"{_before(source)}and {more:,} more problems")
        raise ConfigError("\n".join(lines)) from None


def group_by_row(problems: Iterable[tuple[str, str]]) -> list[str]:
    """Group (row, problem) by problem. A line names the first row and counts the others."""
    rows: dict[str, list[str]] = {}
    for row, problem in dict.fromkeys(problems):
        rows.setdefault(problem, []).append(row)
    lines = []
    for problem, (first, *others) in rows.items():
        more = f" and {len(others):,} more" if others else ""
        lines.append(f"row {first!r}{more}: {problem}")
    return lines


def _without_consequences(problems: Sequence[Any]) -> list[Any]:
    """Drop `too short` of a list whose items have problems: pydantic did not count these items."""

    def is_consequence(problem: Any) -> bool:
        path = problem["loc"]
        return problem["type"] == "too_short" and any(
            other["loc"] != path and other["loc"][: len(path)] == path for other in problems
        )

    return [problem for problem in problems if not is_consequence(problem)]


def _before(source: str) -> str:
    return f"{source}: " if source else ""


def _line(problem: Any, model: type[BaseModel], find: Find, source: str) -> str:
    """One problem, after the path of the file and before the line number."""
    path, value = problem["loc"], problem["input"]
    key = ".".join(str(part) for part in path if part != "[key]")
    if problem["type"] == "missing":
        return f"{_before(source)}key {key!r} is missing. Add it"
    entry = find(path, value) if path else None
    if problem["type"] == "extra_forbidden":
        text = _unknown_key(path, key, model)
    else:
        text = _wrong_value(problem, key, entry)
    return f"{_before(source)}{text}{_place(entry, source)}"


def _place(entry: Entry | None, source: str) -> str:
    if entry is None:
        return ""
    if source:
        return f" ({entry.place.replace(f'{source}:', 'line ', 1)})"
    return f" ({entry.place})"


def _unknown_key(path: Sequence[int | str], key: str, model: type[BaseModel]) -> str:
    *_, last = path
    parent = _model_at(model, path[:-1])
    reason = getattr(parent, "refused", {}).get(last)
    if reason is None:
        return f"unknown key {key!r}; {nearest(str(last), parent.model_fields)}"
    section, dot, _ = key.rpartition(".")
    return f"{section}: key {last!r} {reason}" if dot else f"key {last!r} {reason}"


def _wrong_value(problem: Any, key: str, entry: Entry | None) -> str:
    value, wanted = problem["input"], _wanted(problem, entry)
    parts = [key] if key else []
    if isinstance(value, dict):  # too long to show
        return ": ".join([*parts, wanted])
    joint = ", " if wanted.startswith("wanted") else ": "
    return ": ".join([*parts, f"got {_shown(value, entry)}{joint}{wanted}"])


def _wanted(problem: Any, entry: Entry | None) -> str:
    """What is wanted in place of a value, and what to write. Mostly it begins with `wanted`."""
    kind, value = problem["type"], problem["input"]
    if kind == "string_type" and not isinstance(value, (dict, list)):
        return "wanted text" if value is None else f"wanted text. Write '{_typed(value, entry)}'"
    if kind in _LIST_TYPES:
        if isinstance(value, (str, int, float)):
            return f"wanted a list. Write [{_typed(value, entry)}]"
        return "wanted a list. Begin each entry with `- `"
    if kind == "too_short":
        return f"wanted {problem['ctx']['min_length']} or more entries"
    if kind == "too_long":
        return f"wanted at most {problem['ctx']['max_length']:,} entries"
    if kind == "string_pattern_mismatch" and problem["ctx"]["pattern"] == NAME_PATTERN:
        return (
            "wanted a name. It has 1 to 64 letters, digits, '.', '_' or '-', and begins with a "
            "letter or digit"
        )
    if kind == "string_pattern_mismatch":
        return f"wanted text that matches {problem['ctx']['pattern']}"
    wanted = _WANTED.get(kind) or _in_own_words(problem["msg"])
    if value == "auto":
        wanted += ". 'auto' is not supported. Write a value, or remove the key"
    return wanted


def _in_own_words(message: str) -> str:
    """Pydantic's `Input should be greater than 0` as `wanted a number greater than 0`."""
    message = message.removeprefix("Value error, ")
    what = message.removeprefix("Input should be ")
    if what == message:
        return f"{message[0].lower()}{message[1:]}"
    if what.startswith(("greater", "less")):
        what = f"a number {what}"
    return f"wanted {what}"


def _typed(value: Any, entry: Entry | None) -> str:
    """The text of a value as it is in the file."""
    if entry is None or entry.text is None:
        return short(_repr(value).strip("'"))
    return short(entry.text)


def _shown(value: Any, entry: Entry | None) -> str:
    """A value as typed, and what it was read as if that differs."""
    typed = entry.as_typed() if entry else None
    if typed is None or isinstance(value, str):
        return short(_repr(value), 200)
    return typed


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:
        return "a number with thousands of digits"


def _model_at(model: type[BaseModel], path: Sequence[int | str]) -> type[BaseModel]:
    """The model at `path`. Indices and keys of mappings are no models, and are skipped."""
    for part in path:
        field = model.model_fields.get(str(part))
        if field is not None:
            model = _model_inside(field.annotation) or model
    return model


def _model_inside(annotation: Any) -> type[BaseModel] | None:
    """The first model that a type contains. None if it contains none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if found := _model_inside(argument):
            return found
    return None
