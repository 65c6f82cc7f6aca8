"""Pack raw files into memory-mapped columns: `furnace pack tridigits --out data/tridigits`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.parsing.command_line import furnace
from furnace_hpc.config.parsing.numbers import whole_number
from furnace_hpc.console.progress_bar import progress_bar
from furnace_hpc.data.packing.instructions import fix_instructions
from furnace_hpc.data.packing.pack_command import (
    ImageStore,
    StoredSize,
    choice,
    knobs_of,
    pack_plan,
    refuse_for,
    run,
    stored_size_of,
)
from furnace_hpc.data.table import command as table_command

_WIDE = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class _Sets(TyperGroup):
    """The data sets as subcommands. An error lists them if the given name is unknown."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands and Path(args[0]).exists():
            raise ConfigError(
                f"{args[0]} is a table or a folder. Pack it with: "
                f"{furnace('pack', 'table', '--source', args[0])}"
            )
        if args[0] not in self.commands and not args[0].startswith("-"):
            raise ConfigError(f"unknown data set {args[0]!r}; {nearest(args[0], self.commands)}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command. numpy is imported later."""
        fix_instructions()
        return super().invoke(ctx)


main = typer.Typer(
    cls=_Sets,
    name="pack",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings=_WIDE,
    help="Pack a data set into memory-mapped columns. The same options give the same columns.\n\n"
    "An interrupted pack resumes. `furnace pack DATASET --help` lists the options of a data set.",
)

# --- options of several data sets ---

Out = Annotated[Path, typer.Option(metavar="DIR", help="Folder of the pack, e.g. data/mmimdb.")]
Source = Annotated[Path, typer.Option(metavar="DIR", help="Folder with the raw files.")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Worker processes [all usable cores]. They do not change the pack."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing pack.")]
Verify = Annotated[
    bool, typer.Option("--verify", help="Read all columns again and compare their hashes.")
]
MaxRefused = Annotated[
    float,
    typer.Option(min=0, max=1, help="Fraction of the samples that may have an unreadable file."),
]
Require = Annotated[
    list[str] | None,
    typer.Option(help="Leave out samples without this modality. Use it if a row has no other one."),
]
Size = Annotated[int, typer.Option(help="Height and width of stored images, in pixels.")]
Fit = Annotated[str, typer.Option(help="crop (middle square) or stretch (whole picture).")]
For = Annotated[list[str] | None, typer.Option("--for", hidden=True)]
Filter = Annotated[str, typer.Option(help="Resizing filter: bicubic or bilinear.")]

# --- options of TriDigits: None is the default of `TriDigitsKnobs` ---

Variant = Annotated[str | None, typer.Option(help="digits (default), xor, redundant or unique.")]
Seed = Annotated[
    int | None,
    typer.Option(
        parser=whole_number, metavar="INTEGER", help="Seed of all random numbers [20261123]."
    ),
]
Pool = Annotated[
    str | None,
    typer.Option(
        metavar="I/K",
        help="Use the I-th of K parts of the images and voices. The K packs share none of them.",
    ),
]
SnrDb = Annotated[
    float | None, typer.Option(help="Speech over noise, in dB [-6; other variants 10].")
]
ImageNoise = Annotated[
    float | None,
    typer.Option(help="Standard deviation of pixel noise [0.2; other variants 0.1]."),
]
Occlusion = Annotated[
    float | None, typer.Option(help="Probability of a black bar [0.2; other variants 0].")
]
TwoClues = Annotated[
    float | None, typer.Option(help="Probability of two clues instead of one [1].")
]
FalseClue = Annotated[
    float | None, typer.Option(help="Probability of a clue to a random digit [0.1].")
]
Samples = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Also write three test samples as text, PNG and WAV files."),
]

# --- options of AudioSet ---

ValFraction = Annotated[
    float,
    typer.Option(min=0.001, max=0.5, help="Fraction of train to validate on, without --val-list."),
]
Audio = Annotated[
    Path | None, typer.Option(metavar="DIR", help="<id>.flac, .wav, .ogg or .mp3 [SOURCE/audio].")
]
Frames = Annotated[
    Path | None, typer.Option(metavar="DIR", help="frame_<n>/<id>.jpg [SOURCE/frames].")
]
NumClasses = Annotated[
    int,
    typer.Option(
        min=1, help="Rows of class_labels_indices.csv. Change it for your own choice of classes."
    ),
]
AudioFrames = Annotated[int, typer.Option(help="Audio frames stored: 10.24 s at the default hop.")]


