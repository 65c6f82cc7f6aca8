"""Is the data there? Checked before anything is submitted, from manifests and file sizes alone."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.flatten import flatten
from furnace_hpc.config.grids.expansion import Row
from furnace_hpc.config.manifest import (
    SAMPLING_WEIGHT,
    SPLITS,
    Manifest,
    check_files,
    read_manifest,
)
from furnace_hpc.config.train_config import TrainConfig
from furnace_hpc.host.regular_file import check_regular

# the number is the data seed that it is drawn with
PACKS_ITSELF = re.compile(r"tridigits(?:-seed(\d{1,9}))?")
NOT_PACKED = "not-packed-yet"


def fingerprints(rows: list[Row], data_root: Path, dry_run: bool) -> dict[str, str]:
    """Data set name -> fingerprint, for every set that a grid's rows use; the default set is packed if need be.

    Raises:
        ConfigError: a set is not packed, is damaged, or lacks what a row wants; `packs` are not draws of one set.
    """
    manifests: dict[str, Manifest | None] = {}
    for row in rows:
        for name in row.packs:
            if name not in manifests:
                manifests[name] = _manifest(name, data_root / name, dry_run)
            if manifest := manifests[name]:
                _check_row(row.name, row.config, manifest, data_root / name)
    for packs in dict.fromkeys(row.packs for row in rows):
        _check_draws({name: manifest for name in packs if (manifest := manifests[name])})
    return {
        name: manifest.fingerprint if manifest else NOT_PACKED
        for name, manifest in manifests.items()
    }


def _manifest(name: str, folder: Path, dry_run: bool) -> Manifest | None:
    if not folder.exists():
        itself = PACKS_ITSELF.fullmatch(name)
        if not itself:
            raise ConfigError(
                f"data set {name!r} is not packed: there is no folder {folder}; pack it with "
                f"`furnace pack DATASET --out {folder}`"
            )
        if dry_run:
            print(
                f"data set {name!r} will be packed into {folder} first; run ids are known after that"
            )
            return None
        command = [
            sys.executable,
            "-P",
            "-m",
            "furnace_hpc.pack",
            "tridigits",
            "--out",
            str(folder),
        ]
        command += ["--seed", itself[1]] if itself[1] else []
        if (code := subprocess.run(command).returncode) == 2:
            raise SystemExit(2)  # its one sentence is said
        if code:
            raise ConfigError(
                f"packing the default data set failed (exit code {code}): {' '.join(command)}"
            )
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    return manifest


def _check_draws(packs: dict[str, Manifest]) -> None:
    """Raise ConfigError unless the packs are made alike, but for a seed, and no two of them hold the same."""
    by_content: dict[str, str] = {}
    first = next(iter(packs), "")
    for name, manifest in packs.items():
        same = by_content.setdefault(manifest.fingerprint, name)
        if same != name:
            raise ConfigError(
                f"packs {same!r} and {name!r} hold the same samples, and would count twice: pack one of them with "
                f"another --seed, or remove it"
            )
        ours, theirs = (
            {"": of.dataset} | _made(of.preprocessing) for of in (manifest, packs[first])
        )
        if other := sorted(key for key in ours | theirs if ours.get(key) != theirs.get(key)):
            what = f"knob {other[0]}" if other[0] else "data set"
            raise ConfigError(
                f"packs {first!r} and {name!r} are no two draws of one data set: {what} is {theirs.get(other[0])!r} in "
                f"one and {ours.get(other[0])!r} in the other; to compare data, name it by `axes: data.name`"
            )


def _made(knobs: dict[str, Any]) -> dict[str, Any]:
    """Dotted knob -> value of everything that made a pack, but for seeds."""
    settings = flatten(knobs).items()
    return {key: value for key, value in settings if key.rpartition(".")[2] != "seed"}


def _check_row(row: str, config: TrainConfig, manifest: Manifest, folder: Path) -> None:
    if missing := [split for split in SPLITS if not manifest.splits.get(split)]:  # type: ignore[call-overload]
        raise ConfigError(
            f"data set {folder} has no samples in {missing}: pack it with all of {', '.join(SPLITS)}"
        )
    for task in config.tasks:
        if task.name not in manifest.labels:
            hint = nearest(task.name, manifest.labels)
            raise ConfigError(
                f"row {row!r}: data set {folder} has no label column for task {task.name!r}; {hint}"
            )
        if (kind := manifest.labels[task.name].kind) != task.kind:
            raise ConfigError(
                f"row {row!r}: task {task.name!r} is {kind} in {folder}, the grid says {task.kind}"
            )
    if config.data.sampling == "weighted" and SAMPLING_WEIGHT not in manifest.columns:
        raise ConfigError(
            f"row {row!r}: data.sampling is weighted and data set {folder} has no column {SAMPLING_WEIGHT}: use "
            f"permutation, or a set that is packed with weights, as audioset is"
        )
    if config.evaluation.frames == "mean" and manifest.image_frames is None:
        raise ConfigError(
            f"row {row!r}: evaluation.frames is mean and data set {folder} has one picture a sample, no frames of a "
            f"clip: use middle, or a set of clips, as audioset is"
        )
    for modality in config.model.modalities:
        if modality not in manifest.modalities:
            hint = nearest(modality, manifest.modalities)
            raise ConfigError(
                f"row {row!r}: data set {folder} has no modality {modality!r}; {hint}"
            )
    _check_presence(row, config, manifest, folder)


def _check_presence(row: str, config: TrainConfig, manifest: Manifest, folder: Path) -> None:
    """Raise ConfigError where a sample has none of the modalities that the row sees."""
    seen = config.model.modalities
    if set(seen) == set(manifest.modalities):
        return
    import numpy as np  # a tenth of a second, which only studies of fewer modalities pay

    bits = [manifest.modalities.index(name) for name in seen]
    for split in manifest.splits:
        try:
            check_regular(folder / split / "present.npy")
            present = np.lib.format.open_memmap(folder / split / "present.npy", mode="r")
        except (ValueError, OSError) as error:
            file = folder / split / "present.npy"
            raise ConfigError(f"{file} cannot be read ({error}): pack the set again") from None
        if lacking := int((present[:, bits].sum(axis=1) == 0).sum()):
            raise ConfigError(
                f"row {row!r}: {lacking:,} of {manifest.splits[split]:,} samples of split {split!r} in {folder} have "
                f"none of {', '.join(seen)}: pack the set with --require {' --require '.join(seen)}, or give the row "
                f"another modality"
            )
