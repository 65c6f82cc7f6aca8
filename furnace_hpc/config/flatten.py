"""Flatten nested mappings to dotted keys."""

from collections.abc import Iterator, Mapping
from typing import Any


def flatten(content: Mapping[str, Any], enter_lists: bool = False) -> dict[str, Any]:
    """Return dotted key -> value for every value of a nested mapping. An empty mapping has no key.

    Args:
        content: a mapping whose values may be mappings.
        enter_lists: flatten lists of mappings too, with the index as key. Other lists are values.
    """
    return dict(_leaves(content, "", enter_lists))


def duplicate_key(content: Mapping[str, Any]) -> str | None:
    """Return a key with two values, such as `a.b` and `a: {b: ...}`. None if there is none."""
    seen = set[str]()
    for key, _ in _leaves(content, "", enter_lists=False):
        if key in seen:
            return key
        seen.add(key)
    return None


def _leaves(
    content: Mapping[str, Any], prefix: str, enter_lists: bool
) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        inner = value
        if enter_lists and _is_list_of_mappings(value):
            inner = {str(index): item for index, item in enumerate(value)}
        if isinstance(inner, Mapping):
            yield from _leaves(inner, f"{prefix}{key}.", enter_lists)
        else:
            yield f"{prefix}{key}", value


def _is_list_of_mappings(value: Any) -> bool:
    return (
        isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)
    )
