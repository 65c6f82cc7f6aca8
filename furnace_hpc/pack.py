"""Turn raw data into memory-mapped columns: `python -m furnace_hpc.pack tridigits --out data/tridigits`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.parsing.numbers import whole_number
from furnace_hpc.console.progress_bar import progress_bar
from furnace_hpc.data.packing.pack_command import choice, knobs_of, pack_plan, run

_WIDE = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class _Sets(TyperGroup):
    """Names the sets where an unknown one is asked for."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands and not args[0].startswith("-"):
            raise ConfigError(f"unknown data set {args[0]!r}; {nearest(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


main = typer.Typer(
    cls=_Sets,
    name="pack",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings=_WIDE,
    help="Pack a data set into memory-mapped columns; the same settings give the same columns.\n\n"
    "An interrupted pack goes on where it was; `furnace pack DATASET --help` tells a set's options.",
)

Out = Annotated[Path, typer.Option(metavar="DIR", help="Folder of the pack, e.g. data/mmimdb.")]
Source = Annotated[Path, typer.Option(metavar="DIR", help="Folder with the raw files.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="At work at once [all usable cores]; no value changes.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace a pack that is already there.")]
Verify = Annotated[
    bool, typer.Option("--verify", help="Read all columns again, and compare their hashes.")
]
MaxRefused = Annotated[
    float,
    typer.Option(
        min=0, max=1, help="Part of the samples that may have a file that cannot be read."
    ),
]
Require = Annotated[
    list[str] | None,
    typer.Option(
        help="Leave out samples that lack this modality, so that a row can train on it alone."
    ),
]
Size = Annotated[int, typer.Option(help="Height and width of stored images, pixels.")]
Fit = Annotated[str, typer.Option(help="crop (the middle square) or stretch (the whole picture).")]
Filter = Annotated[str, typer.Option(help="Resizing filter: bicubic or bilinear.")]


@main.command(context_settings=_WIDE)
def tridigits(
    out: Out,
    variant: Annotated[
        str | None, typer.Option(help="digits (default), xor, redundant or unique.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            parser=whole_number, metavar="INTEGER", help="The one seed of every draw [20261123]."
        ),
    ] = None,
    train: Annotated[int | None, typer.Option(help="Samples of the train split [4000].")] = None,
    val: Annotated[int | None, typer.Option(help="Samples of the val split [1000].")] = None,
    test: Annotated[int | None, typer.Option(help="Samples of the test split [2000].")] = None,
    snr_db: Annotated[
        float | None, typer.Option(help="Speech over noise in dB [-6; all but digits 10].")
    ] = None,
    image_noise: Annotated[
        float | None, typer.Option(help="Deviation of pixel noise [0.2; others 0.1].")
    ] = None,
    occlusion: Annotated[
        float | None, typer.Option(help="Probability of a black bar [0.2; others 0].")
    ] = None,
    two_clues: Annotated[
        float | None, typer.Option(help="Probability of two clues, else one [1].")
    ] = None,
    false_clue: Annotated[
        float | None, typer.Option(help="Probability of a misled clue [0.1].")
    ] = None,
    speech: Annotated[str | None, typer.Option(help="auto (default), espeak or bank.")] = None,
    samples: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Also write three test samples as text, PNG and WAV files."
        ),
    ] = None,
    workers: Workers = None,
    force: Force = False,
    verify: Verify = False,
) -> None:
    """A digit seen, heard and hinted at: the default set, made here."""
    options = {
        "variant": variant,
        "seed": seed,
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
    from furnace_hpc.data.sets.tridigits.pack import pack_once
    from furnace_hpc.data.sets.tridigits.plan import TriDigitsKnobs

    knobs = knobs_of(
        TriDigitsKnobs, "", **{name: value for name, value in options.items() if value is not None}
    )
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
        str, typer.Option(help="Folder, or a model in the hub's cache.")
    ] = "bert-base-uncased",
    max_tokens: Annotated[
        int, typer.Option(min=3, max=512, help="Tokens stored of each plot.")
    ] = 256,
    plot: Annotated[
        str, typer.Option(help="longest, first or joined, of a movie's plots.")
    ] = "longest",
    image_size: Size = 224,
    image_fit: Fit = "crop",
    image_filter: Filter = "bicubic",
    require: Require = None,
    max_refused: MaxRefused = 0.05,
    workers: Workers = None,
    force: Force = False,
    verify: Verify = False,
) -> None:
    """Plots and posters, 23 genres: split.json and dataset/, or the HDF5 file."""
    from furnace_hpc.data.decode.images import ImageKnobs
    from furnace_hpc.data.packing.required_modalities import requiring
    from furnace_hpc.data.sets.mmimdb import HDF5_FILE, MovieKnobs, plan_raw

    image = knobs_of(ImageKnobs, "image-", size=image_size, fit=image_fit, filter=image_filter)
    knobs = MovieKnobs(
        image, tokenizer, max_tokens, choice("--plot", plot, ("longest", "first", "joined"))
    )
    hdf5 = source if source.is_file() else source / HDF5_FILE
    if hdf5.is_file() and not (source / "dataset").is_dir():
        from furnace_hpc.data.sets.mmimdb_hdf5 import plan_hdf5

        plan = plan_hdf5(hdf5, knobs)
    else:
        plan = plan_raw(source, knobs)
    plan = requiring(plan, tuple(require or ()))
    pack_plan(plan, out, workers=workers, max_refused=max_refused, force=force, verify=verify)


