"""The command `furnace pack table`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.numbers import whole_number
from furnace_hpc.data.packing.pack_command import (
    ImageStore,
    StoredSize,
    choice,
    knobs_of,
    stored_size_of,
)
from furnace_hpc.data.table.options import (
    ColumnOptions,
    SourceOptions,
    SplitOptions,
    parse_labels,
    parse_parts,
)

HELP = """Your own table of texts, images, sounds and labels.

Without column options the command prints its guess and stops. --yes accepts the guess.

\b
Examples:
  furnace pack table --source reviews.csv
  furnace pack table --source reviews.csv --text review --label stars --split 80/10/10
  furnace pack table --train train.jsonl --val dev.jsonl --test test.jsonl \\
    --text text --image img --label hateful=label
  furnace pack table --source esc50.csv --audio '{filename}' --media-root audio \\
    --label category --split-column fold --val-value 4 --test-value 5
"""
if TYPE_CHECKING:  # it imports numpy, which is too slow for --help
    from furnace_hpc.data.table.plan import Knobs

Files = list[str] | None
Columns = list[str] | None

Source = Annotated[
    Files,
    typer.Option(
        metavar="FILE",
        help="CSV, TSV, JSON lines, Parquet, Arrow or tar file, a list of paths (.txt), a folder, "
        "or a pattern in quotes. Repeatable.",
    ),
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
MaxTokens = Annotated[int, typer.Option(min=3, max=512, help="Tokens stored per text.")]
Size = Annotated[int, typer.Option(help="Height and width of stored images, in pixels.")]
Fit = Annotated[str, typer.Option(help="crop (middle square) or stretch (whole picture).")]
Seconds = Annotated[
    float, typer.Option(min=0.1, max=300, help="Seconds stored per sound. The rest is cut.")
]
Feature = Annotated[str, typer.Option(help="mfcc or log_mel.")]
Coefficients = Annotated[int, typer.Option(help="Coefficients of an audio frame.")]
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
    source: Source = None,
    train: Train = None,
    val: Val = None,
    test: Test = None,
    out: Out = None,
    text: Text = None,
    image: Image = None,
    audio: Audio = None,
    label: Label = None,
    levels: Levels = None,
    id_: Id = None,
    group: Group = None,
    weight: Weight = None,
    media_root: MediaRoot = None,
    label_separator: Separator = None,
    encoding: Encoding = None,
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
    max_tokens: MaxTokens = 128,
    image_size: Size = 224,
    image_store: ImageStore = "pixels",
    image_stored_size: StoredSize = None,
    image_fit: Fit = "crop",
    audio_seconds: Seconds = 6.4,
    feature: Feature = "mfcc",
    coefficients: Coefficients = 40,
    require: Require = None,
    max_refused: MaxRefused = 0.05,
    workers: Workers = None,
    force: Force = False,
    verify: Verify = False,
) -> None:
    """Pack a table: `HELP` explains it to users."""
    columns = ColumnOptions(
        *(tuple(text or ()), tuple(image or ()), audio, parse_labels(label or (), levels or ())),
        *(id_, group, weight),
    )
    values = tuple(val_value or ()), tuple(test_value or ())
    splits = SplitOptions(parse_parts(split), split_column, *values, folds, stratify, seed)
    files = {"train": train, "val": val, "test": test}
    from furnace_hpc.data.table.run import PackOptions, pack_table

    size = stored_size_of(image_store, image_size, image_stored_size)
    jpeg_size = image_size if image_store == "jpeg" else None
    knobs = _knobs(tokenizer, max_tokens, size, image_fit, audio_seconds, feature, coefficients)
    given = out, allow_leak, merge_labels, yes, tuple(require or ()), max_refused
    options = PackOptions(*given, workers, force, verify, jpeg_size)
    tables = _sources(source, files, media_root, encoding, label_separator)
    pack_table(tables, columns, splits, knobs, options)


def _sources(
    source: Files,
    files: dict[str, Files],
    media_root: Path | None,
    encoding: str | None,
    separator: str | None,
) -> SourceOptions:
    """Check which files are given.

    Raises:
        ConfigError: none, --source together with another, or no file for train.
    """
    given = {split: tuple(names) for split, names in files.items() if names}
    if source and given:
        option = f"--{next(iter(given))}"
        raise ConfigError(
            f"--source and {option} are both given. Give --source FILE for all rows, or --train, "
            "--val and --test"
        )
    if not source and not given:
        raise ConfigError(
            "no table is given. Give --source FILE, or one file per split with --train, --val and "
            "--test"
        )
    if given and "train" not in given:
        raise ConfigError("--train is missing. Give the file of the train split")
    if media_root is not None and not media_root.is_dir():
        raise ConfigError(f"--media-root {media_root} is not a folder")
    return SourceOptions(tuple(source or ()), given, media_root, encoding, separator)


def _knobs(
    tokenizer: str,
    max_tokens: int,
    size: int,
    fit: str,
    seconds: float,
    feature: str,
    coefficients: int,
) -> "Knobs":
    from furnace_hpc.data.decode.audio import SoundKnobs
    from furnace_hpc.data.decode.images import ImageKnobs
    from furnace_hpc.data.table.plan import Knobs

    image = knobs_of(ImageKnobs, "image-", size=size, fit=fit)
    choice("--feature", feature, ("mfcc", "log_mel"))
    sound = knobs_of(SoundKnobs, feature=feature, coefficients=coefficients)
    frames = max(1, round(seconds * sound.sample_rate_hz / sound.hop))
    return Knobs(image, sound.model_copy(update={"frames": frames}), tokenizer, max_tokens)
