"""The manifest of a packed data set: what its columns are. Read on the login node, without numpy."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.host.regular_file import read_regular

MODALITIES = ("text", "image", "audio")
SPLITS = ("train", "val", "test")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Column(_Frozen):
    """One value per sample, all of one type and shape."""

    dtype: str = Field(description="numpy dtype name, as stored")
    shape: tuple[int, ...] = Field(description="shape of one sample's value; () is a scalar")


class StoredFile(_Frozen):
    """One .npy file of one split."""

    num_bytes: int = Field(description="size of the file in bytes")
    xxh3_128: str = Field(
        description="xxh3-128 of the array's bytes, hexadecimal (guards against damage, not malice)"
    )


class Labels(_Frozen):
    """A label column `label.<task>`."""

    kind: Literal["single_label", "multi_label"] = Field(
        description="single_label: class index; multi_label: 0/1 row"
    )
    classes: tuple[str, ...] = Field(description="class names in index order")


class Statistics(_Frozen):
    """Mean and standard deviation over the train split, one entry per channel (image) or coefficient (audio)."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


SAMPLING_WEIGHT = "sampling_weight"  # column by which data.sampling: weighted draws


class Manifest(_Frozen):
    """Everything a reader needs to know of a packed data set: `<data root>/<name>/manifest.json`."""

    format: Literal[1] = 1
    dataset: str = Field(description="name of the data set's kind, e.g. tridigits")
    modalities: tuple[Literal["text", "image", "audio"], ...] = Field(
        description="what the set has at all; the order of the bits of the `present` column"
    )
    splits: dict[Literal["train", "val", "test"], int] = Field(
        description="number of samples of each split"
    )
    columns: dict[str, Column] = Field(description="name -> type and shape")
    files: dict[str, StoredFile] = Field(description="'<split>/<column>.npy' -> size and hash")
    labels: dict[str, Labels] = Field(description="task -> its label column `label.<task>`")
    statistics: dict[str, Statistics] = Field(
        description="modality -> mean and deviation of the train split"
    )
    vocab_size: int | None = Field(description="number of token ids; None when the set has no text")
    pad_id: int = Field(default=0, description="token id that pads the text column")
    image_frames: int | None = Field(
        default=None,
        description="frames of a clip, the first axis of the image column; None: one picture, no such axis",
    )
    counts: dict[str, dict[str, int]] = Field(
        default={}, description="split -> samples listed, found, packed, refused, incomplete"
    )
    preprocessing: dict[str, Any] = Field(description="every knob that made the columns, by name")
    versions: dict[str, str] = Field(
        description="library versions that made the columns (not part of the fingerprint)"
    )
    fingerprint: str = Field(description="16 hexadecimal digits over the columns' contents alone")


def read_manifest(folder: Path) -> Manifest:
    """Read `folder/manifest.json`.

    Raises:
        ConfigError: there is none, or it is not a manifest of this version.
    """
    path = folder / "manifest.json"
    try:
        manifest = Manifest.model_validate_json(read_regular(path))
    except FileNotFoundError:
        raise ConfigError(
            f"data folder {str(folder)!r} has no manifest.json: pack the data set into it with "
            f"`furnace pack DATASET --out {folder}`"
        ) from None
    except (ValidationError, UnicodeDecodeError, OSError) as error:
        detail = str(error).splitlines()[0]
        raise ConfigError(
            f"{path} is not a readable manifest ({detail}): pack the data set again"
        ) from None
    if outside := [
        name
        for name in manifest.files
        if Path(name).is_absolute() or {"..", "\0"} & {*Path(name).parts, *name}
    ]:
        raise ConfigError(
            f"{path} names {outside[0]!r}, which is not in its folder: pack the data set again"
        )
    return manifest


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare the sizes of all files with the manifest; contents are checked by `open_columns(verify=True)`.

    Raises:
        ConfigError: a file is missing or has another size.
    """
    for name, file in manifest.files.items():
        try:
            size = (folder / name).stat().st_size
        except OSError:
            size = -1
        if size != file.num_bytes:
            found = (
                "is missing"
                if size < 0
                else f"has {size:,} bytes, the manifest says {file.num_bytes:,}"
            )
            raise ConfigError(f"data file {folder / name} {found}: pack the data set again")
