"""Check the packed data before a submission, from manifests and file sizes alone."""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from furnace_hpc.config.augmentation import check_augmentation
from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.flatten import flatten
from furnace_hpc.config.grids.row import GridRow
from furnace_hpc.config.manifest import (
    SAMPLING_WEIGHT,
    SPLITS,
    Manifest,
    check_files,
    read_manifest,
)
from furnace_hpc.config.metrics import split_target, target_key
from furnace_hpc.config.preprocessing.fit import check_fit
from furnace_hpc.config.train_config import RunSpec, TrainConfig, with_steps
from furnace_hpc.host.regular_file import check_regular
from furnace_hpc.launch.grids.messages import are_collected, show_message

# `submit` packs these sets itself. The numbers are the seed of the data, or the part of the pool.
PACKS_ITSELF = re.compile(
    r"tridigits(?:-seed(?P<seed>\d{1,9})|-(?P<part>[1-9]|10)of(?P<parts>[2-9]|10))?"
)
Split = Literal["train", "val", "test"]
NOT_PACKED = "not-packed-yet"


def fingerprints(
    rows: list[GridRow], data_root: Path, dry_run: bool, metrics: tuple[str, ...] = ()
) -> dict[str, str]:
    """Return data set -> fingerprint for every set that a grid's rows use.

    It packs the default set if it is missing, except in a dry run.

    Args:
        rows: of the grid.
        data_root: folder of the packs.
        dry_run: only print that the default set is not packed.
        metrics: of the grid's table. Their targets are checked.

    Raises:
        ConfigError: a set is not packed, is damaged, or lacks what a row needs. Or the `packs` of a
            row are not draws of one data set.
    """
    manifests: dict[str, Manifest | None] = {}
    folders = {name: data_root / name for row in rows for name in row.packs}
    for row in rows:
        for name in row.packs:
            folder = folders[name]
            if name not in manifests:
                manifests[name] = _manifest(name, folder, dry_run)
            if manifest := manifests[name]:
                _check_row(row.name, row.config, manifest, folder)
                for metric in (row.config.selection_metric, *metrics):
                    _check_target(metric, manifest, folder)
    for packs in dict.fromkeys(row.packs for row in rows):
        _check_draws({name: manifest for name in packs if (manifest := manifests[name])})
    return {name: _fingerprint(manifest) for name, manifest in manifests.items()}


def with_steps_of_epochs(specs: list[RunSpec], data_root: Path) -> list[RunSpec]:
    """Replace the epochs of runs by steps, from the size of the train split.

    A dry run may plan runs on a set that is not packed yet. Their steps stay unknown.

    Raises:
        ConfigError: a manifest cannot be read.
    """
    sizes: dict[str, int] = {}
    found = []
    for spec in specs:
        config, name = spec.config, spec.config.data.name
        if config.epochs is None or spec.data_fingerprint == NOT_PACKED:
            found.append(spec)
            continue
        if name not in sizes:
            sizes[name] = read_manifest(data_root / name).splits["train"]
        found.append(spec.model_copy(update={"config": with_steps(config, sizes[name])}))
    return found


def _fingerprint(manifest: Manifest | None) -> str:
    return manifest.fingerprint if manifest else NOT_PACKED


def _manifest(name: str, folder: Path, dry_run: bool) -> Manifest | None:
    """Read a set's manifest and check the sizes of its files. None if it is packed later."""
    if not folder.exists():
        default = PACKS_ITSELF.fullmatch(name)
        if not default or int(default["part"] or 0) > int(default["parts"] or 0):
            raise ConfigError(
                f"data set {name!r} is not packed: there is no folder {folder}; pack it with "
                f"`furnace pack DATASET --out {folder}`"
            )
        if dry_run:
            show_message(
                f"data set {name!r} is not packed: `furnace submit` will pack it into {folder} "
                f"first, and the run ids below will change"
            )
            return None
        _pack_default(folder, default)
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    return manifest


def _pack_default(folder: Path, name: re.Match[str]) -> None:
    words = ["tridigits", "--out", str(folder)]
    if name["seed"]:
        words += ["--seed", name["seed"]]
    if name["part"]:
        words += ["--pool", f"{name['part']}/{name['parts']}"]
    command = [sys.executable, "-P", "-m", "furnace_hpc.pack", *words]
    done = subprocess.run(command, capture_output=are_collected(), text=True)
    if done.returncode == 2 and done.stderr:
        raise ConfigError(done.stderr.strip().removeprefix("error: "))
    if done.returncode == 2:
        raise SystemExit(2)  # pack has already printed the error
    if code := done.returncode:
        raise ConfigError(
            f"packing the default data set failed (exit code {code}): {' '.join(command)}"
        )


def _check_draws(packs: dict[str, Manifest]) -> None:
    """Raise ConfigError unless all packs are draws of one data set, with distinct content.

    Their settings may differ in seeds, and in the part of one pool.
    """
    by_content: dict[str, str] = {}
    first = next(iter(packs), "")
    for name, manifest in packs.items():
        same = by_content.setdefault(manifest.fingerprint, name)
        if same != name:
            raise ConfigError(
                f"packs {same!r} and {name!r} contain the same samples and would count twice: pack "
                f"one of them with another --seed, or remove it"
            )
        ours, theirs = _recipe(manifest), _recipe(packs[first])
        if other := sorted(key for key in ours | theirs if ours.get(key) != theirs.get(key)):
            key = other[0]
            what = f"setting {key}" if key else "the data set"
            raise ConfigError(
                f"packs {first!r} and {name!r} are not two draws of one data set: {what} is "
                f"{theirs.get(key)!r} in one and {ours.get(key)!r} in the other. To compare data "
                f"sets, use `axes: data.name`"
            )


