"""Define and read the manifest of a packed data set, without numpy."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.format_number import check_not_newer
from furnace_hpc.config.parsing.plural import counted
from furnace_hpc.host.regular_file import read_regular

MODALITIES = ("text", "image", "audio", "numbers")
SPLITS = ("train", "val", "test")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class JpegStore(_Frozen):
    """How images are stored as JPEG files."""

    size: int = Field(description="height and width of an image in a batch")
    stored_size: int = Field(
        description="height and width of a stored image. A batch has its middle, or a random crop"
    )
    quality: int = Field(default=85, description="libjpeg's quality, 1 to 95")
    subsampling: Literal["4:2:0", "4:4:4"] = Field(
        default="4:2:0", description="resolution of the colours"
    )


class Column(_Frozen):
    """One value per sample, all of one type and shape."""

    dtype: str = Field(description="numpy dtype name, as the loader reads it")
    shape: tuple[int, ...] = Field(description="shape of one sample's value; () is a scalar")
    jpeg: JpegStore | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="set if `<split>/<column>.jpeg` has JPEG files one after the other. Then "
        "`<column>_end` has the byte at which each of them ends",
    )


def column_file(name: str, column: Column) -> str:
    """Return the name of a column's file."""
    return f"{name}.jpeg" if column.jpeg else f"{name}.npy"


class StoredFile(_Frozen):
    """One file of one split."""

    num_bytes: int = Field(description="size of the file in bytes")
    xxh3_128: str = Field(
        description="xxh3-128 of the array's bytes, hexadecimal (detects damage, not attacks)"
    )


class Labels(_Frozen):
    """A label column `label.<task>`."""

    kind: Literal["single_label", "multi_label", "ordinal", "regression"] = Field(
        description="single_label: class index; multi_label: 0/1 row; ordinal: index of the level, "
        "from the lowest; regression: a row of numbers"
    )
    classes: tuple[str, ...] = Field(
        description="class names in index order; regression: names of the numbers"
    )


class Statistics(_Frozen):
    """Mean and deviation over the train split, per channel, coefficient or regression target."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


# column of text pairs with the place of the second text's first token, and its key among lengths
TEXT_SECOND = "text_second"
SAMPLING_WEIGHT = "sampling_weight"  # column that `data.sampling: weighted` uses
# TriDigits without --pool splits the same sources again with each seed. Of 83 voices, 20 are in the
# test split and 43 in the train split. The ratio of the images is smaller (20 % and 70 %).
TRIDIGITS_TEST_PER_TRAIN = 20 / 43


class PackOrigin(_Frozen):
    """Where the samples of a pack were drawn from."""

    pool: str = Field(description="name of the collection of samples")
    part: str = Field(default="", description="I/K if it uses the I-th of K disjoint parts")
    test_per_train: float = Field(
        ge=0, allow_inf_nan=False, description="test samples divided by train samples"
    )
    leak: str = Field(
        default="", description="files and groups that are in two splits, with --allow-leak"
    )


class Manifest(_Frozen):
    """Everything that a reader of a packed data set needs: `<data root>/<name>/manifest.json`."""

    format: Literal[1] = 1
    dataset: str = Field(description="kind of data set, such as tridigits")
    modalities: tuple[Literal["text", "image", "audio", "numbers"], ...] = Field(
        description="modalities of the set, in the order of the bits of the `present` column"
    )
    splits: dict[Literal["train", "val", "test"], int] = Field(
        description="number of samples of each split"
    )
    columns: dict[str, Column] = Field(description="name -> type and shape")
    files: dict[str, StoredFile] = Field(
        description="'<split>/<column>.npy', or .jpeg -> size and hash"
    )
    labels: dict[str, Labels] = Field(description="task -> its label column `label.<task>`")
    statistics: dict[str, Statistics] = Field(
        description="modality, or `label.<task>` of a regression -> mean and deviation of the "
        "train split"
    )
    vocab_size: int | None = Field(description="number of token ids; None if the set has no text")
    pad_id: int = Field(default=0, description="token id that pads the text column")
    special_tokens: dict[str, int] = Field(
        default={},
        exclude_if=lambda value: not value,
        description="special token of the tokenizer -> its id, for token dropout. Empty if "
        "`preprocessing` has the words",
    )
    image_frames: int | None = Field(
        default=None,
        description="frames of a clip, the first axis of the image column; None if images are "
        "single",
    )
    counts: dict[str, dict[str, int]] = Field(
        default={}, description="split -> samples listed, found, packed, refused, incomplete"
    )
    preprocessing: dict[str, Any] = Field(
        description="setting -> value, of all settings of the pack"
    )
    versions: dict[str, str] = Field(
        description="library -> version that packed the columns (not in the fingerprint)"
    )
    fingerprint: str = Field(description="16 hexadecimal digits over the contents of the columns")

    def file_of(self, split: str, column: str) -> str:
        """Return the path of a column, relative to the pack's folder."""
        return f"{split}/{column_file(column, self.columns[column])}"

    @model_validator(mode="after")
    def _has_number_statistics(self) -> "Manifest":
        if "numbers" in self.modalities:
            found = self.statistics.get("numbers")
            shape = self.columns["numbers"].shape if "numbers" in self.columns else ()
            if found is None or not (len(found.mean),) == (len(found.std),) == shape:
                raise ValueError("the modality numbers has no mean and deviation of its columns")
        return self

    @model_validator(mode="after")
    def _has_target_statistics(self) -> "Manifest":
        for task, labels in self.labels.items():
            found = self.statistics.get(f"label.{task}")
            if labels.kind == "regression" and (
                found is None or not len(found.mean) == len(found.std) == len(labels.classes)
            ):
                raise ValueError(f"regression {task!r} has no mean and deviation of its targets")
        return self