main.command("table", context_settings=_WIDE, help=table_command.HELP)(table_command.table)


@main.command(context_settings=_WIDE)
def tridigits(
    out: Out,
    variant: Variant = None,
    seed: Seed = None,
    pool: Pool = None,
    train: Annotated[int | None, typer.Option(help="Samples of the train split [4000].")] = None,
    val: Annotated[int | None, typer.Option(help="Samples of the val split [1000].")] = None,
    test: Annotated[int | None, typer.Option(help="Samples of the test split [2000].")] = None,
    snr_db: SnrDb = None,
    image_noise: ImageNoise = None,
    occlusion: Occlusion = None,
    two_clues: TwoClues = None,
    false_clue: FalseClue = None,
    speech: Annotated[str | None, typer.Option(help="bank (default) or espeak.")] = None,
    samples: Samples = None,
    workers: Workers = None,
    force: Force = False,
    verify: Verify = False,
) -> None:
    """Digits as image, speech and text clues: the default set, made here."""
    from furnace_hpc.data.sets.tridigits.pack import pack_once
    from furnace_hpc.data.sets.tridigits.plan import TriDigitsKnobs

    options = {
        "variant": variant,
        "seed": seed,
        "pool": pool,
        "train": train,
        "val": val,
        "test": test,
        "snr_db": snr_db,
        "image_noise": image_noise,
        "occlusion": occlusion,
        "two_clues": two_clues,
        "false_clue": false_clue,
        "speech": speech,
    }
    given = {name: value for name, value in options.items() if value is not None}
    knobs = knobs_of(TriDigitsKnobs, "", **given)
    run(
        out,
        lambda report: pack_once(knobs, out, report, workers=workers, force=force),
        verify=verify,
    )
    if samples:
        from furnace_hpc.data.sets.tridigits.sample_files import write_samples

        for path in write_samples(out, samples):
            print(path)


@main.command(context_settings=_WIDE)
def mmimdb(
    source: Source,
    out: Out,
    tokenizer: Annotated[
        str, typer.Option(help="Folder, or name of a model in the hub's cache.")
    ] = "bert-base-uncased",
    max_tokens: Annotated[int, typer.Option(min=3, max=512, help="Tokens stored per plot.")] = 256,
    plot: Annotated[
        str, typer.Option(help="Which of a movie's plots: longest, first or joined.")
    ] = "longest",
    image_size: Size = 224,
    image_store: ImageStore = "pixels",
    image_stored_size: StoredSize = None,
    image_fit: Fit = "crop",
    image_filter: Filter = "bicubic",
    for_: For = None,
    require: Require = None,
    max_refused: MaxRefused = 0.05,
    workers: Workers = None,
    force: Force = False,
    verify: Verify = False,
) -> None:
    """Plots and posters, 23 genres: split.json and dataset/, or the HDF5 file."""
    from furnace_hpc.data.decode.images import ImageKnobs
    from furnace_hpc.data.packing.required_modalities import require_modalities
    from furnace_hpc.data.sets.mmimdb import HDF5_FILE, MovieKnobs, plan_raw

    refuse_for("mmimdb", for_, "a movie with its plot, genres and the path of its poster")
    size = stored_size_of(image_store, image_size, image_stored_size)
    image = knobs_of(ImageKnobs, "image-", size=size, fit=image_fit, filter=image_filter)
    knobs = MovieKnobs(
        image, tokenizer, max_tokens, choice("--plot", plot, ("longest", "first", "joined"))
    )
    hdf5 = source
    if not source.is_file():
        hdf5 = source / HDF5_FILE
    if hdf5.is_file() and not (source / "dataset").is_dir():
        from furnace_hpc.data.sets.mmimdb_hdf5 import plan_hdf5

        plan = plan_hdf5(hdf5, knobs)
    else:
        plan = plan_raw(source, knobs)
    plan = require_modalities(plan, tuple(require or ()))
    if image_store == "jpeg":
        plan = plan.as_jpeg(image_size)
    pack_plan(plan, out, workers=workers, max_refused=max_refused, force=force, verify=verify)


