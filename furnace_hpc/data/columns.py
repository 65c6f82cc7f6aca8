"""Read and write columns on disk: `<folder>/manifest.json` and `<folder>/<split>/<column>.npy`.

Images may be stored as JPEG instead, in `<column>.jpeg` (`jpeg_images.py`).

A pack is written beside its folder and renamed into place, so it is never incomplete.
"""

import secrets
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from tokenize import TokenError
from typing import Any, BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import (
    SPLITS,
    Column,
    Labels,
    Manifest,
    Statistics,
    StoredFile,
    read_manifest,
)
from furnace_hpc.data.jpeg_images import JpegColumn, file_hash
from furnace_hpc.host.durable_files import sync, synced_file, write_durably
from furnace_hpc.host.regular_file import check_regular

Array = NDArray[Any]
Splits = dict[str, dict[str, Array]]
# Packages that compute columns. A manifest records their versions, a fingerprint does not.
PACKAGES = (
    "numpy",
    "librosa",
    "scikit-learn",
    "soundfile",
    "soxr",
    "pillow",
    "tokenizers",
    "h5py",
)


@dataclass(frozen=True)
class Columns:
    """An opened data set. The arrays stay on disk until they are read."""

    manifest: Manifest
    folder: Path

    def split(self, name: str) -> dict[str, Any]:
        """Return the columns of a split as read-only memory maps, first axis = sample.

        A column of JPEG files is a `JpegColumn`.
        """
        columns: dict[str, Any] = {}
        for column, described in self.manifest.columns.items():
            path = self.folder / self.manifest.file_of(name, column)
            if described.jpeg:
                ends = map_file(self.folder / name / f"{column}_end.npy")
                columns[column] = JpegColumn(path, ends, described)
            else:
                columns[column] = map_file(path)
        return columns


def open_columns(folder: Path, *, verify: bool = False) -> Columns:
    """Open a packed data set and check that each file has the manifest's size, type and shape.

    Args:
        folder: the folder with `manifest.json`.
        verify: also read and hash every file.

    Raises:
        ConfigError: a file is missing, or differs from the manifest.
    """
    manifest = read_manifest(folder)
    for split, num_samples in manifest.splits.items():
        for name, column in manifest.columns.items():
            path = manifest.file_of(split, name)
            stored = manifest.files.get(path)
            _check_file(folder / path, stored, column, num_samples, verify)
    return Columns(manifest, folder)


def _check_file(
    path: Path, stored: StoredFile | None, column: Column, num_samples: int, verify: bool
) -> None:
    """Raise ConfigError unless the file is the stored one."""
    if stored is None or not path.is_file():
        raise ConfigError(f"data file {path} is missing: pack the data set again")
    num_bytes = path.stat().st_size
    if num_bytes != stored.num_bytes:
        raise _damaged(path, f"{num_bytes} bytes", f"{stored.num_bytes} bytes")
    if column.jpeg:
        if verify and (found := file_hash(path)) != stored.xxh3_128:
            raise _damaged(path, f"content hash {found}", stored.xxh3_128)
        return
    try:
        array = map_file(path)
    except ValueError as error:
        raise _damaged(path, f"no npy header ({error})", "the packed array") from None
    got, wanted = (array.dtype.name, array.shape), (column.dtype, (num_samples, *column.shape))
    if got != wanted:
        raise _damaged(path, f"{got[0]} {got[1]}", f"{wanted[0]} {wanted[1]}")
    if verify and content_hash(array) != stored.xxh3_128:
        raise _damaged(path, f"content hash {content_hash(array)}", stored.xxh3_128)


def _damaged(path: Path, got: str, wanted: str) -> ConfigError:
    return ConfigError(
        f"data file {path} holds {got}, but the manifest has {wanted}: pack the data set again"
    )


def map_file(path: Path) -> Array:
    """Open one .npy file as a read-only memory map.

    Raises:
        ValueError: it is not an .npy file.
    """
    # Not np.load: it also opens zip files, and its header reader raises errors of many types.
    check_regular(path)
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (EOFError, SyntaxError, TokenError, RecursionError, MemoryError) as error:
        raise ValueError(str(error)) from None


