"""Find where a value stands in a file and how it was typed: `no` is read as false, and errors show `no`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from furnace_hpc.config.parsing import strict_yaml
from furnace_hpc.config.parsing.text_safety import short

# the last to be laid over first; others: 2
_ORDER = {"settings": 0, "axes": 1, "zip": 1, "base": 3, "resources": 3}


@dataclass(frozen=True)
class Entry:
    """One entry of a file."""

    path: strict_yaml.Path
    text: str | None  # as typed, without quotes; None if it is a mapping or a list
    value: Any
    place: str  # `study.yaml:12`, or `--set`

    def is_read_as(self, value: Any) -> bool:
        """Whether the entry may be what gave this value."""
        if self.text is None:
            return isinstance(value, (dict, list, tuple))
        # nan is not equal to itself
        return type(self.value) is type(value) and repr(self.value) == repr(value)

    def as_typed(self) -> str | None:
        """The text, and what it was read as where that is something else. None if it is a mapping or a list."""
        if self.text is None:
            return None
        words = {"None": "nothing", "True": "true", "False": "false"}
        read = words.get(repr(self.value), repr(self.value))
        typed = short(self.text or read)
        return (
            typed
            if typed in {read, repr(self.value), str(self.value)}
            else f"{typed} (read as {read})"
        )


@dataclass(frozen=True)
class Written:
    """The text of a YAML file that could be read, and values of `--set`."""

    source: str
    text: str
    settings: tuple[Entry, ...] = ()

    @cached_property
    def _by_path(self) -> dict[strict_yaml.Path, list[Entry]]:
        found: dict[strict_yaml.Path, list[Entry]] = {}
        for path, text, value, line in strict_yaml.entries(self.text):
            found.setdefault(path, []).append(Entry(path, text, value, f"{self.source}:{line}"))
        return found

    @cached_property
    def _by_key(self) -> dict[tuple[str, str | None], list[Entry]]:
        """(dotted key of a row's config, variant; None for all variants) -> entries, the last to be laid over first."""
        entries = [*self.settings, *(entry for same in self._by_path.values() for entry in same)]
        found: dict[tuple[str, str | None], list[Entry]] = {}
        for entry in sorted(
            (one for one in entries if one.path), key=lambda one: _ORDER.get(str(one.path[0]), 2)
        ):
            found.setdefault(_dotted(entry.path), []).append(entry)
        return found

    def with_setting(self, key: str, text: str, value: Any) -> "Written":
        """The same, and one value of `--set`."""
        return replace(
            self, settings=(*self.settings, Entry(("settings", key), text, value, "--set"))
        )

    def at(self, path: Sequence[str | int], value: Any) -> Entry | None:
        """The entry at this path of the file. None if there is none."""
        if path[-1:] == ("[key]",):  # a key is the problem
            return next(iter(self._by_path.get(tuple(path[:-1]), [])), None)
        return next(
            (entry for entry in self._by_path.get(tuple(path), []) if entry.is_read_as(value)), None
        )

    def of_row(self, variant: str, path: Sequence[str | int], value: Any) -> Entry | None:
        """The entry that gave a row this value of its config. None if the file does not say it."""
        key = ".".join(map(str, path))
        found = [*self._by_key.get((key, variant), []), *self._by_key.get((key, None), [])]
        found.sort(key=lambda entry: _ORDER.get(str(entry.path[0]), 2))
        return next((entry for entry in found if entry.is_read_as(value)), None)


def _dotted(path: strict_yaml.Path) -> tuple[str, str | None]:
    """The dotted key of a row's config that an entry of a grid gives, and the variant if it is of one."""
    section, *rest = map(str, path)
    match section:
        case "resources":
            return ".".join(map(str, path)), None
        case "variants" if rest:
            return ".".join(rest[1:]), rest[0]
        case "ablate":
            return ".".join(rest[2:]), None  # ablate, factors, the factor
        case "axes":
            # the key, a place in its list
            return ".".join([*rest[:1], *rest[2:]]) if len(rest) > 1 else "", None
        case "zip":
            return ".".join([rest[1], *rest[3:]]) if len(rest) > 2 else "", None
    return ".".join(rest), None  # base, settings
