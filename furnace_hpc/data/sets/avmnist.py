"""Plan a pack of AV-MNIST: images of digits (28 x 28) and spectrograms of speech (112 x 112).

The folder has the layout of MultiBench and PyKale:

    image/ or images/   train_data.npy [N, 784], test_data.npy
    audio/              train_data.npy [N, 112, 112], test_data.npy
    train_labels.npy [N], test_labels.npy

Several data sets are called "AV-MNIST", and scores on them differ by tens of points. `--make`
writes `avmnist.json`, which describes the set and is copied into the manifest.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import Labels
from furnace_hpc.data.columns import content_hash, map_file
from furnace_hpc.data.packing.held_out import num_held_out
from furnace_hpc.data.packing.rejects import Unusable
from furnace_hpc.data.packing.sample import Draft, PackPlan, Sample, Values, blank_sample
from furnace_hpc.data.packing.source_lists import read_json_file

MODALITIES = ("image", "audio")
LABELS = {"digit": Labels(kind="single_label", classes=tuple(str(digit) for digit in range(10)))}
# MultiBench validates on the last rows of train.
PUBLISHED_TRAIN, PUBLISHED_VAL = 60_000, 5_000
IMAGE_SIDE = 28
ID_BYTES = 11  # of train/59999. A set with more rows has longer ids.
RECIPE = 1  # increase it if the same arrays make other columns
CARD = "avmnist.json"


def plan_avmnist(source: Path) -> PackPlan:
    """Plan a pack of the six files.

    Raises:
        ConfigError: a file is missing, a shape is wrong, or a label is not a digit.
    """
    files = find_files(source)
    shapes = {name: _open(path).shape for name, path in files.items()}
    num_train, num_test = (_check(source, files, shapes, part) for part in ("train", "test"))
    # 60,000 rows give exactly 55,000 and 5,000. Other sizes are split in the same proportion.
    num_val = num_held_out(num_train, Fraction(PUBLISHED_VAL, PUBLISHED_TRAIN))
    rows = {
        "train": [("train", row) for row in range(num_train - num_val)],
        "val": [("train", row) for row in range(num_train - num_val, num_train)],
        "test": [("test", row) for row in range(num_test)],
    }
    blank = _blank(files, shapes)
    made_by: Any = "unknown: no avmnist.json beside the arrays"
    if (source / CARD).is_file():
        made_by = read_json_file(source / CARD) or made_by
    return PackPlan(
        dataset="avmnist",
        modalities=MODALITIES,
        labels=LABELS,
        rows=rows,
        listed={split: len(listed) for split, listed in rows.items()},
        blank=blank,
        render=_Reader(files, blank).render,
        settings={
            "recipe": RECIPE,
            "made_by": made_by,
            "labels": {
                part: content_hash(_open(files[f"{part}_labels"])) for part in ("train", "test")
            },
            "rows": {split: len(listed) for split, listed in rows.items()},
            "image": {"dtype": blank["image"].dtype.name, "shape": list(blank["image"].shape)},
            "audio": {
                "feature": "spectrogram",
                "dtype": blank["audio"].dtype.name,
                "shape": list(blank["audio"].shape),
            },
        },
        chunk_rows=256,
    )


def find_files(source: Path) -> dict[str, Path]:
    """Return name -> file. Images are in a folder `images` or `image`.

    Raises:
        ConfigError: a file is missing.
    """
    folder = "images" if (source / "images").is_dir() else "image"
    files = {"train_labels": source / "train_labels.npy", "test_labels": source / "test_labels.npy"}
    for part in ("train", "test"):
        files[f"{part}_image"] = source / folder / f"{part}_data.npy"
        files[f"{part}_audio"] = source / "audio" / f"{part}_data.npy"
    for path in files.values():
        if not path.is_file():
            raise ConfigError(f"{path} is missing: check --source, or make the set with --make")
    return files


@lru_cache(maxsize=16)
def _open(path: Path) -> NDArray[Any]:
    """Open a memory map: the arrays of the published copies take 6 GB as float64."""
    try:
        return map_file(path)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} is not an npy file ({error}): download it again") from None


def _check(
    source: Path, files: dict[str, Path], shapes: dict[str, tuple[int, ...]], part: str
) -> int:
    """Check the three files of train or test, and return their number of rows."""
    image, audio, labels = (shapes[f"{part}_{name}"] for name in ("image", "audio", "labels"))
    if len(labels) != 1 or not image[0] == audio[0] == labels[0]:
        raise ConfigError(
            f"{source}: {part} images are {image}, audio {audio}, labels {labels}: "
            "wanted equal lengths"
        )
    if np.prod(image[1:], dtype=int) != IMAGE_SIDE**2:
        raise ConfigError(
            f"{files[f'{part}_image']} has shape {image}, wanted [N, 784] or [N, 28, 28]"
        )
    if len(audio) != 3:
        raise ConfigError(f"{files[f'{part}_audio']} has shape {audio}, wanted [N, 112, 112]")
    digits = np.asarray(_open(files[f"{part}_labels"]))
    wrong = np.flatnonzero(~np.isin(digits, np.arange(10)))
    if len(wrong):
        raise ConfigError(
            f"{files[f'{part}_labels']}: row {wrong[0]} is {digits[wrong[0]]}, "
            "wanted a digit 0 to 9"
        )
    return int(labels[0])


def _blank(files: dict[str, Path], shapes: dict[str, tuple[int, ...]]) -> Values:
    if shapes["train_audio"][1:] != shapes["test_audio"][1:]:
        raise ConfigError(
            f"audio is {shapes['train_audio']} in train and {shapes['test_audio']} in test"
        )
    dtypes = {}
    for name in MODALITIES:
        kinds = {_open(files[f"{part}_{name}"]).dtype.kind for part in ("train", "test")}
        dtypes[name] = np.uint8 if kinds <= {"u", "i"} else np.float16
    longest = f"train/{max(shapes[f'{part}_labels'][0] for part in ('train', 'test'))}"
    return blank_sample(
        max(ID_BYTES, len(longest)),
        MODALITIES,
        image=np.zeros((1, IMAGE_SIDE, IMAGE_SIDE), dtypes["image"]),
        audio=np.zeros(shapes["train_audio"][1:], dtypes["audio"]),
        audio_length=np.array(1, np.int16),
        **{"label.digit": np.zeros((), np.int16)},
    )


@dataclass(frozen=True)
class _Reader:
    files: dict[str, Path]
    blank: Values

    def render(self, split: str, entry: tuple[str, int]) -> Sample:
        """Render one row of the arrays."""
        part, row = entry
        draft = Draft.begin(split, f"{part}/{row}", MODALITIES, self.blank)
        draft.add(
            "image",
            f"image/{part}_data.npy[{row}]",
            lambda: {"image": self._value(part, "image", row)},
        )
        draft.add("audio", f"audio/{part}_data.npy[{row}]", lambda: self._audio(part, row))
        draft.label("digit", np.asarray(_open(self.files[f"{part}_labels"])[row]))
        return draft.finish()

    def _audio(self, part: str, row: int) -> Values:
        value = self._value(part, "audio", row)
        return {"audio": value, "audio_length": np.array(value.shape[-1], np.int16)}

    def _value(self, part: str, name: str, row: int) -> NDArray[Any]:
        blank = self.blank[name]
        value = np.asarray(_open(self.files[f"{part}_{name}"])[row])
        if not np.isfinite(value).all():
            raise Unusable("not finite")
        low, high = -60_000, 60_000  # the range of float16
        if blank.dtype == np.uint8:
            low, high = 0, 255
        if value.min() < low or value.max() > high:
            raise Unusable("unreadable", f"values from {value.min()} to {value.max()}")
        return value.reshape(blank.shape).astype(blank.dtype)
