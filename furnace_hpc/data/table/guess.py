"""Guess from names and contents which column is what, and write the full command line."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.text_safety import printable
from furnace_hpc.data.table.cells import as_number
from furnace_hpc.data.table.numeric import are_levels, is_quantity, numeric_columns
from furnace_hpc.data.table.options import (
    ColumnOptions,
    LabelColumn,
    LabelKind,
    SplitOptions,
    parse_label,
    split_of,
)
from furnace_hpc.data.table.sources.files import Table
from furnace_hpc.data.table.sources.folders import IMAGES, SOUNDS
from furnace_hpc.data.table.suspicions import determines

SEEN = 2000  # rows that are looked at
NAMES = {
    "id": "id uid uuid guid key __key__ sample_id example_id",
    "split": "split set partition subset usage",
    "group": "group speaker speaker_id subject subject_id patient patient_id user user_id author "
    "author_id actor participant dialogue dialogue_id session session_id conversation "
    "conversation_id video_id movie_id",
    "text": "text sentence sentences utterance caption title plot description review transcript "
    "transcription body message content comment question abstract summary tweet headline "
    "kommentar beschreibung satz",
    "label": "label labels class classes category categories target y emotion sentiment genre "
    "genres tag tags topic topics intent cls dish species folder klasse kategorie bewertung",
}
PAIRS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("text1", "text2"),
)
TEXT_WORDS = 3.0  # of a text, on average
MOST_CLASSES = 200
LEAST_ROWS = 10  # of a class, to keep its share in each split
_SOUND_MAGIC = (b"RIFF", b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"FORM")


@dataclass(frozen=True)
class Guess:
    """What the columns seem to be."""

    columns: ColumnOptions
    splits: SplitOptions
    other_labels: tuple[str, ...] = ()
    """Further columns that may be the label, if no name tells which one is."""
    other_texts: tuple[str, ...] = ()
    """Columns of texts that are not used."""
    ordinal: tuple[str, ...] = ()
    """Labels that may be ordered levels, such as `stars=stars:ordinal`."""

    @property
    def lines(self) -> Iterator[str]:
        """One line for each option."""
        yield from (f"  {option:<15} {value}" for option, value in self._pairs())
        for option, others in (("--label", self.other_labels), ("--text", self.other_texts)):
            if others:
                yield f"  {f'or as {option}':<15} {', '.join(others)}"
        if self.ordinal:
            yield f"  {'or ordered':<15} {', '.join(f'--label {label}' for label in self.ordinal)}"

    @property
    def arguments(self) -> list[str]:
        """The options of the command line."""
        return [part for pair in self._pairs() for part in pair]

    def _pairs(self) -> Iterator[tuple[str, str]]:
        for option, columns in self.columns.named.items():
            if option == "--numbers":
                yield option, ",".join(columns)
            elif option != "--label":
                yield from ((option, column) for column in columns)
        yield from (("--label", label.option) for label in self.columns.labels)
        if self.splits.column:
            yield "--split-column", self.splits.column
        if self.splits.parts:
            yield "--split", "/".join(map(str, self.splits.parts))
        if self.splits.stratify:
            yield "--stratify", self.splits.stratify


def guess(tables: list[Table], splits: SplitOptions) -> Guess:
    """Guess the columns, and the splits if no option gives them.

    Raises:
        ConfigError: there is no column for a label or for an input, or there are no column names.
    """
    head = tables[0].frame.head(SEEN).collect()
    roles: dict[str, list[str]] = {}
    for name in head.columns:
        if role := _role(head[name], name):
            roles.setdefault(role, []).append(name)
    texts = _texts(head, roles)
    if "text" not in roles:
        roles["text"] = texts[:1]
    pair = _pair(head)
    likely = _likely_labels(head, roles)
    labels = roles.get("label") or likely[-1:]
    inputs = {name: roles.get(name, []) for name in ("text", "image", "audio")}
    numbers = numeric_columns(
        head, {*labels, *(name for names in roles.values() for name in names)}
    )
    if not labels or not (any(inputs.values()) or numbers):
        missing = "a label" if not labels else "a text, image, sound or number"
        raise ConfigError(
            f"no column of {tables[0].path} looks like {missing}. Name the columns with --text, "
            "--image, --audio, --numbers and --label NAME=COLUMN; it has "
            f"{', '.join(head.columns)}"
        )
    kinds = tuple(_label(head, name) for name in labels)
    columns = ColumnOptions(
        text=pair[:1] or tuple(inputs["text"][:1]),
        text_pair=next(iter(pair[1:]), None),
        image=tuple(inputs["image"][:1]),
        audio=next(iter(inputs["audio"]), None),
        labels=kinds,
        id=_unique(head, roles.get("id", [])),
        group=next(iter(roles.get("group", [])), None),
        numbers=_without_answers(head, numbers, kinds),
    )
    _check_names(tables[0], head, labels)
    used = {name for names in columns.named.values() for name in names}
    return Guess(
        columns,
        _guess_splits(tables, head, roles, columns, splits),
        () if "label" in roles else tuple(likely[:-1]),
        tuple(name for name in texts if name not in used),
        tuple(_ordinal_options(head, kinds)),
    )


def _check_names(table: Table, head: pl.DataFrame, labels: list[str]) -> None:
    """Raise ConfigError if the first line of a CSV is a row. Its label is also the name then."""
    for name in labels:
        if head[name].dtype == pl.String and name in head[name]:
            raise ConfigError(
                f"the first line of {table.path} seems to be a row, because {name!r} is also a "
                "value of its column. Add a line with the names of the columns, or name the "
                "columns with --text, --image, --audio and --label"
            )


def _pair(head: pl.DataFrame) -> tuple[str, ...]:
    """Return the two columns of a text pair. Empty if there is none."""
    plain = {
        re.sub(r"[^a-z0-9]", "", name.lower()): name
        for name in head.columns
        if head[name].dtype == pl.String
    }
    for pair in PAIRS:
        if all(name in plain for name in pair):
            return tuple(plain[name] for name in pair)
    return ()


def _role(values: pl.Series, name: str) -> str | None:
    """Return what a column is by its content, or else by its name."""
    known = values.drop_nulls()
    if known.is_empty():
        return None
    if kind := _media_kind(known, name):
        return kind
    plain = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().replace(" ", "_").replace("-", "_")
    for role, names in NAMES.items():
        if plain in names.split() and _fits(role, known):
            return role
    return None


def _fits(role: str, known: pl.Series) -> bool:
    is_text = known.dtype == pl.String
    if role == "split":
        return is_text and all(split_of(value) for value in known.unique())
    if role == "text":
        return is_text
    if isinstance(known.dtype, pl.Struct) or known.dtype == pl.Binary:
        return False
    if role == "label":
        is_class = 2 <= known.n_unique() <= MOST_CLASSES
        return isinstance(known.dtype, pl.List) or is_class or is_quantity(known)
    return not isinstance(known.dtype, pl.List)


def _media_kind(known: pl.Series, name: str) -> str | None:
    if known.dtype == pl.String:
        paths = known.str.to_lowercase()
        for kind, endings in (("image", IMAGES), ("audio", SOUNDS)):
            pattern = f"({'|'.join(re.escape(ending) for ending in endings)})$"
            share = int(paths.str.contains(pattern).sum()) / len(paths)
            # A text may end with the name of a file, and the name of a file may have spaces.
            texts = int(paths.str.contains(r"\s\S+\s").sum()) / len(paths)
            if share > 0.9 and texts < 0.5:
                return kind
        return None
    cell: Any = known[0]
    if isinstance(cell, dict) and ("bytes" in cell or "tar" in cell):
        start = cell.get("bytes") or b""
        path = str(cell.get("path") or "").lower()
    elif isinstance(cell, bytes):
        start, path = cell, ""
    else:
        return None
    is_sound = start.startswith(_SOUND_MAGIC) and start[8:12] != b"WEBP"
    if is_sound or path.endswith(SOUNDS) or "audio" in name.lower():
        return "audio"
    return "image"


def _texts(head: pl.DataFrame, roles: dict[str, list[str]]) -> list[str]:
    """Return the columns of texts that have no role, the longest texts first."""
    used = {name for names in roles.values() for name in names}
    found = {}
    for name in head.columns:
        if name in used or head[name].dtype != pl.String:
            continue
        words = head[name].str.count_matches(r"\S+").mean()
        if isinstance(words, float) and words > TEXT_WORDS:
            found[name] = words
    return sorted(found, key=lambda name: -found[name])


def _likely_labels(head: pl.DataFrame, roles: dict[str, list[str]]) -> list[str]:
    """Return the columns with few values that repeat. The last one is the likeliest."""
    used = {name for names in roles.values() for name in names}
    return [
        name
        for name in head.columns
        if name not in used
        and not isinstance(head[name].dtype, pl.Struct | pl.List)
        and head[name].dtype != pl.Binary
        and 2 <= head[name].n_unique() <= max(2, min(50, len(head) // 3))
    ]


def _label(head: pl.DataFrame, name: str) -> LabelColumn:
    label = parse_label(name)
    values = head[name]
    if isinstance(values.dtype, pl.List):
        return replace(label, kind=LabelKind.MULTI)
    if is_quantity(values):
        return replace(label, kind=LabelKind.REGRESSION)
    if values.dtype == pl.String:
        several = values.str.contains(r"[|;]|^\[").mean() or 0
        if isinstance(several, float) and several > 0.1:
            return replace(label, kind=LabelKind.MULTI)
    return label


def _ordinal_options(head: pl.DataFrame, labels: tuple[LabelColumn, ...]) -> Iterator[str]:
    """Yield the labels whose classes are a few whole numbers in a row, as ordered levels."""
    for label in labels:
        if label.kind is LabelKind.SINGLE and are_levels(head[label.column]):
            yield replace(label, kind=LabelKind.ORDINAL).option


def _without_answers(
    head: pl.DataFrame, numbers: tuple[str, ...], labels: tuple[LabelColumn, ...]
) -> tuple[str, ...]:
    """Return the numbers that determine no label. Packing warns about the others."""
    classes = [head[label.column] for label in labels if label.kind is LabelKind.SINGLE]
    kept = []
    for name in numbers:
        values = as_number(pl.col(name)) if head[name].dtype == pl.String else pl.col(name)
        found = head.select(values.cast(pl.Float64).fill_null(float("nan"))).to_series()
        if not any(determines(found.to_numpy(), label) for label in classes):
            kept.append(name)
    return tuple(kept)


def _unique(head: pl.DataFrame, names: list[str]) -> str | None:
    return next((name for name in names if head[name].n_unique() == len(head)), None)


def _guess_splits(
    tables: list[Table],
    head: pl.DataFrame,
    roles: dict[str, list[str]],
    columns: ColumnOptions,
    splits: SplitOptions,
) -> SplitOptions:
    if splits.column or splits.parts or splits.folds:
        return splits
    found = {table.split for table in tables}
    if found == {None} and "split" in roles:
        splits = replace(splits, column=roles["split"][0])
        values = tables[0].frame.select(splits.column).unique().collect().to_series()
        found = {split_of(value) for value in values.drop_nulls()}
    if found == {None}:
        return replace(splits, parts=(80, 10, 10), stratify=_stratify(head, columns.labels))
    if len(found) == 2:
        return replace(splits, parts=(90, 10), stratify=_stratify(head, columns.labels))
    return splits


def _stratify(head: pl.DataFrame, labels: tuple[LabelColumn, ...]) -> str | None:
    """Return the first label of which each class has enough rows."""
    for label in labels:
        if label.kind is LabelKind.SINGLE:
            counts = head[label.column].drop_nulls().value_counts()["count"].to_list()
            if counts and min(counts) >= LEAST_ROWS:
                return label.name
    return None


def report_lines(tables: list[Table], found: Guess, command: list[str]) -> Iterator[str]:
    """Yield the guess, three rows, and the full command line."""
    yield "guess:"
    yield from found.lines
    yield "first rows:"
    for row in tables[0].frame.head(3).collect().to_dicts():
        yield f"  {' | '.join(f'{printable(name)}: {_short(row[name])}' for name in row)}"
    yield "command:"
    yield f"  {shlex.join([*command, *found.arguments])}"


def _short(value: Any) -> str:
    if value is None:
        return "(empty)"
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_short(entry)}" for name, entry in value.items())
    text = printable(str(value))
    return text if len(text) <= 60 else f"{text[:60]}..."
