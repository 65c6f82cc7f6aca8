"""Describe a table in a few numbers: splits, classes, lengths of texts, sizes and durations."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import SPLITS
from furnace_hpc.config.parsing.plural import counted
from furnace_hpc.config.parsing.text_safety import printable
from furnace_hpc.data.decode.separate_process import DecoderProcess
from furnace_hpc.data.packing.rejects import Unusable
from furnace_hpc.data.table.checks import Codes, LabelCounts, Leaks, with_codes
from furnace_hpc.data.table.media import Media, image_size, media_at, sound_length
from furnace_hpc.data.table.report.texts import Texts
from furnace_hpc.data.table.splits import UNUSED
from furnace_hpc.data.table.staging import Staged

Found = TypeVar("Found")
PROBED = 200  # files whose header is read
MOST_CLASSES = 20  # that are listed
BAR = 24  # characters of the longest bar
READERS = ("furnace_hpc.data.table.media",)


@dataclass(frozen=True)
class Spread:
    """Least, median and most of some numbers."""

    what: str
    unit: str
    least: float
    median: float
    most: float
    number: int
    """How many values were measured."""

    def __str__(self) -> str:
        least, median, most = (_number(value) for value in (self.least, self.median, self.most))
        spread = f"median {' '.join(filter(None, (median, self.unit)))}, {least} to {most}"
        return f"{self.what}: {spread} ({self.number:,} measured)"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


@dataclass(frozen=True)
class Profile:
    """The description of a table."""

    name: str
    splits: dict[str, int]
    modalities: dict[str, int]
    """Modality -> rows that have it."""
    labels: list[LabelCounts]
    spreads: list[Spread]
    warnings: list[str]
    leaks: Leaks
    numbers: tuple[str, ...] = ()
    """Columns of the modality `numbers`."""


def describe(
    name: str,
    staged: Staged,
    codes: Codes,
    labels: list[LabelCounts],
    warnings: list[str],
    leaks: Leaks,
    numbers: tuple[str, ...] = (),
    texts: Texts | None = None,
) -> Profile:
    """Measure a table. Headers of files are read in another process, for a part of the rows.

    Raises:
        ConfigError: no file of a column can be read.
    """
    warnings = list(warnings)
    splits = {split: int((codes == code).sum()) for code, split in enumerate(SPLITS)}
    columns = {slot.rstrip("0"): slot for slot in staged.slots if slot in ("image0", "audio")}
    if texts:
        columns = {"text": "text"} | columns
    if numbers:
        columns["numbers"] = "numbers"
    in_splits = with_codes(staged, codes).filter(pl.col("split_code") != UNUSED)
    present = in_splits.select(pl.col(list(columns.values())).count()).collect(engine="streaming")
    modalities = {modality: int(present[column][0]) for modality, column in columns.items()}
    spreads = []
    if texts and len(texts.lengths):
        spreads.append(_spread("text", "words", texts.lengths))
    spreads += [_spread_of_numbers(staged, *column) for column in enumerate(numbers)]
    with DecoderProcess(READERS) as decoder:
        if "image0" in staged.slots:
            spreads += _image_sizes(staged, decoder, warnings)
        if "audio" in staged.slots:
            spreads += _durations(staged, decoder, warnings)
    return Profile(name, splits, modalities, labels, spreads, warnings, leaks, numbers)


def _spread_of_numbers(staged: Staged, number: int, column: str) -> Spread:
    cells = pl.col("numbers").list.get(number).drop_nulls()
    found = staged.frame.select(cells).collect(engine="streaming").to_series()
    return _spread(column, "", found.to_numpy())


def _image_sizes(staged: Staged, decoder: DecoderProcess, warnings: list[str]) -> Iterator[Spread]:
    sizes = np.array(_probe(decoder, image_size, _probed(staged, "image0"), "image", warnings))
    if len(sizes):
        yield _spread("image width", "px", sizes[:, 0])
        yield _spread("image height", "px", sizes[:, 1])


def _durations(staged: Staged, decoder: DecoderProcess, warnings: list[str]) -> Iterator[Spread]:
    found = np.array(_probe(decoder, sound_length, _probed(staged, "audio"), "audio", warnings))
    if len(found):
        yield _spread("sound", "s", found[:, 0])
        yield _spread("sound rate", "Hz", found[:, 1])


def _probed(staged: Staged, slot: str) -> list[Media]:
    """Return files of rows that are evenly spread over the table."""
    step = max(1, staged.num_rows // PROBED)
    rows = staged.frame.gather_every(step).filter(pl.col(slot).is_not_null()).head(PROBED).collect()
    found = (media_at(row, slot) for row in rows.iter_rows(named=True))
    return [media for media in found if media]


def _probe(
    decoder: DecoderProcess,
    read: Callable[[Media, Any], Found],
    files: list[Media],
    kind: str,
    warnings: list[str],
) -> list[Found]:
    """Read headers. Add a warning if files that exist cannot be read.

    Raises:
        ConfigError: no file can be read, because the column has files of another kind.
    """
    found, problems, num_missing = [], list[str](), 0
    for media in files:
        try:
            found.append(decoder.read(read, media, None))
        except (Unusable, ConfigError) as error:
            if isinstance(error, Unusable) and error.reason == "missing":
                num_missing += 1
            else:
                problems.append(
                    f"{media.name!r} ({' '.join(' '.join(map(str, error.args)).split())[:200]})"
                )
    looked_at = len(files) - num_missing
    if problems and not found:
        raise ConfigError(
            f"none of {counted(looked_at, f'{kind} file')} can be read, such as {problems[0]}. "
            f"Give --{kind} a column of {kind} files"
        )
    if problems:
        warnings.append(
            f"{len(problems):,} of {counted(looked_at, f'{kind} file')} that were looked at cannot "
            f"be read, such as {problems[0]}"
        )
    return found


def _spread(what: str, unit: str, values: NDArray[Any]) -> Spread:
    least, median, most = (float(value) for value in np.quantile(values, (0, 0.5, 1)))
    return Spread(what, unit, least, median, most, len(values))


def profile_lines(profile: Profile) -> Iterator[str]:
    """Yield the lines that are printed before a table is packed."""
    total = sum(profile.splits.values())
    sizes = ", ".join(f"{split} {count:,}" for split, count in profile.splits.items())
    yield f"{profile.name}: {total:,} rows ({sizes})"
    for modality, count in profile.modalities.items():
        if count < total:
            yield f"{modality}: {count:,} rows have it"
    for found in profile.labels:
        kind = found.label.kind.replace("_", " ")
        if found.ranges:
            yield f"label {found.label.name}: {kind}"
            yield from (f"  {part.target} ({part.split}): {part}" for part in found.ranges)
            continue
        yield f"label {found.label.name}: {len(found.classes):,} classes, {kind}"
        yield from _bars(found)
    yield from (str(spread) for spread in profile.spreads)
    yield from (f"warning: {warning}" for warning in profile.warnings)
    if profile.leaks.kinds:
        yield f"warning: {profile.leaks.summary} in two splits (--allow-leak)"


def shown_classes(found: LabelCounts) -> list[tuple[str, int, list[int]]]:
    """Return the most frequent classes: name, rows, and rows of each split."""
    rows = []
    for name in found.classes:
        counts = [found.counts[split].get(name, 0) for split in SPLITS]
        rows.append((name, sum(counts), counts))
    return sorted(rows, key=lambda row: -row[1])[:MOST_CLASSES]


def _bars(found: LabelCounts) -> Iterator[str]:
    rows = shown_classes(found)
    width = min(30, max(len(printable(name)) for name, _, _ in rows))
    most = max(1, rows[0][1])
    for name, total, counts in rows:
        bar = "█" * max(1, round(BAR * total / most)) if total else ""
        parts = "/".join(f"{count:,}" for count in counts)
        yield f"  {printable(name)[:width]:<{width}} {bar:<{BAR}} {total:>9,}  {parts}"
    if (left := len(found.classes) - len(rows)) > 0:
        yield f"  and {left:,} more classes"
