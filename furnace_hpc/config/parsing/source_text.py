"""Find the place of a value in a file, and the text that was typed. Errors show both."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from furnace_hpc.config.parsing import strict_yaml
from furnace_hpc.config.parsing.text_safety import short

# Sections of a grid. The one that overrides the others comes first. Sections not named here have 2.
_ORDER = {"settings": 0, "axes": 1, "zip": 1, "base": 3, "resources": 3}
_WORDS = {"None": "nothing", "True": "true", "False": "false"}


@dataclass(frozen=True)
class Entry:
    """One entry of a file."""

    path: strict_yaml.Path
    text: str | None  # as typed, without quotes; None if it is a mapping or a list
    value: Any
    place: str  # `study.yaml:12`, or `--set`

    def is_read_as(self, value: Any) -> bool:
        """Whether this entry can be the source of the value."""
        if self.text is None:
            return isinstance(value, (dict, list, tuple))
        # nan is not equal to itself
        return type(self.value) is type(value) and repr(self.value) == repr(value)

    def as_typed(self) -> str | None:
        """The text as typed, and what it was read as if that differs. None without a text."""
        if self.text is None:
            return None
        read = _WORDS.get(repr(self.value), repr(self.value))
        typed = short(self.text or read)
        if typed in {read, repr(self.value), str(self.value)}:
            return typed
        return f"{typed} (read as {read})"


@dataclass(frozen=True)
class SourceText:
    """The text of a YAML file, and the values of `--set`."""

    path: str
    text: str
    settings: tuple[Entry, ...] = ()

    @cached_property
    def _by_path(self) -> dict[strict_yaml.Path, list[Entry]]:
        found: dict[strict_yaml.Path, list[Entry]] = {}
        for path, text, value, line in strict_yaml.entries(self.text):
            found.setdefault(path, []).append(Entry(path, text, value, f"{self.path}:{line}"))
        return found

    @cached_property
    def _by_key(self) -> dict[tuple[str, str | None], list[Entry]]:
        """(dotted key of a row's config, variant) -> entries. The first overrides the others.

        The variant is None in entries that hold for all variants.
        """
        entries = [*self.settings, *(entry for same in self._by_path.values() for entry in same)]
        found: dict[tuple[str, str | None], list[Entry]] = {}
        for entry in _in_order(entry for entry in entries if entry.path):
            found.setdefault(_key_and_variant(entry.path), []).append(entry)
        return found

    def with_setting(self, key: str, text: str, value: Any) -> "SourceText":
        """A copy with one more value of `--set`."""
        entry = Entry(("settings", key), text, value, "--set")
        return replace(self, settings=(*self.settings, entry))

    def at(self, path: Sequence[str | int], value: Any) -> Entry | None:
        """The entry at this path of the file. None if there is none."""
        if path[-1:] == ("[key]",):  # pydantic's mark: the problem is the key, not the value
            return next(iter(self._by_path.get(tuple(path[:-1]), [])), None)
        return _first(self._by_path.get(tuple(path), []), value)

    def of_row(self, variant: str, path: Sequence[str | int], value: Any) -> Entry | None:
        """The entry that gave a row this value of its config. None if it is not in the file."""
        key = ".".join(map(str, path))
        found = [*self._by_key.get((key, variant), []), *self._by_key.get((key, None), [])]
        return _first(_in_order(found), value)


def _in_order(entries: Iterable[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: _ORDER.get(str(entry.path[0]), 2))


def _first(entries: Iterable[Entry], value: Any) -> Entry | None:
    return next((entry for entry in entries if entry.is_read_as(value)), None)


def _key_and_variant(path: strict_yaml.Path) -> tuple[str, str | None]:
    """The dotted key of a row's config that an entry sets, and its variant. None: all variants."""
    section, *rest = map(str, path)
    match section, rest:
        case "resources", _:
            return ".".join(map(str, path)), None
        case "variants", [variant, *key]:
            return ".".join(key), variant
        case "ablate", [_, _, *key]:  # ablate, factors, the factor
            return ".".join(key), None
        case "axes", [key, _, *inner]:  # the key, the index in its list
            return ".".join([key, *inner]), None
        case "zip", [_, key, _, *inner]:  # the index of the group, the key, the index in its list
            return ".".join([key, *inner]), None
        case "base" | "settings", _:
            return ".".join(rest), None
    return "", None
