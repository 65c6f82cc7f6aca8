"""The options of `furnace pack table`: columns, labels and splits, checked as text."""

import re
import string
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.metrics import target_key

SPLIT_WORDS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev", "eval_dev"),
    "test": ("test", "testing", "tst", "eval", "evaluation"),
}
SPLIT_OF = {word: split for split, words in SPLIT_WORDS.items() for word in words}
RESERVED = ("consistency",)  # metrics such as test/consistency/auc compare modalities
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")  # of a task: it names a column file


class LabelKind(StrEnum):
    """The kinds of labels that tasks can be trained on."""

    SINGLE = "single_label"
    MULTI = "multi_label"
    ORDINAL = "ordinal"
    REGRESSION = "regression"

    @property
    def has_one_class(self) -> bool:
        """Whether each row has exactly one class or level."""
        return self in (LabelKind.SINGLE, LabelKind.ORDINAL)


@dataclass(frozen=True)
class LabelColumn:
    """A label of the pack: the task's name, and the column or template that has its values."""

    name: str
    column: str
    kind: LabelKind
    levels: tuple[str, ...] = ()
    """ordinal: the levels from the lowest. Empty: numbers in ascending order."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of its values. Several columns are the targets of a regression."""
        if self.kind is LabelKind.REGRESSION:
            return tuple(part.strip() for part in self.column.split(","))
        return (self.column,)

    @property
    def option(self) -> str:
        """The value of `--label` for this label."""
        kind = f":{self.kind}" if self.kind is not LabelKind.SINGLE else ""
        return f"{self.name}={self.column}{kind}"


@dataclass(frozen=True)
class ColumnOptions:
    """Which columns of the table are what. A value is a column or a template with `{column}`."""

    text: tuple[str, ...] = ()
    image: tuple[str, ...] = ()
    audio: str | None = None
    labels: tuple[LabelColumn, ...] = ()
    id: str | None = None
    group: str | None = None
    weight: str | None = None
    audio_start: str | None = None
    """Column with the second at which a sound starts."""
    audio_end: str | None = None
    text_pair: str | None = None
    """Column of the second text of a pair. The first one is `text`."""
    numbers: tuple[str, ...] = ()
    """Columns of the modality `numbers`. No templates."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities of the pack, in the order of its `present` column."""
        given = {"text": self.text, "image": self.image, "audio": self.audio}
        given["numbers"] = self.numbers
        return tuple(name for name, columns in given.items() if columns)

    @property
    def named(self) -> dict[str, tuple[str, ...]]:
        """Option -> the columns or templates that it names."""
        single = {"--audio": self.audio, "--id": self.id, "--group": self.group}
        single["--weight"] = self.weight
        single["--text-pair"] = self.text_pair
        single |= {"--audio-start": self.audio_start, "--audio-end": self.audio_end}
        named = {"--text": self.text, "--image": self.image}
        named["--numbers"] = self.numbers
        named |= {option: (column,) for option, column in single.items() if column}
        named["--label"] = tuple(spec for label in self.labels for spec in label.columns)
        return {option: columns for option, columns in named.items() if columns}


