"""Find the differences of two runs, and write them as JSON, text or tables."""

import json
import math
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from furnace_hpc.config.parsing.text_safety import printable
from furnace_hpc.runs.comparison.facts import RunFacts, Section, Values, snapshot_files

if TYPE_CHECKING:
    from rich.console import RenderableType

MISSING = "(missing)"
_ABSENT = object()


class Difference(NamedTuple):
    """One key with different values. A run that lacks the key has no value."""

    section: Section
    key: str
    left: Any = _ABSENT
    right: Any = _ABSENT

    @property
    def change(self) -> float | None:
        """The right number minus the left one, of a metric. None if it is no finite number."""
        if (
            self.section is not Section.METRICS
            or not _is_number(self.left)
            or not _is_number(self.right)
        ):
            return None
        change = self.right - self.left
        return change if math.isfinite(change) else None

    def as_json(self) -> dict[str, Any]:
        """The entry of `diff --json`. A run that lacks the key has no `left` or no `right`."""
        content: dict[str, Any] = {"section": self.section.value, "key": self.key}
        for side in ("left", "right"):
            if (value := getattr(self, side)) is not _ABSENT:
                content[side] = _without_nan(value)
        if self.change is not None:
            content["change"] = self.change
        return content


def differences(
    left: RunFacts, right: RunFacts, sections: Collection[Section] = tuple(Section)
) -> list[Difference]:
    """Return all keys with different values, by section."""
    found: list[Difference] = []
    for section in Section:
        if section in sections:
            found += _differences(section, left.sections[section], right.sections[section])
        if section is Section.CODE and section in sections:
            found += _of_code(left, right)
        # A pack that has moved would differ in each key.
        if section is Section.DATA and section in sections and left.pack and right.pack:
            found += _differences(section, left.pack, right.pack)
    return found


def _of_code(left: RunFacts, right: RunFacts) -> Iterator[Difference]:
    if not left.snapshot or not right.snapshot or left.snapshot.name == right.snapshot.name:
        return iter(())
    return _differences(Section.CODE, snapshot_files(left.snapshot), snapshot_files(right.snapshot))


def _differences(section: Section, left: Values, right: Values) -> Iterator[Difference]:
    for key in dict.fromkeys([*left, *right]):
        ours, theirs = left.get(key, _ABSENT), right.get(key, _ABSENT)
        if not _is_same(ours, theirs):
            yield Difference(section, key, ours, theirs)


def _is_same(left: Any, right: Any) -> bool:
    if isinstance(left, float) and isinstance(right, float) and math.isnan(left):
        return math.isnan(right)
    return bool(left == right)


def as_json(left: RunFacts, right: RunFacts, found: list[Difference]) -> str:
    """The text of `diff --json`."""
    content = {
        "left": str(left.folder.path),
        "right": str(right.folder.path),
        "is_equal": not found,
        "differences": [difference.as_json() for difference in found],
    }
    return json.dumps(content, indent=2)


def plain(left: RunFacts, right: RunFacts, found: list[Difference]) -> list[str]:
    """The lines for a file or a pipe: one difference each, with both values."""
    lines = _head(left, right)
    for one in found:
        line = f"{one.section}: {printable(one.key)}: {' | '.join(_sides(one))}"
        lines.append(line + _change(one, " ({})"))
    return [*lines, summary(found)]


def picture(left: RunFacts, right: RunFacts, found: list[Difference]) -> Iterator["RenderableType"]:
    """The tables for a terminal. Long values are folded, and none is cut."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    yield from _head(left, right)
    for section in Section:
        chosen = [one for one in found if one.section == section]
        if not chosen:
            continue
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=False)
        has_change = any(one.change is not None for one in chosen)
        for title in (section, "left", "right", *["change"] * has_change):
            table.add_column(title, overflow="fold")
        for one in chosen:
            cells = [printable(one.key), *_sides(one)]
            cells += [_change(one, "{}")] * has_change
            table.add_row(*map(Text, cells))
        yield table
    yield summary(found)


def _head(left: RunFacts, right: RunFacts) -> list[str]:
    lines = [f"left:  {left.folder.path}", f"right: {right.folder.path}"]
    notes = dict.fromkeys(note for run in (left, right) for note in run.notes)
    for note in notes:
        sides = [name for name, run in (("left", left), ("right", right)) if note in run.notes]
        lines += [f"{side}: {note}" for side in sides]
    return [printable(line) for line in lines]


def summary(found: list[Difference]) -> str:
    """Count the differences by section."""
    counts = {
        section: sum(one.section == section for one in found)
        for section in Section
        if any(one.section == section for one in found)
    }
    if not counts:
        return "no difference"
    parts = [f"{count} in {section}" for section, count in counts.items()]
    return f"different: {', '.join(parts)}"


def shown(value: Any) -> str:
    """A value in full, without control characters. Text stays as it is, and the rest is JSON."""
    if value is _ABSENT:
        return MISSING
    if isinstance(value, str):
        return printable(value) or '""'
    return printable(json.dumps(_without_nan(value), ensure_ascii=False))


def _sides(one: Difference) -> list[str]:
    """Both values. Metrics have six digits, or all digits if they would look equal."""
    values = (one.left, one.right)
    if one.change is not None:
        texts = [f"{value:.6g}" if isinstance(value, float) else shown(value) for value in values]
        if texts[0] != texts[1]:
            return texts
    return list(map(shown, values))


def _change(one: Difference, form: str) -> str:
    return form.format(f"{one.change:+.4g}") if one.change is not None else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no NaN
    return value