@main.command(context_settings=_WIDE)
def avmnist(
    source: Source,
    out: Out,
    make: Annotated[bool, typer.Option("--make", help="Make the set in --source first.")] = False,
    digits: Annotated[
        Path | None, typer.Option(metavar="DIR", help="--make: MNIST's files [scikit-learn's].")
    ] = None,
    components: Annotated[
        int, typer.Option(min=1, max=784, help="--make: principal components of images.")
    ] = 4,
    snr_db: Annotated[float, typer.Option(help="--make: speech over noise in dB.")] = 0.0,
    speech: Annotated[str, typer.Option(help="--make: auto, espeak or bank.")] = "auto",
    seed: Annotated[
        int,
        typer.Option(
            parser=whole_number, metavar="INTEGER", help="--make: the one seed of every draw."
        ),
    ] = 20261123,
    max_refused: MaxRefused = 0.05,
    workers: Workers = None,
    force: Force = False,
    verify: Verify = False,
) -> None:
    """Seen and spoken digits: MultiBench's npy files, or made here."""
    from furnace_hpc.data.sets.avmnist import plan_avmnist
    from furnace_hpc.data.sets.avmnist_synthesis import MakeKnobs, is_made, make_avmnist
    from furnace_hpc.data.sets.tridigits.speech import find_source

    if make:
        chosen = find_source(choice("--speech", speech, ("auto", "espeak", "bank")))
        knobs = MakeKnobs(seed, components, snr_db, chosen)
        if not is_made(source, knobs):
            with progress_bar() as report:
                make_avmnist(source, digits, knobs, report)
    pack_plan(
        plan_avmnist(source),
        out,
        workers=workers,
        max_refused=max_refused,
        force=force,
        verify=verify,
    )


@main.command(context_settings=_WIDE)
def audioset(
    source: Source,
    out: Out,
    train_list: Annotated[
        str, typer.Option(help="CSV or CAV-MAE JSON in --source.")
    ] = "balanced_train_segments.csv",
    val_list: Annotated[
        str | None, typer.Option(help="The same, to validate [a part of train].")
    ] = None,
    test_list: Annotated[str, typer.Option(help="The same, to test.")] = "eval_segments.csv",
    val_fraction: Annotated[
        float, typer.Option(min=0.001, max=0.5, help="Without --val-list: of train, by id.")
    ] = 0.1,
    audio: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="<id>.flac, .wav, .ogg or .mp3 [SOURCE/audio]."),
    ] = None,
    frames: Annotated[
        Path | None, typer.Option(metavar="DIR", help="frame_<n>/<id>.jpg [SOURCE/frames].")
    ] = None,
    num_classes: Annotated[
        int,
        typer.Option(
            min=1, help="Rows of class_labels_indices.csv; another number for a choice of your own."
        ),
    ] = 527,
    num_frames: Annotated[int, typer.Option(min=1, max=100, help="Frames of a clip.")] = 10,
    feature: Annotated[str, typer.Option(help="mfcc or log_mel.")] = "mfcc",
    coefficients: Annotated[int, typer.Option(help="Of each audio frame.")] = 40,
    audio_frames: Annotated[
        int, typer.Option(help="Audio frames stored; at the default hop 10.24 s.")
    ] = 640,
    hop: Annotated[int, typer.Option(help="Samples from frame to frame, at 16 kHz.")] = 256,
    window: Annotated[int, typer.Option(help="Samples of a frame's Fourier transform.")] = 1024,
    channels: Annotated[
        str, typer.Option(help="Stereo to mono: mean, or first as CAV-MAE.")
    ] = "mean",
    image_size: Size = 224,
    image_fit: Fit = "crop",
    image_filter: Filter = "bicubic",
    require: Require = None,
    max_refused: MaxRefused = 0.05,
    workers: Workers = None,
    force: Force = False,
    verify: Verify = False,
) -> None:
    """10 s clips with frames, 527 classes: official CSVs, or CAV-MAE's JSON."""
    from furnace_hpc.data.decode.audio import SoundKnobs
    from furnace_hpc.data.decode.images import ImageKnobs
    from furnace_hpc.data.packing.required_modalities import requiring
    from furnace_hpc.data.sets.audioset import ClipKnobs, Lists, plan_audioset

    sound = knobs_of(
        SoundKnobs,
        feature=feature,
        coefficients=coefficients,
        frames=audio_frames,
        hop=hop,
        window=window,
        channels=channels,
    )
    image = knobs_of(ImageKnobs, "image-", size=image_size, fit=image_fit, filter=image_filter)
    lists = Lists(train_list, val_list, test_list)
    knobs = ClipKnobs(image, sound, num_frames, val_fraction, num_classes)
    plan = plan_audioset(
        source, lists, audio or source / "audio", frames or source / "frames", knobs
    )
    plan = requiring(plan, tuple(require or ()))
    pack_plan(plan, out, workers=workers, max_refused=max_refused, force=force, verify=verify)


if __name__ == "__main__":
    from furnace_hpc.cli import run_command

    run_command(main)