@dataclass(frozen=True)
class SplitOptions:
    """How rows are divided into train, val and test."""

    parts: tuple[int, ...] = ()
    """Per cent of train, val and test. Two numbers divide the given train rows."""
    column: str | None = None
    val_values: tuple[str, ...] = ()
    test_values: tuple[str, ...] = ()
    folds: int | None = None
    stratify: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class SourceOptions:
    """The files of a table."""

    files: tuple[str, ...] = ()
    """Files, folders or patterns without a split."""
    split_files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Split -> files of this split."""
    media_root: Path | None = None
    encoding: str | None = None
    separator: str | None = None
    """Between the labels of one cell of a multi-label column. None: found in the column."""
    path_pattern: str | None = None
    """Regular expression for the column `path`. Its named groups become columns."""


def parse_label(given: str) -> LabelColumn:
    """Parse `NAME=COL`, `NAME=COL:KIND` or `COL`.

    Raises:
        ConfigError: the name or the kind is invalid.
    """
    name, equals, column = given.partition("=")
    if not equals:
        name, column = "", given
    kind = LabelKind.SINGLE
    head, colon, tail = column.rpartition(":")
    if colon and tail in set(LabelKind):
        column, kind = head, LabelKind(tail)
    elif colon and re.fullmatch(r"[a-z]+_?[a-z]*", tail) and head:
        hint = nearest(tail, [kind.value for kind in LabelKind])
        raise ConfigError(f"--label {given!r} has the kind {tail!r}; {hint}")
    if not name:
        plain = unicodedata.normalize("NFKD", column).encode("ascii", "ignore").decode()
        name = re.sub(r"[^A-Za-z0-9_]+", "_", plain).strip("_") or "label"
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"--label {given!r} has the name {name!r}, wanted letters, digits and _ such as "
            "emotion=COLUMN"
        )
    if not column:
        raise ConfigError(f"--label {given!r} has no column. Give NAME=COLUMN")
    if name.lower() in RESERVED:
        raise ConfigError(
            f"--label {given!r} has the name {name!r}, which metrics already use. Give another "
            f"one, such as {name}_label={column}"
        )
    label = LabelColumn(name, column, kind)
    if not all(label.columns) or len(set(label.columns)) < len(label.columns):
        raise ConfigError(
            f"--label {given!r} has an empty or a repeated column. Give each target once, such as "
            "mood=valence,arousal:regression"
        )
    _check_targets(label)
    return label


def _check_targets(label: LabelColumn) -> None:
    """Raise ConfigError if the metrics of two targets would have one name."""
    seen: dict[str, str] = {}
    for column in label.columns:
        other = seen.setdefault(target_key(column), column)
        if other != column:
            raise ConfigError(
                f"--label {label.option!r}: the metrics of {other!r} and {column!r} would both be "
                f"named {target_key(column)!r}. Rename one of the columns"
            )


def parse_numbers(given: Iterable[str]) -> tuple[str, ...]:
    """Parse all `--numbers COL,COL,...` options.

    Raises:
        ConfigError: a column is empty or given twice.
    """
    columns = tuple(part.strip() for text in given for part in text.split(","))
    if not all(columns):
        raise ConfigError("--numbers has an empty column. Give columns such as age,height")
    if double := next((name for name in columns if columns.count(name) > 1), None):
        raise ConfigError(f"--numbers names {double!r} twice. Give each column once")
    return columns


def parse_labels(given: Iterable[str], levels: Iterable[str] = ()) -> tuple[LabelColumn, ...]:
    """Parse all `--label` and `--levels` options.

    Raises:
        ConfigError: one is invalid, or two have the same name.
    """
    ordered = dict(_parse_levels(text) for text in levels)
    labels = tuple(parse_label(text) for text in given)
    ordinal = [label.name for label in labels if label.kind is LabelKind.ORDINAL]
    for name in ordered:
        if name not in ordinal:
            raise ConfigError(
                f"--levels {name}=... is not an ordinal label. Give --label {name}=COLUMN:ordinal"
            )
    labels = tuple(replace(label, levels=ordered.get(label.name, ())) for label in labels)
    names = [label.name for label in labels]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"--label names {double!r} twice. Give each label its own NAME=COLUMN")
    lower: dict[str, str] = {}
    for name in names:
        if (other := lower.setdefault(name.lower(), name)) != name:
            raise ConfigError(
                f"the labels {other!r} and {name!r} differ only in case, so their files would be "
                "one on some disks. Give one of them another NAME=COLUMN"
            )
    return labels


def _parse_levels(given: str) -> tuple[str, tuple[str, ...]]:
    name, _, text = given.partition("=")
    levels = tuple(level.strip() for level in text.split(","))
    if len(levels) < 2 or not all(levels) or len(set(levels)) < len(levels):
        raise ConfigError(
            f"--levels {given!r} is not a list of different levels. Give them from the lowest, "
            "such as risk=low,medium,high"
        )
    return name, levels


def parse_parts(given: str | None) -> tuple[int, ...]:
    """Parse `--split 80/10/10`, or `--split 90/10` for tables with a test split.

    Raises:
        ConfigError: it is not two or three positive whole numbers that sum to 100.
    """
    if given is None:
        return ()
    try:
        parts = tuple(int(part) for part in given.split("/"))
    except ValueError:
        parts = ()
    if len(parts) not in (2, 3) or min(parts) < 1 or sum(parts) != 100:
        raise ConfigError(
            f"--split is {given!r}, wanted per cent of train, val and test that sum to 100, such "
            "as 80/10/10. Give a column that has the splits with --split-column"
        )
    return parts


def columns_of(spec: str, columns: Iterable[str], option: str) -> list[str]:
    """Return the columns that a column name or a template uses.

    Raises:
        ConfigError: a column does not exist, or the template is malformed.
    """
    known = list(columns)
    if spec in known:
        return [spec]
    if "{" not in spec:
        raise ConfigError(f"{option} {spec!r} is not a column; {nearest(spec, known)}")
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(spec) if name is not None]
    except ValueError as error:
        raise ConfigError(f"{option} {spec!r} is not a template: {error}") from None
    for name in names:
        if name not in known:
            raise ConfigError(f"{option} {spec!r} uses {name!r}; {nearest(name, known)}")
    return names


def split_of(value: str) -> str | None:
    """Return the split that a word such as `validation` or `Dev` means. None if it is none."""
    return SPLIT_OF.get(value.strip().lower())