@main.command(context_settings=_WIDE)
def avmnist(
    source: Source,
    out: Out,
    make: Annotated[bool, typer.Option("--make", help="First make the set in --source.")] = False,
    digits: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="With --make: MNIST's files [scikit-learn's digits]."),
    ] = None,
    components: Annotated[
        int, typer.Option(min=1, max=784, help="With --make: principal components of images.")
    ] = 4,
    snr_db: Annotated[float, typer.Option(help="With --make: speech over noise, in dB.")] = 0.0,
    speech: Annotated[str, typer.Option(help="With --make: bank or espeak.")] = "bank",
    seed: Annotated[
        int,
        typer.Option(
            parser=whole_number, metavar="INTEGER", help="With --make: seed of all random numbers."
        ),
    ] = 20261123,
    max_refused: MaxRefused = 0.05,
    workers: Workers = None,
    force: Force = False,
    verify: Verify = False,
) -> None:
    """Images and speech of digits: MultiBench's npy files, or made here."""
    from furnace_hpc.data.sets.avmnist import plan_avmnist
    from furnace_hpc.data.sets.avmnist_synthesis import MakeKnobs, is_made, make_avmnist
    from furnace_hpc.data.sets.tridigits.speech import check_source

    if make:
        chosen = check_source(choice("--speech", speech, ("bank", "espeak")))
        knobs = MakeKnobs(seed, components, snr_db, chosen)
        if not is_made(source, knobs):
            with progress_bar() as report:
                make_avmnist(source, digits, knobs, report)
    plan = plan_avmnist(source)
    pack_plan(plan, out, workers=workers, max_refused=max_refused, force=force, verify=verify)


@main.command(context_settings=_WIDE)
def audioset(
    source: Source,
    out: Out,
    train_list: Annotated[
        str, typer.Option(help="List of the train split in --source: CSV, or CAV-MAE's JSON.")
    ] = "balanced_train_segments.csv",
    val_list: Annotated[
        str | None, typer.Option(help="List of the val split [a part of train].")
    ] = None,
    test_list: Annotated[str, typer.Option(help="List of the test split.")] = "eval_segments.csv",
    val_fraction: ValFraction = 0.1,
    audio: Audio = None,
    frames: Frames = None,
    num_classes: NumClasses = 527,
    num_frames: Annotated[int, typer.Option(min=1, max=100, help="Frames of a clip.")] = 10,
    feature: Annotated[str, typer.Option(help="mfcc or log_mel.")] = "mfcc",
    coefficients: Annotated[int, typer.Option(help="Coefficients of an audio frame.")] = 40,
    audio_frames: AudioFrames = 640,
    hop: Annotated[int, typer.Option(help="Samples between audio frames, at 16 kHz.")] = 256,
    window: Annotated[int, typer.Option(help="Samples of a frame's Fourier transform.")] = 1024,
    channels: Annotated[
        str, typer.Option(help="Stereo to mono: mean, or first as in CAV-MAE.")
    ] = "mean",
    image_size: Size = 224,
    image_store: ImageStore = "pixels",
    image_stored_size: StoredSize = None,
    image_fit: Fit = "crop",
    image_filter: Filter = "bicubic",
    for_: For = None,
    require: Require = None,
    max_refused: MaxRefused = 0.05,
    workers: Workers = None,
    force: Force = False,
    verify: Verify = False,
) -> None:
    """10 s clips with frames, 527 classes: official CSVs, or CAV-MAE's JSON."""
    from furnace_hpc.data.decode.audio import SoundKnobs
    from furnace_hpc.data.decode.images import ImageKnobs
    from furnace_hpc.data.packing.required_modalities import require_modalities
    from furnace_hpc.data.sets.audioset import ClipKnobs, Lists, plan_audioset

    refuse_for("audioset", for_, "a clip with the paths of its frames and sound, and its classes")
    frame: dict[str, Any] = {
        "frames": audio_frames,
        "hop": hop,
        "window": window,
        "channels": channels,
    }
    sound = knobs_of(SoundKnobs, feature=feature, coefficients=coefficients, **frame)
    size = stored_size_of(image_store, image_size, image_stored_size)
    image = knobs_of(ImageKnobs, "image-", size=size, fit=image_fit, filter=image_filter)
    lists = Lists(train_list, val_list, test_list)
    knobs = ClipKnobs(image, sound, num_frames, val_fraction, num_classes)
    plan = plan_audioset(
        source, lists, audio or source / "audio", frames or source / "frames", knobs
    )
    plan = require_modalities(plan, tuple(require or ()))
    if image_store == "jpeg":
        plan = plan.as_jpeg(image_size)
    pack_plan(plan, out, workers=workers, max_refused=max_refused, force=force, verify=verify)


if __name__ == "__main__":
    from furnace_hpc.cli import run_command

    run_command(main)
