"""Pack a table: open, guess, stage, split, check, describe, and then pack each draw."""

import fcntl
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import typer
import xxhash

from furnace_hpc.config.base import MAX_NAME, NAME_PATTERN
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import read_manifest
from furnace_hpc.config.parsing.command_line import furnace
from furnace_hpc.config.parsing.text_safety import printable
from furnace_hpc.data.columns import check_replaceable
from furnace_hpc.data.packing.pack_command import pack_plan
from furnace_hpc.data.packing.required_modalities import require_modalities
from furnace_hpc.data.packing.sample import PackPlan
from furnace_hpc.data.table import checks, numeric, suspicions
from furnace_hpc.data.table.checks import Codes, LabelCounts, Leaks
from furnace_hpc.data.table.guess import guess, report_lines
from furnace_hpc.data.table.options import ColumnOptions, SourceOptions, SplitOptions
from furnace_hpc.data.table.plan import LabelPlan, TableRenderer, blank_row, make_plan
from furnace_hpc.data.table.report.near_images import near_images
from furnace_hpc.data.table.report.page import write_page
from furnace_hpc.data.table.report.profile import Profile, describe, profile_lines
from furnace_hpc.data.table.report.texts import Texts, duplicate_texts, measure_texts
from furnace_hpc.data.table.sources.files import Table, content_of, open_tables, readable
from furnace_hpc.data.table.splits import RowNumbers, rows_of, split_rows
from furnace_hpc.data.table.staging import Staged, missing_files, stage
from furnace_hpc.data.table.stored.knobs import Knobs
from furnace_hpc.data.table.vocabulary import choose_words

MAX_WORDS = 20_000
DATASET = "table"
GENERIC = ("train", "data", "label", "labels", "meta", "metadata", "images", "audio")  # no names


@dataclass(frozen=True)
class PackOptions:
    """The options that do not describe the table."""

    out: Path | None
    allow_leak: bool
    merge_labels: bool
    yes: bool
    require: tuple[str, ...]
    max_refused: float
    workers: int | None
    force: bool
    verify: bool
    jpeg_size: int | None = None
    """Height and width of an image in a batch, if images are stored as JPEG."""


@dataclass(frozen=True)
class Draw:
    """One pack of a table: its folder, rows and plan."""

    out: Path
    codes: Codes
    profile: Profile
    plan: PackPlan


def pack_table(
    sources: SourceOptions,
    columns: ColumnOptions,
    splits: SplitOptions,
    knobs: Knobs,
    options: PackOptions,
) -> None:
    """Pack a table, or print the guess of its columns.

    Raises:
        ConfigError: the table cannot be packed. Nothing is written then.
        Exit: only a guess was printed.
    """
    out = options.out or _default_out(sources)
    _check_out(out)
    with scratch_folder(out) as scratch:
        tables = open_tables(sources, scratch)
        for note in dict.fromkeys(note for table in tables for note in table.notes):
            print(f"note: {note}")
        if not columns.named:
            columns, splits = _guessed(tables, splits, options)
        _check_named(columns, knobs)
        staged = stage(tables, columns, splits.column, scratch, sources.separator)
        if columns.id or len(tables) > 1:  # else ids are numbers of rows
            checks.check_ids(staged)
        numeric.check_segments(staged, columns)
        draws = _draws(tables, staged, columns, splits, knobs, options, out)
        for draw in draws:
            pack_plan(
                draw.plan,
                draw.out,
                workers=options.workers,
                max_refused=options.max_refused,
                force=options.force,
                verify=options.verify,
            )
            profile = _with_near_images(draw)
            print(f"profile: {write_page(draw.out, profile, staged, draw.codes)}")
    folders = [part for draw in draws for part in ("--data", str(draw.out))]
    print(f"then: {furnace('new', out.name, *folders)}")


def _with_near_images(draw: Draw) -> Profile:
    """Print a warning if packed images look alike, and return the profile with it."""
    found = list(near_images(draw.out, read_manifest(draw.out)))
    for warning in found:
        print(printable(f"warning: {warning}"))
    return replace(draw.profile, warnings=[*draw.profile.warnings, *found])


