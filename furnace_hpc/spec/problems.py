"""All problems of one file at once: key path, value got, what is wanted, and the nearest valid name."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from furnace_hpc.spec.errors import ConfigError, nearest
from furnace_hpc.spec.secrets import masked

M = TypeVar("M", bound=BaseModel)


def validate(model: type[M], content: Any, source: str = "") -> M:
    """Return `content` as a `model`; `source` (a file's path) goes before each problem.

    Raises:
        ConfigError: with one line for each problem.
    """
    before = f"{source}: " if source else ""
    if not isinstance(content, dict):
        raise ConfigError(f"{before}got {_kind(content)}, wanted a mapping of keys: write `key: value` lines")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{before}{masked(line)}" for line in _lines(error, model))) from None


def told_once(problems: Iterable[tuple[str, str]]) -> list[str]:
    """One line for each different problem of (row, problem): its first row, and how many others share it."""
    rows: dict[str, list[str]] = {}
    for row, problem in dict.fromkeys(problems):
        rows.setdefault(problem, []).append(row)
    return [
        f"row {names[0]!r}{f' and {len(names) - 1:,} more' if names[1:] else ''}: {problem}"
        for problem, names in rows.items()
    ]


def _lines(error: ValidationError, model: type[BaseModel]) -> list[str]:
    lines = []
    for problem in error.errors(include_url=False):
        place = ".".join(str(part) for part in problem["loc"]) or "the file"
        if problem["type"] == "extra_forbidden":
            valid = _field_names(model, problem["loc"][:-1])
            lines.append(f"unknown key {place!r}; {nearest(str(problem['loc'][-1]), valid)}")
        elif problem["type"] == "missing":
            lines.append(f"key {place!r} is missing")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            got = "" if isinstance(problem["input"], dict) else f": got {problem['input']!r}"
            lines.append(f"{place}{got}: {message[0].lower()}{message[1:]}")
    return lines


def _field_names(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """Names that are valid at `path`; numbers and mapping keys in the path are stepped over."""
    for part in path:
        field = model.model_fields.get(str(part))
        inner = _model_inside(field.annotation) if field else None
        model = inner or model
    return list(model.model_fields)


def _model_inside(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if found := _model_inside(argument):
            return found
    return None


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", type(None): "nothing"}.get(type(value), f"{value!r}")
