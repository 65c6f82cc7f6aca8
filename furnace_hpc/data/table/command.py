"""The command `furnace pack table`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.numbers import whole_number
from furnace_hpc.data.packing.pack_command import ImageStore, StoredSize
from furnace_hpc.data.table.options import (
    ColumnOptions,
    SourceOptions,
    SplitOptions,
    parse_labels,
    parse_numbers,
    parse_parts,
)

if TYPE_CHECKING:  # polars is not needed for --help
    from furnace_hpc.data.table.run import PackOptions

HELP = """Your own table of texts, images, sounds, numbers and labels.

Without column options the command prints its guess and stops. --yes accepts the guess.

\b
Examples:
  furnace pack table --source reviews.csv
  furnace pack table --source reviews.csv --text review --label stars --split 80/10/10
  furnace pack table --train train.jsonl --val dev.jsonl --test test.jsonl \\
    --text text --image img --label hateful=label
  furnace pack table --source posts.csv --text text --image file --label topic \\
    --for text=roberta-base --for image=facebook/dinov2-base
  furnace pack table --source esc50.csv --audio '{filename}' --media-root audio \\
    --label category --split-column fold --val-value 4 --test-value 5
  furnace pack table --source patients.csv --text report --numbers age,pulse --label died
"""
Files = list[str] | None
Columns = list[str] | None
Given = Mapping[str, Any]  # option of `table` -> its value

Source = Annotated[
    Files,
    typer.Option(
        metavar="FILE",
        help="CSV, TSV, JSON lines, Parquet, Arrow or tar file, a list of paths (.txt), a folder, "
        "or a pattern of files in quotes. Repeatable.",
    ),
]
More = Annotated[
    Files, typer.Argument(metavar="FILE", help="The same as --source.", show_default=False)
]
Train = Annotated[Files, typer.Option(metavar="FILE", help="File of the train split. Repeatable.")]
Val = Annotated[Files, typer.Option(metavar="FILE", help="File of the val split. Repeatable.")]
Test = Annotated[Files, typer.Option(metavar="FILE", help="File of the test split. Repeatable.")]
Out = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder of the pack [data/NAME of the source].")
]
Text = Annotated[
    Columns, typer.Option(metavar="COL", help="Column of a text. Several are joined by new lines.")
]
TextPair = Annotated[
    str | None,
    typer.Option(
        metavar="COL",
        help="Column of the second text of a pair, such as a hypothesis or an answer. The text "
        "encoder gets [CLS] text [SEP] second [SEP] with token types.",
    ),
]
Image = Annotated[
    Columns,
    typer.Option(
        metavar="COL",
        help="Column of image files, or a template such as 'img/{id}.jpg'. Several are frames.",
    ),
]
Audio = Annotated[
    str | None, typer.Option(metavar="COL", help="Column of sound files, or a template.")
]
AudioStart = Annotated[
    str | None,
    typer.Option(metavar="COL", help="Seconds at which the row's segment of the sound starts [0]."),
]
AudioEnd = Annotated[
    str | None, typer.Option(metavar="COL", help="Seconds at which it ends [the sound's end].")
]
Numbers = Annotated[
    Columns,
    typer.Option(
        metavar="COL,COL,...",
        help="Columns of numbers, such as age and height: one more input, standardised by the "
        "train split. Empty cells are missing values. Repeatable.",
    ),
]
Label = Annotated[
    Columns,
    typer.Option(
        metavar="[NAME=]COL[:KIND]",
        help="Label of the task NAME. KIND: single_label (default), multi_label, ordinal, or "
        "regression (of several targets: COL,COL:regression). Repeatable.",
    ),
]
Levels = Annotated[
    Columns,
    typer.Option(
        metavar="NAME=LOW,...,HIGH",
        help="Levels of an ordinal label [numbers, ascending]. Repeatable.",
    ),
]
Id = Annotated[str | None, typer.Option("--id", metavar="COL", help="Unique name of a row.")]
Group = Annotated[
    str | None,
    typer.Option(metavar="COL", help="Rows with the same value, such as a speaker, share a split."),
]
Weight = Annotated[
    str | None, typer.Option(metavar="COL", help="Weights for `data.sampling: weighted`.")
]
MediaRoot = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder to which paths are relative [the file's folder]."),
]
Separator = Annotated[
    str | None,
    typer.Option(help="Between labels of a multi_label cell [|, ; or comma, if it occurs]."),
]
Encoding = Annotated[str | None, typer.Option(help="Of CSV files [UTF-8, or UTF-16 with a mark].")]
PathPattern = Annotated[
    str | None,
    typer.Option(
        metavar="REGEX",
        help="For the column path of a folder or list: its named groups, as in "
        "'(?P<actor>[0-9]+)_', become columns.",
    ),
]
MergeLabels = Annotated[
    bool, typer.Option("--merge-labels", help="Join classes that differ in case or spaces only.")
]
Split = Annotated[
    str | None,
    typer.Option(
        metavar="80/10/10", help="Per cent of train, val and test. Two numbers: of train."
    ),
]
SplitColumn = Annotated[
    str | None, typer.Option(metavar="COL", help="Column with train, val and test.")
]
ValValue = Annotated[
    list[str] | None, typer.Option(help="Value of --split-column that is val. Repeatable.")
]
TestValue = Annotated[
    list[str] | None, typer.Option(help="Value of --split-column that is test. Repeatable.")
]
Folds = Annotated[
    int | None, typer.Option(min=3, help="Write packs OUT-fold0, ... for the grid's `packs:`.")
]
Stratify = Annotated[
    str | None, typer.Option(metavar="NAME", help="Label whose classes get the same shares.")
]
Seed = Annotated[
    int, typer.Option(parser=whole_number, metavar="INTEGER", help="Seed of the splits.")
]
AllowLeak = Annotated[
    bool, typer.Option("--allow-leak", help="Allow a file or group in two splits. Tables name it.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Pack with the guessed columns.")]
Tokenizer = Annotated[
    str,
    typer.Option(help="words (of the train split), a tokenizer's folder, or a model in the cache."),
]
For = Annotated[
    list[str] | None,
    typer.Option(
        "--for",
        metavar="MODALITY=ENCODER",
        help="Prepare text, image or audio as a Hugging Face encoder needs it: text=roberta-base. "
        "A folder, or a name in the hub's cache. Repeatable.",
    ),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(min=3, max=8192, help="Tokens stored per text [128; with --for at most 512]."),
]
Size = Annotated[
    int | None, typer.Option(help="Height and width of stored images, in pixels [224].")
]
Fit = Annotated[
    str | None, typer.Option(help="crop (middle square) or stretch (whole picture) [crop].")
]
Seconds = Annotated[
    float | None,
    typer.Option(min=0.1, max=300, help="Seconds stored per sound, the rest is cut [6.4]."),
]
Store = Annotated[
    str, typer.Option(help="features, or waveform: 16-bit samples for encoders that take them.")
]
Rate = Annotated[
    int | None, typer.Option(metavar="HZ", help="Samples per second of a waveform [16000].")
]
Feature = Annotated[str | None, typer.Option(help="mfcc or log_mel [mfcc].")]
Coefficients = Annotated[int | None, typer.Option(help="Coefficients of an audio frame [40].")]
Require = Annotated[
    list[str] | None, typer.Option(help="Leave out samples without this modality. Repeatable.")
]
MaxRefused = Annotated[
    float, typer.Option(min=0, max=1, help="Fraction of the samples that may be unreadable.")
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Worker processes [all usable cores]. They do not change the pack."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing pack.")]
Verify = Annotated[bool, typer.Option("--verify", help="Read all columns again and compare.")]


def table(
    files: More = None,
    source: Source = None,
    train: Train = None,
    val: Val = None,
    test: Test = None,
    out: Out = None,
    text: Text = None,
    text_pair: TextPair = None,
    image: Image = None,
    audio: Audio = None,
    audio_start: AudioStart = None,
    audio_end: AudioEnd = None,
    numbers: Numbers = None,
    label: Label = None,
    levels: Levels = None,
    id_: Id = None,
    group: Group = None,
    weight: Weight = None,
    media_root: MediaRoot = None,
    label_separator: Separator = None,
    encoding: Encoding = None,
    path_pattern: PathPattern = None,
    merge_labels: MergeLabels = False,
    split: Split = None,
    split_column: SplitColumn = None,
    val_value: ValValue = None,
    test_value: TestValue = None,
    folds: Folds = None,
    stratify: Stratify = None,
    seed: Seed = 0,
    allow_leak: AllowLeak = False,
    yes: Yes = False,
    tokenizer: Tokenizer = "words",
    for_: For = None,
    max_tokens: MaxTokens = None,
    image_size: Size = None,
    image_store: ImageStore = "pixels",
    image_stored_size: StoredSize = None,
    image_fit: Fit = None,
    audio_seconds: Seconds = None,
    audio_store: Store = "features",
    audio_rate: Rate = None,
    feature: Feature = None,
    coefficients: Coefficients = None,
    require: Require = None,
    max_refused: MaxRefused = 0.05,
    workers: Workers = None,
    force: Force = False,
    verify: Verify = False,
) -> None:
    """Pack a table: `HELP` explains it to users."""
    given = locals()
    from furnace_hpc.data.table.run import pack_table
    from furnace_hpc.data.table.stored.options import knobs_from

    columns, splits = _columns(given), _splits(given)
    pack_table(_sources(given), columns, splits, knobs_from(given), _pack_options(given))


def _columns(given: Given) -> ColumnOptions:
    return ColumnOptions(
        text=tuple(given["text"] or ()),
        image=tuple(given["image"] or ()),
        audio=given["audio"],
        labels=parse_labels(given["label"] or (), given["levels"] or ()),
        id=given["id_"],
        group=given["group"],
        weight=given["weight"],
        numbers=parse_numbers(given["numbers"] or ()),
        audio_start=given["audio_start"],
        audio_end=given["audio_end"],
        text_pair=given["text_pair"],
    )


def _splits(given: Given) -> SplitOptions:
    values = tuple(given["val_value"] or ()), tuple(given["test_value"] or ())
    more = (given[name] for name in ("folds", "stratify", "seed"))
    return SplitOptions(parse_parts(given["split"]), given["split_column"], *values, *more)


def _pack_options(given: Given) -> "PackOptions":
    from furnace_hpc.data.table.run import PackOptions
    from furnace_hpc.data.table.stored.options import jpeg_size

    names = ("out", "allow_leak", "merge_labels", "yes", "max_refused", "workers", "force")
    named = {name: given[name] for name in (*names, "verify")}
    size = jpeg_size(given["image_store"], given["image_size"])
    return PackOptions(require=tuple(given["require"] or ()), jpeg_size=size, **named)


def _sources(given: Given) -> SourceOptions:
    """Check which files are given.

    Raises:
        ConfigError: none, --source together with another, or no file for train.
    """
    source, media_root = (*(given["source"] or ()), *(given["files"] or ())), given["media_root"]
    splits = {split: tuple(given[split]) for split in ("train", "val", "test") if given[split]}
    if source and splits:
        option = f"--{next(iter(splits))}"
        raise ConfigError(
            f"--source and {option} are both given. Give --source FILE for all rows, or --train, "
            "--val and --test"
        )
    if not source and not splits:
        raise ConfigError(
            "no table is given. Give --source FILE, or one file per split with --train, --val and "
            "--test"
        )
    if splits and "train" not in splits:
        raise ConfigError("--train is missing. Give the file of the train split")
    if media_root is not None and not media_root.is_dir():
        raise ConfigError(f"--media-root {media_root} is not a folder")
    more = given["encoding"], given["label_separator"], given["path_pattern"]
    return SourceOptions(source, splits, media_root, *more)
