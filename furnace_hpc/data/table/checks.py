"""Check a table before anything is packed: ids, labels, and samples that are in two splits."""

from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.manifest import SPLITS, leak_summary
from furnace_hpc.data.table.media import media_at, same_content
from furnace_hpc.data.table.numeric import check_finite
from furnace_hpc.data.table.options import ColumnOptions, LabelColumn, LabelKind
from furnace_hpc.data.table.splits import UNUSED
from furnace_hpc.data.table.staging import Staged

MAX_CLASSES = 10_000
SHOWN = 3  # examples in a message
Codes = NDArray[np.uint8]


@dataclass(frozen=True)
class TargetRange:
    """The numbers of a target in one split."""

    target: str
    split: str
    rows: int
    mean: float
    deviation: float
    least: float
    most: float

    def __str__(self) -> str:
        numbers = f"mean {self.mean:.4g}, deviation {self.deviation:.4g}"
        return f"{numbers}, {self.least:.4g} to {self.most:.4g} ({self.rows:,} rows)"


@dataclass(frozen=True)
class LabelCounts:
    """The classes of a label, and how many rows of each split have them."""

    label: LabelColumn
    classes: tuple[str, ...]
    counts: dict[str, dict[str, int]]
    """Split -> class -> rows."""
    missing: int
    """Rows without a value."""
    index: dict[str, int]
    """Every spelling of a class -> its number."""
    ranges: tuple[TargetRange, ...] = ()
    """Of each target and split of a regression."""


@dataclass
class Leaks:
    """Files and groups that are in two splits."""

    kinds: dict[str, int] = field(default_factory=dict)
    """Kind, such as `image` or `group` -> number of values in two splits."""
    examples: list[str] = field(default_factory=list)

    def add(self, kind: str, number: int, examples: list[str]) -> None:
        """Add leaks of one kind."""
        if number:
            self.kinds[kind] = number
            self.examples += examples[:SHOWN]

    @property
    def summary(self) -> str:
        """Return the numbers as one phrase."""
        return leak_summary(self.kinds)


def check_ids(staged: Staged) -> None:
    """Raise ConfigError if two rows have the same id, or a row has none."""
    hashes = staged.frame.select(pl.col("id").hash(seed=0)).collect(engine="streaming")["id"]
    empty = staged.frame.filter(pl.col("id").is_null()).select("file", "row").head(1).collect()
    if len(empty):
        raise ConfigError(f"{staged.name_of(*empty.row(0))} has no id. Fill in the column of --id")
    double = hashes.is_duplicated()
    if not double.any():
        return
    place = hashes.filter(double)[0]
    rows = (
        staged.frame.filter(pl.col("id").hash(seed=0) == place)
        .select("file", "row", "id")
        .head(2)
        .collect()
    )
    first, second = (staged.name_of(file, row) for file, row, _ in rows.iter_rows())
    raise ConfigError(
        f"id {rows['id'][0]!r} is in {first} and in {second} ({int(double.sum()):,} rows share an "
        "id). Remove the duplicates, or leave out --id"
    )


def count_labels(staged: Staged, label: LabelColumn, codes: Codes, *, merge: bool) -> LabelCounts:
    """Count the classes of a label in each split, or describe the numbers of a regression.

    Args:
        staged: the rows.
        label: the label.
        codes: the split of each row.
        merge: give classes that differ only in case and spaces the most frequent spelling.

    Raises:
        ConfigError: it has one class, too many, or classes that differ only in case and spaces. Or
            levels without an order, or numbers that are not finite or constant.
    """
    column = f"label.{label.name}"
    frame = with_codes(staged, codes).select("split_code", pl.col(column).alias("class"))
    missing = frame.filter(pl.col("class").is_null()).select(pl.len()).collect().item()
    frame = frame.filter(pl.col("class").is_not_null())
    if label.kind is LabelKind.REGRESSION:
        check_targets(staged, label)
        return LabelCounts(label, label.columns, {}, missing, {}, _ranges(label, frame))
    if label.kind is LabelKind.MULTI:
        frame = frame.explode("class").filter(pl.col("class").is_not_null())
    counted = frame.group_by("split_code", "class").len().collect(engine="streaming")
    totals = dict(counted.group_by("class").agg(pl.col("len").sum()).sort("class").iter_rows())
    spelling = _spellings(totals) if merge else {name: name for name in totals}
    classes = sorted(set(spelling.values()), key=_natural)
    _check_classes(label, classes)
    if label.kind is LabelKind.ORDINAL:
        classes = _ordered(label, classes)
    counts: dict[str, dict[str, int]] = {split: {} for split in SPLITS}
    for code, name, number in counted.iter_rows():
        if code != UNUSED:
            of_split = counts[SPLITS[code]]
            of_split[spelling[name]] = of_split.get(spelling[name], 0) + number
    place = {name: number for number, name in enumerate(classes)}
    index = {name: place[spelling[name]] for name in totals}
    return LabelCounts(label, tuple(classes), counts, missing, index)