def number_names(manifest: Manifest) -> tuple[str, ...]:
    """Return the names of the numbers of a sample, in their order. Empty if the set has none."""
    settings = manifest.preprocessing.get("numbers")
    if "numbers" not in manifest.modalities or not isinstance(settings, dict):
        return ()
    return tuple(str(name) for name in settings.get("columns", ()))


class Waveform(NamedTuple):
    """How a pack stores sounds as 16-bit samples."""

    sample_rate_hz: int
    normalises: bool
    """Whether batches have mean 0 and variance 1 per sound."""

    def describe(self) -> str:
        """Return the settings in a few words."""
        scale = "mean 0 and variance 1" if self.normalises else "full scale 1"
        return f"waveforms at {self.sample_rate_hz:,} Hz with {scale}"


def waveform_of(manifest: Manifest) -> Waveform | None:
    """How a pack stores waveforms. None if it stores no sounds, or features of them."""
    settings = manifest.preprocessing.get("audio")
    if not isinstance(settings, dict) or settings.get("store") != "waveform":
        return None
    return Waveform(int(settings["sample_rate_hz"]), bool(settings["normalises"]))


def origin_of(manifest: Manifest) -> PackOrigin | None:
    """Where the samples of a pack were drawn from. None if the manifest does not say it.

    A pack names its collection under `pool` in `preprocessing`. TriDigits and the AV-MNIST that is
    made here need no name, since their collections are known.
    """
    settings, ratio = manifest.preprocessing, _test_per_train(manifest)
    if manifest.dataset == "tridigits" and isinstance(knobs := settings.get("knobs"), dict):
        part = str(knobs.get("pool") or "")
        return PackOrigin(pool="tridigits", part=part, test_per_train=TRIDIGITS_TEST_PER_TRAIN)
    made_by = settings.get("made_by")
    if manifest.dataset == "avmnist" and isinstance(made_by, dict) and "seed" in made_by:
        return PackOrigin(pool=f"avmnist of {made_by.get('digits')}", test_per_train=ratio)
    if isinstance(pool := settings.get("pool"), str) and pool:
        return PackOrigin(pool=pool, test_per_train=ratio, leak=_leak(settings))
    return None


def _leak(settings: dict[str, Any]) -> str:
    """What a user's table has in two splits. Empty if nothing."""
    leak = settings.get("leak")
    if not isinstance(leak, dict):
        return ""
    return leak_summary(leak)


def leak_summary(kinds: dict[str, int]) -> str:
    """Return `1 group, 2 image files`: kind of what is in two splits -> how many."""
    return ", ".join(counted(number, kind.removesuffix("s")) for kind, number in kinds.items())


def _test_per_train(manifest: Manifest) -> float:
    return manifest.splits.get("test", 0) / max(1, manifest.splits.get("train", 0))


def read_manifest(folder: Path) -> Manifest:
    """Read `folder/manifest.json`.

    Raises:
        ConfigError: it is missing, or is not a manifest of this version.
    """
    path = folder / "manifest.json"
    try:
        manifest = Manifest.model_validate_json(read_regular(path))
    except FileNotFoundError:
        raise ConfigError(
            f"data folder {str(folder)!r} has no manifest.json. Pack the data set with "
            f"`furnace pack DATASET --out {folder}`"
        ) from None
    except (ValidationError, UnicodeDecodeError, OSError) as error:
        if isinstance(error, ValidationError):
            check_not_newer(path, error)
        detail = str(error).splitlines()[0]
        raise ConfigError(
            f"{path} is not a readable manifest ({detail}). Pack the data set again"
        ) from None
    if outside := [name for name in manifest.files if _is_outside(name)]:
        raise ConfigError(
            f"{path} contains {outside[0]!r}, which is not in its folder. Pack the data set again"
        )
    return manifest


def _is_outside(name: str) -> bool:
    path = Path(name)
    return path.is_absolute() or ".." in path.parts or "\0" in name


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare the sizes of all files with the manifest. `open_columns` can compare contents.

    Raises:
        ConfigError: a file is missing or has another size.
    """
    for name, file in manifest.files.items():
        problem = _size_problem(folder / name, file.num_bytes)
        if problem:
            raise ConfigError(f"data file {folder / name} {problem}. Pack the data set again")


def _size_problem(path: Path, num_bytes: int) -> str:
    try:
        size = path.stat().st_size
    except OSError:
        return "is missing"
    if size == num_bytes:
        return ""
    return f"has {size:,} bytes, the manifest says {num_bytes:,}"
