"""Turn raw data into memory-mapped columns: `python -m furnace_hpc.pack tridigits --out data/tridigits`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from furnace_hpc.spec.errors import ConfigError, nearest

if TYPE_CHECKING:  # numpy and librosa come in with it: too slow for --help
    from furnace_hpc.data.tridigits_plan import TriDigitsKnobs

DATASETS = ("tridigits",)


def main(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help=f"One of: {', '.join(DATASETS)}.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the pack, e.g. data/tridigits.")],
    variant: Annotated[str | None, typer.Option(help="digits (default) or xor (joint rule).")] = None,
    seed: Annotated[int | None, typer.Option(help="The one seed of every draw [20261123].")] = None,
    train: Annotated[int | None, typer.Option(help="Samples of the train split [4000].")] = None,
    val: Annotated[int | None, typer.Option(help="Samples of the val split [1000].")] = None,
    test: Annotated[int | None, typer.Option(help="Samples of the test split [2000].")] = None,
    snr_db: Annotated[float | None, typer.Option(help="Speech over noise in dB [-6; xor 10].")] = None,
    image_noise: Annotated[float | None, typer.Option(help="Deviation of pixel noise [0.2; xor 0.1].")] = None,
    occlusion: Annotated[float | None, typer.Option(help="Probability of a black bar [0.2; xor 0].")] = None,
    two_clues: Annotated[float | None, typer.Option(help="Probability of two clues, else one [1].")] = None,
    false_clue: Annotated[float | None, typer.Option(help="Probability of a misled clue [0.1].")] = None,
    speech: Annotated[str | None, typer.Option(help="auto (default), espeak or bank.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads [all usable cores]; no value changes.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a pack that is already there.")] = False,
) -> None:
    """Pack a data set into memory-mapped columns; the same settings give the same columns."""
    if dataset not in DATASETS:
        raise ConfigError(f"unknown data set {dataset!r}; {nearest(dataset, DATASETS)}")
    knobs = _tridigits_knobs(
        variant=variant,
        seed=seed,
        train=train,
        val=val,
        test=test,
        snr_db=snr_db,
        image_noise=image_noise,
        occlusion=occlusion,
        two_clues=two_clues,
        false_clue=false_clue,
        speech=speech,
    )
    _pack_tridigits(knobs, out, workers, force)


def _tridigits_knobs(**options: Any) -> "TriDigitsKnobs":
    """Return the knobs of the options that were given.

    Raises:
        ConfigError: an option's value is out of its range.
    """
    from pydantic import ValidationError

    from furnace_hpc.data.tridigits_plan import TriDigitsKnobs

    try:
        return TriDigitsKnobs(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        problems = [
            f"--{str(e['loc'][0]).replace('_', '-')} is {e['input']!r}: {e['msg'][0].lower()}{e['msg'][1:]}"
            for e in error.errors()
        ]
        raise ConfigError("; ".join(problems)) from None


def _pack_tridigits(knobs: "TriDigitsKnobs", out: Path, workers: int | None, force: bool) -> None:
    """Pack with a progress bar, and say what came out."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from furnace_hpc.data.tridigits import pack_once

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns) as bar:
        tasks: dict[str, Any] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what)
            bar.update(tasks[what], completed=done, total=total)

        manifest, packed_now = pack_once(knobs, out, progress, workers=workers, force=force)
    sizes = ", ".join(f"{split} {count:,}" for split, count in manifest.splits.items())
    num_mb = sum(file.num_bytes for file in manifest.files.values()) / 1e6
    state = "packed into" if packed_now else "already packed with these settings, nothing done:"
    print(f"tridigits {state} {out} ({sizes}; {num_mb:.1f} MB; fingerprint {manifest.fingerprint})")


if __name__ == "__main__":
    from furnace_hpc.cli import run_command

    run_command(main)