def _spellings(totals: dict[str, int]) -> dict[str, str]:
    """Return spelling -> the most frequent spelling of the same class."""
    best: dict[str, str] = {}
    for name in sorted(totals, key=lambda name: (-totals[name], name)):
        best.setdefault(_plain(name), name)
    return {name: " ".join(best[_plain(name)].split()) for name in totals}


def _plain(name: str) -> str:
    return " ".join(name.casefold().split())


def _natural(name: str) -> tuple[int, float, str]:
    """Sort whole and decimal numbers by value, before all other names."""
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name


def _check_classes(label: LabelColumn, classes: list[str]) -> None:
    option = f"--label {label.option}"
    if not classes:
        raise ConfigError(f"{option}: the column has no values")
    if len(classes) == 1 and label.kind.has_one_class:
        raise ConfigError(
            f"{option}: all rows have the class {classes[0]!r}, so there is nothing to learn. "
            "Choose another column"
        )
    if len(classes) > MAX_CLASSES:
        raise ConfigError(
            f"{option}: the column has {len(classes):,} classes, at most {MAX_CLASSES:,}. It looks "
            "like an id, a number or a text. Choose another column, or give numbers the kind "
            f"{label.name}={label.column}:regression"
        )
    seen: dict[str, str] = {}
    for name in classes:
        if (other := seen.setdefault(_plain(name), name)) != name:
            raise ConfigError(
                f"{option}: the classes {other!r} and {name!r} differ only in case or spaces. "
                "Give them one spelling in the table, or --merge-labels"
            )


def _ordered(label: LabelColumn, classes: list[str]) -> list[str]:
    """Return the levels from the lowest. Levels that do not occur are kept if they are given."""
    option = f"--label {label.option}"
    if label.levels:
        if unknown := [name for name in classes if name not in label.levels]:
            raise ConfigError(f"{option}: {unknown[0]!r}; {nearest(unknown[0], label.levels)}")
        return list(label.levels)
    if names := [name for name in classes if _natural(name)[0]]:
        raise ConfigError(
            f"{option}: the level {names[0]!r} is not a number, so the order is unknown. Give all "
            f"levels from the lowest with --levels {label.name}=LOW,...,HIGH"
        )
    return classes


def check_targets(staged: Staged, label: LabelColumn) -> None:
    """Raise ConfigError if a target is not a finite number."""
    left_out = " and leave the row out with --max-refused"
    check_finite(staged, f"label.{label.name}", label.columns, f"--label {label.option}", left_out)


def _ranges(label: LabelColumn, frame: pl.LazyFrame) -> tuple[TargetRange, ...]:
    """Describe each target in each split.

    Raises:
        ConfigError: a target is constant in the train split.
    """
    found = []
    for number, column in enumerate(label.columns):
        value = pl.col("class").list.get(number)
        measured = (
            frame.group_by("split_code")
            .agg(
                value.len().alias("rows"),
                *(value.mean().alias("mean"), value.std(ddof=0).alias("deviation")),
                *(value.min().alias("least"), value.max().alias("most")),
            )
            .filter(pl.col("split_code") != UNUSED)
            .sort("split_code")
            .collect(engine="streaming")
        )
        for code, *numbers in measured.iter_rows():
            found.append(TargetRange(column, SPLITS[code], *numbers))
    for part in found:
        if part.split == "train" and part.least == part.most:
            raise ConfigError(
                f"--label {label.option}: column {part.target!r} is {part.least:g} in all train "
                "rows, so there is nothing to learn. Choose another column"
            )
    return tuple(found)


def with_codes(staged: Staged, codes: Codes) -> pl.LazyFrame:
    """Return the rows with the column `split_code`: the number of the split."""
    return staged.frame.with_columns(pl.lit(pl.Series("split_code", codes)))


def find_leaks(staged: Staged, columns: ColumnOptions, codes: Codes) -> Leaks:
    """Find groups and files that are in two splits."""
    leaks = Leaks()
    if columns.group:
        leaks.add("groups", *_shared_groups(staged, codes))
    for slot in staged.slots:
        leaks.add(f"{slot.rstrip('0123456789')} files", *_shared_files(staged, slot, codes))
    return leaks