def _default_out(sources: SourceOptions) -> Path:
    first = Path((*sources.files, *sources.split_files.get("train", ()))[0])
    for path in (first.resolve(), *first.resolve().parents):
        name = path.name.partition(".")[0]
        if "*" in name:
            continue
        name = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_-")[:MAX_NAME]
        if name and name.lower() not in GENERIC:
            return Path("data") / name
    return Path("data") / "table"


def _check_out(out: Path) -> None:
    """Raise ConfigError unless a grid can name the pack."""
    if not re.fullmatch(NAME_PATTERN, out.resolve().name):
        raise ConfigError(
            f"--out {str(out)!r}: a grid cannot name this folder. Choose a name of letters, "
            "digits, ., _ and -"
        )


@contextmanager
def scratch_folder(out: Path) -> Iterator[Path]:
    """Make a folder beside the pack for staged rows, and delete it in the end.

    Raises:
        ConfigError: another process packs into `out`.
    """
    out = out.resolve()
    folder = out.with_name(f".{out.name}.table")
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{out} is being packed by another process: wait for it") from None
        rows = folder / "rows"
        shutil.rmtree(rows, ignore_errors=True)
        rows.mkdir()
        try:
            yield rows
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _guessed(
    tables: list[Table], splits: SplitOptions, options: PackOptions
) -> tuple[ColumnOptions, SplitOptions]:
    with readable(tables[0].path):
        found = guess(tables, splits)
    given = [part for part in sys.argv if part != "--yes"]
    command = ["furnace", "pack", *given[given.index("table") :]] if "table" in given else []
    for line in report_lines(tables, found, command):
        print(line)
    if not options.yes:
        print("Nothing is packed yet. Run the command, or add --yes to accept the guess.")
        raise typer.Exit(2)
    return found.columns, found.splits


def _check_named(columns: ColumnOptions, knobs: Knobs) -> None:
    if not columns.labels:
        raise ConfigError(
            "no label is given. Give --label NAME=COLUMN, or leave out the options of columns for "
            "a guess"
        )
    if not columns.text and columns.text_pair:
        raise ConfigError("--text-pair needs --text. Give the column of the first text")
    if not columns.audio and (columns.audio_start or columns.audio_end):
        raise ConfigError(
            "--audio-start and --audio-end need --audio. Give the column of the files"
        )
    if not columns.modalities:
        raise ConfigError(
            "no input is given. Give --text, --image, --audio or --numbers with a column, or leave "
            "out the options of columns for a guess"
        )
    for modality, made in knobs.made_for.items():
        if modality not in columns.modalities:
            raise ConfigError(
                f"--for {modality}={made.encoder} is given without a column. Add --{modality} "
                "COLUMN, or leave it out"
            )


def _draws(
    tables: list[Table],
    staged: Staged,
    columns: ColumnOptions,
    splits: SplitOptions,
    knobs: Knobs,
    options: PackOptions,
    out: Path,
) -> list[Draw]:
    """Check and describe all packs before the first one is written."""
    source = content_of(tables)
    lost = list(missing_files(staged, options.max_refused))
    texts = measure_texts(staged) if columns.text else None
    draws = []
    for number, codes in enumerate(split_rows(staged, splits, bool(columns.group))):
        fold = number if splits.folds else None
        folder = out if fold is None else out.with_name(f"{out.name}-fold{fold}")
        check_replaceable(folder.resolve())
        labels = [
            checks.count_labels(staged, label, codes, merge=options.merge_labels)
            for label in columns.labels
        ]
        _check_missing(staged, labels, options.max_refused)
        if columns.numbers:
            train = checks.with_codes(staged, codes).filter(pl.col("split_code") == 0)
            numeric.check_numbers(staged, columns, train)
        leaks = checks.find_leaks(staged, columns, codes)
        checks.check_leaks(leaks, columns, options.allow_leak)
        warnings = [*lost, *_warnings(tables, staged, columns, codes, labels, texts)]
        profile = describe(
            *(folder.name, staged, codes, labels, warnings, leaks, columns.numbers, texts)
        )
        for line in profile_lines(profile):
            print(printable(line))
        settings = _settings(source, columns, splits, leaks)
        settings["draw"] = {"fold": fold, "rows": _row_hashes(rows_of(codes))}
        plan = _plan(staged, columns, codes, labels, knobs, settings, is_fold=fold is not None)
        if options.jpeg_size and "image" in columns.modalities:
            plan = plan.as_jpeg(options.jpeg_size)
        draws.append(Draw(folder, codes, profile, require_modalities(plan, options.require)))
    return draws


