"""Check the options of `furnace pack`, run a pack, and print its report."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.console.progress_bar import Report, progress_bar
from furnace_hpc.host.regular_file import read_regular

if TYPE_CHECKING:  # they import numpy, which is too slow for --help
    from furnace_hpc.config.manifest import Manifest
    from furnace_hpc.data.packing.sample import PackPlan

Knobs = TypeVar("Knobs", bound=BaseModel)
ImageStore = Annotated[
    str, typer.Option(help="pixels, or jpeg: a tenth of the bytes, decoded in training.")
]
StoredSize = Annotated[
    int | None,
    typer.Option(
        metavar="PX",
        help="Larger height and width of stored images, for random crops. With --image-store jpeg.",
    ),
]


def knobs_of(kind: type[Knobs], prefix: str = "", **options: Any) -> Knobs:
    """Return the settings of these options. The names of the options begin with `prefix`.

    Raises:
        ConfigError: the value of an option is invalid.
    """
    try:
        return kind(**options)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            option = f"--{prefix}{problem['loc'][0]}".replace("_", "-")
            message = problem["msg"].removeprefix("Value error, ")
            message = message[0].lower() + message[1:]
            problems.append(f"{option} is {problem['input']!r}: {message}")
        raise ConfigError("; ".join(problems)) from None


def choice(option: str, given: str, valid: tuple[str, ...]) -> Any:
    """Return `given` if it is one of `valid`, else raise ConfigError."""
    if given not in valid:
        raise ConfigError(f"{option} is {given!r}; {nearest(given, valid)}")
    return given


def refuse_for(name: str, given: list[str] | None, row: str) -> None:
    """Raise ConfigError if `--for` is given to a set that is not packed for an encoder."""
    if given:
        raise ConfigError(
            f"furnace pack {name} has no --for. Write a table with a row for {row}, and pack it "
            f"with `furnace pack table --for {given[0]}`"
        )


def stored_size_of(store: str, size: int, stored_size: int | None) -> int:
    """Return the height and width of stored images.

    Raises:
        ConfigError: the options contradict each other.
    """
    choice("--image-store", store, ("pixels", "jpeg"))
    if stored_size is None:
        return size
    if store != "jpeg":
        raise ConfigError(
            f"--image-stored-size is {stored_size} and --image-store is {store}. Add "
            "--image-store jpeg"
        )
    if stored_size < size:
        raise ConfigError(
            f"--image-stored-size is {stored_size}, less than --image-size {size}. Give at least "
            "that"
        )
    return stored_size


def pack_plan(
    plan: "PackPlan",
    out: Path,
    *,
    workers: int | None,
    max_refused: float,
    force: bool,
    verify: bool,
) -> None:
    """Pack a plan with a progress bar, and print a report."""
    from furnace_hpc.data.packing.pack import pack_files

    def pack(report: Report) -> "tuple[Manifest, bool]":
        return pack_files(plan, out, report, workers=workers, max_refused=max_refused, force=force)

    for note in plan.notes:
        print(f"note: {note}")
    try:
        run(out, pack, verify=verify)
    except KeyboardInterrupt:
        print(f"interrupted: progress is in {out}.packing. Run the same command to resume.")
        raise


def run(out: Path, pack: "Callable[[Report], tuple[Manifest, bool]]", *, verify: bool) -> None:
    """Run `pack` with a progress bar and print a report. With `verify`, read all columns again."""
    started_s = time.monotonic()
    with progress_bar() as report:
        manifest, packed_now = pack(report)
    sizes = ", ".join(f"{split} {count:,}" for split, count in manifest.splits.items())
    num_mb = sum(file.num_bytes for file in manifest.files.values()) / 1e6
    state = "packed into" if packed_now else "already packed with these settings, nothing done:"
    print(
        f"{manifest.dataset} {state} {out} "
        f"({sizes}; {num_mb:,.1f} MB; fingerprint {manifest.fingerprint})"
    )
    if manifest.counts:
        _print_counts(manifest, out)
    if packed_now and manifest.counts:
        elapsed_s = time.monotonic() - started_s
        print(f"{elapsed_s:,.0f} s")
    if verify:
        from furnace_hpc.data.columns import open_columns

        open_columns(out, verify=True)
        print(f"verified: {len(manifest.files)} files have the hashes in the manifest")


def _print_counts(manifest: "Manifest", out: Path) -> None:
    from furnace_hpc.data.packing.rejects import reasons_of

    names = list(next(iter(manifest.counts.values())))
    print("".join(f"{name:>12}" for name in ("split", *names)))
    for split, counts in manifest.counts.items():
        print(f"{split:>12}" + "".join(f"{counts[name]:>12,}" for name in names))
    reasons = reasons_of(read_regular(out / "refused.jsonl", None))
    if reasons:
        print(f"not read: {', '.join(f'{reason} {count:,}' for reason, count in reasons.items())}")
        print(f"{out / 'refused.jsonl'} has a line for each of them")