def check_leaks(leaks: Leaks, columns: ColumnOptions, allowed: bool) -> None:
    """Raise ConfigError if there are leaks that `--allow-leak` does not allow."""
    if not leaks.kinds or allowed:
        return
    hint = "Remove the duplicates or fix the splits"
    if not columns.group:
        hint = "Remove the duplicates, fix the splits, or keep such rows together with --group"
    raise ConfigError(
        f"{leaks.summary} in two splits, so test scores would be too good: "
        f"{'; '.join(leaks.examples)}. {hint}. --allow-leak packs them and names them in the "
        "table's caption"
    )


def _shared_groups(staged: Staged, codes: Codes) -> tuple[int, list[str]]:
    frame = with_codes(staged, codes).filter(pl.col("split_code") != UNUSED)
    shared = _shared(frame.filter(pl.col("group").is_not_null()), "group")
    examples = [
        f"group {group!r} is in {_places(staged, found)}"
        for group, found in shared.head(SHOWN).select("group", "found").iter_rows()
    ]
    return len(shared), examples


def _shared(frame: pl.LazyFrame, key: str) -> pl.DataFrame:
    """Return the keys that are in two splits, with their first row in each split."""
    first = frame.group_by(key, "split_code").agg(
        pl.col("file", "row").sort_by("file", "row").first()
    )
    return (
        first.group_by(key)
        .agg(pl.struct("split_code", "file", "row").alias("found"))
        .filter(pl.col("found").list.len() > 1)
        .sort(key)
        .collect(engine="streaming")
    )


def _places(
    staged: Staged, found: list[dict[str, int]], names: dict[tuple[int, int], str] | None = None
) -> str:
    """Return splits and rows. `names`: file and row of the table -> name of its media file."""
    places = []
    for place in sorted(found, key=lambda place: place["split_code"]):
        own = names[place["file"], place["row"]] if names else ""
        row = staged.name_of(place["file"], place["row"])
        places.append(f"{SPLITS[place['split_code']]} ({', '.join(filter(None, (row, own)))})")
    return " and ".join(places)


def _shared_files(staged: Staged, slot: str, codes: Codes) -> tuple[int, list[str]]:
    """Return the number of distinct contents in two splits, with examples."""
    rows = (
        with_codes(staged, codes)
        .filter(pl.col(slot).is_not_null() & (pl.col("split_code") != UNUSED))
        .select("split_code", "file", "row", pl.col(f"^{slot}(_at|_size|_name|_start|_end)?$"))
        .collect(engine="streaming")
    )
    files = rows.group_by(slot, f"{slot}_at", maintain_order=True).agg(pl.all().first())
    contents: dict[tuple[str, int], int] = {}
    listed = [media_at(row, slot) for row in files.iter_rows(named=True)]
    for number, group in enumerate(same_content(media for media in listed if media)):
        for media in group:
            contents[media.path, media.at] = number
    keys = pl.DataFrame(
        [(path, at, number) for (path, at), number in contents.items()],
        schema={slot: pl.String, f"{slot}_at": pl.Int64, "content": pl.Int64},
        orient="row",
    )
    own = pl.concat_str(pl.col(slot), pl.lit("\0"), pl.col(f"{slot}_at"))
    keyed = rows.join(keys, on=[slot, f"{slot}_at"], how="left").with_columns(
        pl.col("content").cast(pl.String).fill_null(own).alias("key")
    )
    if "audio_start" in keyed.columns:
        keyed = _with_overlaps(keyed)
    shared = _shared(keyed.lazy(), "key")
    places = keyed.select("file", "row", f"{slot}_name").unique(["file", "row"]).iter_rows()
    names = {(file, row): name for file, row, name in places}
    examples = [
        f"one file is in {_places(staged, found, names)}"
        for (found,) in shared.head(SHOWN).select("found").iter_rows()
    ]
    return len(shared), examples


def _with_overlaps(keyed: pl.DataFrame) -> pl.DataFrame:
    """Add to the key of a file the number of a group of overlapping segments of the file."""
    ordered = keyed.sort("key", "audio_start")
    ended = pl.col("audio_end").cum_max().shift(1).over("key") <= pl.col("audio_start")
    number = ended.fill_null(value=False).cum_sum().over("key")
    return ordered.with_columns(pl.concat_str(pl.col("key"), pl.lit("\0"), number).alias("key"))