def _check_missing(staged: Staged, labels: list[LabelCounts], max_refused: float) -> None:
    """Raise ConfigError if more rows lack a label than may be refused."""
    for found in labels:
        share = found.missing / staged.num_rows
        if share > max_refused:
            name = f"label.{found.label.name}"
            empty = staged.frame.filter(pl.col(name).is_null()).select("file", "row").head(1)
            raise ConfigError(
                f"--label {found.label.option}: {found.missing:,} of {staged.num_rows:,} rows "
                f"have no value, first {staged.name_of(*empty.collect().row(0))}. Fill them in, "
                f"or leave them out with --max-refused {min(1, share + 0.01):.2f}"
            )


def _warnings(
    tables: list[Table],
    staged: Staged,
    columns: ColumnOptions,
    codes: Codes,
    labels: list[LabelCounts],
    texts: Texts | None,
) -> Iterator[str]:
    yield from suspicions.label_warnings(labels, staged.num_rows)
    if texts:
        yield from duplicate_texts(texts, codes)
    if columns.audio_start or columns.audio_end:
        yield from suspicions.divided_sounds(staged, codes)
    yield from suspicions.number_warnings(staged, columns, codes)
    yield from suspicions.determined_labels(tables, staged, columns)


def _settings(
    source: dict[str, str], columns: ColumnOptions, splits: SplitOptions, leaks: Leaks
) -> dict[str, Any]:
    """Return the settings of a pack that its columns do not show."""
    settings: dict[str, Any] = {
        "source": source,
        "pool": f"table {xxhash.xxh3_64_hexdigest(repr(sorted(source.items())).encode())}",
        "columns": {option.lstrip("-"): list(names) for option, names in columns.named.items()},
        "splits": {
            "parts": list(splits.parts),
            "column": splits.column,
            "val_values": list(splits.val_values),
            "test_values": list(splits.test_values),
            "folds": splits.folds,
            "stratify": splits.stratify,
            "seed": splits.seed,
        },
    }
    settings["columns"]["label"] = [label.option for label in columns.labels]
    if levels := {label.name: list(label.levels) for label in columns.labels if label.levels}:
        settings["levels"] = levels
    if leaks.kinds:
        settings["leak"] = leaks.kinds
    return settings


def _row_hashes(rows: dict[str, RowNumbers]) -> dict[str, str]:
    return {
        split: xxhash.xxh3_64_hexdigest(numbers.numbers.tobytes())
        for split, numbers in rows.items()
    }


def _plan(
    staged: Staged,
    columns: ColumnOptions,
    codes: Codes,
    labels: list[LabelCounts],
    knobs: Knobs,
    settings: dict[str, Any],
    *,
    is_fold: bool,
) -> PackPlan:
    planned = {
        found.label.name: LabelPlan(found.label.kind, found.classes, found.index)
        for found in labels
    }
    words: tuple[str, ...] = ()
    if columns.text and knobs.uses_own_words:
        words = tuple(choose_words(staged, codes, MAX_WORDS, same_size=is_fold))
    frames = tuple(slot for slot in staged.slots if slot != "audio")
    id_bytes = staged.frame.select(pl.col("id").str.len_bytes().max()).collect().item()
    has_weights = columns.weight is not None
    blank = blank_row(
        *(id_bytes, columns.modalities, len(frames), planned, knobs, words, has_weights),
        *(len(columns.numbers), columns.text_pair is not None),
    )
    renderer = TableRenderer(
        *(staged.parts, staged.tables, columns.modalities, frames, planned, knobs, words),
        *(has_weights, blank, columns.numbers),
    )
    return make_plan(renderer, DATASET, rows_of(codes), settings)