def _recipe(manifest: Manifest) -> dict[str, object]:
    """Return key -> value of everything that made a pack, except its seed and its part of a pool.

    The data set has key "".
    """
    settings = flatten(manifest.preprocessing)
    kept = {key: value for key, value in settings.items() if not _of_one_draw(key)}
    if pool := kept.get("knobs.pool"):  # I/K: the number of parts must be the same
        kept["knobs.pool"] = f"I/{str(pool).rpartition('/')[2]}"
    return {"": manifest.dataset} | kept


def _of_one_draw(key: str) -> bool:
    """Whether a setting may differ between draws. `draw` has the rows and words of a fold."""
    return key.split(".")[-1] == "seed" or key.startswith("draw.")


def _check_row(row: str, config: TrainConfig, manifest: Manifest, folder: Path) -> None:
    _check_splits(manifest, folder)
    _check_tasks(row, config, manifest, folder)
    for modality in config.model.modalities:
        if modality not in manifest.modalities:
            hint = nearest(modality, manifest.modalities)
            raise ConfigError(
                f"row {row!r}: data set {folder} has no modality {modality!r}; {hint}"
            )
    _check_options(row, config, manifest, folder)
    _check_presence(row, config, manifest, folder)
    check_fit(config.model, manifest, str(folder), f"row {row!r}: ")


def _check_splits(manifest: Manifest, folder: Path) -> None:
    filled = {name for name, count in manifest.splits.items() if count}
    if missing := [split for split in SPLITS if split not in filled]:
        every = ", ".join(SPLITS)
        raise ConfigError(
            f"data set {folder} has no samples in {missing}: pack it with all of {every}"
        )


def _check_tasks(row: str, config: TrainConfig, manifest: Manifest, folder: Path) -> None:
    for task in config.tasks:
        if task.name not in manifest.labels:
            hint = nearest(task.name, manifest.labels)
            raise ConfigError(
                f"row {row!r}: data set {folder} has no label column for task {task.name!r}; {hint}"
            )
        if (kind := manifest.labels[task.name].kind) != task.kind:
            raise ConfigError(
                f"row {row!r}: task {task.name!r} is {kind} in {folder} and {task.kind} in the grid"
            )


def _check_target(metric: str, manifest: Manifest, folder: Path) -> None:
    """Raise ConfigError if a metric names a target that its task does not have."""
    plain, target = split_target(metric)
    task = plain.partition("@")[0].partition("/")[2].rpartition("/")[0]
    if not target or task not in manifest.labels:
        return
    names = [target_key(name) for name in manifest.labels[task].classes]
    if len(names) < 2:
        raise ConfigError(
            f"metric {metric!r} is of one target, and task {task!r} has only one in {folder}. "
            f"Write {plain}"
        )
    if target not in names:
        raise ConfigError(
            f"metric {metric!r}: task {task!r} in {folder} has no target {target!r}; "
            f"{nearest(target, names)}"
        )


def _check_options(row: str, config: TrainConfig, manifest: Manifest, folder: Path) -> None:
    if config.data.sampling == "weighted" and SAMPLING_WEIGHT not in manifest.columns:
        raise ConfigError(
            f"row {row!r}: data.sampling is weighted, but data set {folder} has no column "
            f"{SAMPLING_WEIGHT}: use permutation, or a set that is packed with weights, such as "
            f"audioset"
        )
    try:
        check_augmentation(config.augment, config.model.modalities, manifest)
    except ConfigError as error:
        raise ConfigError(f"row {row!r}: {error}") from None
    if config.evaluation.frames == "mean" and manifest.image_frames is None:
        raise ConfigError(
            f"row {row!r}: evaluation.frames is mean, but data set {folder} has one image per "
            f"sample, not the frames of a clip: use middle, or a set of clips, such as audioset"
        )


def _check_presence(row: str, config: TrainConfig, manifest: Manifest, folder: Path) -> None:
    """Raise ConfigError if a sample has none of the modalities that the row uses."""
    used = config.model.modalities
    for split, lacking in count_lacking(manifest, folder, used).items():
        raise ConfigError(
            f"row {row!r}: {lacking:,} of {manifest.splits[split]:,} samples of split "
            f"{split!r} in {folder} have none of {', '.join(used)}: pack the set with "
            f"--require {' --require '.join(used)}, or give the row another modality"
        )


def count_lacking(manifest: Manifest, folder: Path, used: Sequence[str]) -> dict[Split, int]:
    """Return split -> number of samples that have none of these modalities, if there are any.

    Raises:
        ConfigError: the column `present` cannot be read.
    """
    if set(used) == set(manifest.modalities):
        return {}
    import numpy as np  # takes 0.1 s, needed only for fewer modalities

    bits = [manifest.modalities.index(name) for name in used]
    lacking = dict[Split, int]()
    for split in manifest.splits:
        file = folder / split / "present.npy"
        try:
            check_regular(file)
            present = np.lib.format.open_memmap(file, mode="r")
        except (ValueError, OSError) as error:
            raise ConfigError(f"{file} cannot be read ({error}): pack the set again") from None
        if count := int((present[:, bits].sum(axis=1) == 0).sum()):
            lacking[split] = count
    return lacking