def write_columns(
    folder: Path,
    *,
    splits: Splits,
    dataset: str,
    modalities: tuple[str, ...],
    labels: dict[str, Labels],
    statistics: dict[str, Statistics],
    vocab_size: int | None,
    preprocessing: dict[str, Any],
    extra_versions: dict[str, str] | None = None,
) -> Manifest:
    """Write a data set beside `folder`, then rename it into place.

    Args:
        folder: folder of the pack. An older pack there is replaced.
        splits: split -> column -> array, first axis = sample.
        dataset: name of the data set.
        modalities: its modalities, in the order of the columns of `present`.
        labels: task -> classes of its column `label.<task>`.
        statistics: modality -> mean and deviation of the train split, in stored units.
        vocab_size: number of token ids.
        preprocessing: all settings that decide the columns.
        extra_versions: versions of tools that are not Python packages.

    Raises:
        ConfigError: the folder cannot be written, or holds something that is not a pack.
    """
    folder = folder.resolve()  # a link to scratch space stays a link
    nonce = secrets.token_hex(4)
    temporary = folder.with_name(f"{folder.name}.tmp-{nonce}")
    try:
        check_replaceable(folder)
        temporary.mkdir(parents=True)
        counts = {split: len(next(iter(columns.values()))) for split, columns in splits.items()}
        described, files = _describe(splits), _write_arrays(temporary, splits)
        manifest = Manifest.model_validate(
            {
                "dataset": dataset,
                "modalities": modalities,
                "splits": counts,
                "columns": described,
                "files": files,
                "labels": labels,
                "statistics": statistics,
                "vocab_size": vocab_size,
                "preprocessing": preprocessing,
                "versions": package_versions() | (extra_versions or {}),
                "fingerprint": fingerprint(counts, described, files),
            }
        )
        write_durably(temporary / "manifest.json", manifest.model_dump_json(indent=1).encode())
        sync(temporary)
        rename_into_place(temporary, folder, nonce)
    except OSError as error:
        raise _not_writable(folder, error) from error
    finally:  # after an interrupt too
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that compute columns."""
    found = {"python": python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _not_writable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"data folder {folder} cannot be written ({error.strerror or error}). "
        "Free disk space, fix the permissions, or choose another --out."
    )


def other_pack(folder: Path, manifest: Manifest) -> ConfigError:
    """Return the error for a folder that holds a pack with other settings."""
    held = f"{manifest.dataset} {manifest.fingerprint} with other settings"
    return ConfigError(
        f"folder {str(folder)!r} holds {held}: choose another --out, or replace it with --force"
    )


def check_replaceable(folder: Path) -> None:
    """Raise ConfigError if the folder holds something that is not part of a pack."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"data folder {folder} is a file: choose another --out")
    packed = {"manifest.json", "refused.jsonl", "profile.html", *SPLITS}
    foreign = {entry.name for entry in folder.iterdir()} - packed
    if foreign:
        raise ConfigError(
            f"folder {folder} holds {min(foreign)!r}, which is not part of a packed data set: "
            "choose an empty or new folder with --out"
        )


def _describe(splits: Splits) -> dict[str, Column]:
    """Return the type of each column.

    Raises:
        ValueError: the packing code made columns of different lengths or types.
    """
    described: dict[str, Column] = {}
    for split, columns in splits.items():
        num_samples = {len(array) for array in columns.values()}
        if len(num_samples) != 1:
            raise ValueError(
                f"columns of split {split!r} have unequal lengths {sorted(num_samples)}"
            )
        for name, array in columns.items():
            column = Column(dtype=array.dtype.name, shape=array.shape[1:])
            if described.setdefault(name, column) != column:
                raise ValueError(
                    f"column {name!r} is {column} in {split!r} and {described[name]} elsewhere"
                )
    return described


def _write_arrays(folder: Path, splits: Splits) -> dict[str, StoredFile]:
    """Write and sync every array. Return size and hash of each file, by relative path."""
    files = {}
    for split, columns in splits.items():
        (folder / split).mkdir()
        for name, array in columns.items():
            path = folder / split / f"{name}.npy"
            write_npy(path, np.ascontiguousarray(array))
            files[f"{split}/{name}.npy"] = StoredFile(
                num_bytes=path.stat().st_size, xxh3_128=content_hash(array)
            )
        sync(folder / split)
    return files


def write_npy(path: Path, array: Array) -> None:
    """Write one .npy file durably.

    np.save is not used: its OSError for a full disk has no errno, so the reason would be lost.
    """
    with synced_file(path) as file:
        write_header(file, array.dtype, array.shape)
        file.write(array.reshape(-1).view(np.uint8).data)


def write_header(file: BinaryIO, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """Write numpy's header. It is padded, so its length is the same for every number of rows."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def rename_into_place(new: Path, folder: Path, nonce: str) -> None:
    """Rename `new` to `folder`.

    An older pack is renamed first and deleted last. If the rename fails, it is restored.
    """
    old = folder.with_name(f"{folder.name}.old-{nonce}")
    if folder.exists():
        folder.rename(old)
    try:
        new.rename(folder)
        sync(folder.parent)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def content_hash(array: Array) -> str:
    """Return the xxh3-128 hash of an array's bytes."""
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def fingerprint(
    counts: dict[str, int], columns: dict[str, Column], files: dict[str, StoredFile]
) -> str:
    """Hash names, types, shapes and contents, and nothing that depends on library versions."""
    digest = xxhash.xxh3_64()
    for path, file in sorted(files.items()):
        split, _, name = path.rpartition(".")[0].partition("/")
        shape = (counts[split], *columns[name].shape)
        digest.update(f"{split}/{name} {columns[name].dtype} {shape} {file.xxh3_128}\n".encode())
    return digest.hexdigest()
