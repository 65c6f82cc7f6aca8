"""Match rows of a grid with the entries of its `exclude`."""

from typing import Any

from furnace_hpc.config.errors import nearest
from furnace_hpc.config.flatten import flatten
from furnace_hpc.config.grids.ablate import Overrides
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.parsing.text_safety import short

_NOTHING = object()


class Exclusion:
    """The entries of `exclude`. An entry without a matching row is a problem."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._base = flatten(grid.base)
        self._entries = [flatten(entry) for entry in grid.exclude]
        self._used = set[int]()
        self._keys = {"variant", *self._base}  # that the base or a row sets

    def matches(self, variant: str, overrides: Overrides) -> bool:
        """Whether a row matches all keys of an entry."""
        if not self._entries:
            return False
        row = self._base | flatten(overrides) | {"variant": variant}
        self._keys.update(row)
        found = [index for index, entry in enumerate(self._entries) if _matches(row, entry)]
        self._used.update(found)
        return bool(found)

    def problems(self) -> list[str]:
        """A line for each entry that matched no row."""
        unused = [index for index in range(len(self._entries)) if index not in self._used]
        return [self._problem(index) for index in unused]

    def _problem(self, index: int) -> str:
        grid, entry = self._grid, self._grid.exclude[index]
        line = f"grid {grid.name!r}: exclude[{index}] {short(str(entry), 200)} matches no row"
        unknown = [key for key in self._entries[index] if key not in self._keys]
        if unknown:
            key = unknown[0]
            line += (
                f": neither base nor a row sets {short(key)!r}. Set it in base, or correct the "
                f"key; {nearest(key, self._keys)}"
            )
        else:
            line += ". Correct its values, or remove it"
        return line + self._place(index)

    def _place(self, index: int) -> str:
        """The place of an entry, and its values that were read as something else."""
        source = self._grid.source
        if source is None:
            return ""
        entry = self._grid.exclude[index]
        found = [source.at(("exclude", index, key), value) for key, value in entry.items()]
        written = [one for one in found if one]
        if not written:
            return ""
        typed = [one.as_typed() or "" for one in written]
        parts = [written[0].place, *(text for text in typed if "(read as" in text)]
        return f" ({'; '.join(parts)})"


def _matches(row: dict[str, Any], entry: dict[str, Any]) -> bool:
    return all(_is_same(row.get(key, _NOTHING), value) for key, value in entry.items())


def _is_same(one: Any, other: Any) -> bool:
    """Whether two values are equal and of one kind: 1 is 1.0, but neither true nor '1'."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)
