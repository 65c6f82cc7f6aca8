"""Plan a pack of MM-IMDb's `multimodal_imdb.hdf5`.

It has posters as 3 x 256 x 160 integers, plots as word ids, and genres as 0 and 1. The splits come
from the attribute `split` (Fuel's H5PYDataset) or from `split.json`, never from row numbers. The
words come from `metadata.json` or the authors' `metadata.npy`. That is a pickle, of which only
plain data is loaded.
"""

import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.decode.images import fit_image
from furnace_hpc.data.decode.reading import reading
from furnace_hpc.data.packing.rejects import Unusable
from furnace_hpc.data.packing.sample import Draft, PackPlan, Sample
from furnace_hpc.data.packing.source_lists import read_json_file
from furnace_hpc.data.sets.mmimdb import (
    GENRES,
    MODALITIES,
    SPLIT_NAMES,
    MovieKnobs,
    blank_movie,
    is_movie_id,
    movie_plan,
    read_split,
    tokens_of,
)

SPECIAL_WORDS = ("_UNK_", "_EOS_", "_PAD_", "_BOS_")  # markers, not words of a plot
_NUM_AXES = {"images": 4, "genres": 2, "imdb_ids": 1, "sequences": 1}


def plan_hdf5(path: Path, knobs: MovieKnobs) -> PackPlan:
    """Plan a pack of the HDF5 file.

    Raises:
        ConfigError: an array or the split is missing or has a wrong shape, or an id is invalid or
            listed twice.
    """
    try:
        with h5py.File(path, "r") as file:
            num_rows = _check_shapes(path, file)
            ids = _ids(path, file)
            splits = _splits(path, file, ids)
            _check_genres(path, file)
    except ConfigError:
        raise
    except Exception as error:  # h5py raises errors of many types for a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{path} cannot be read as HDF5 ({reason}): download it again") from None
    _check_rows(path, splits, ids, num_rows)
    read_words(path.parent)
    rows = {split: [(ids[row], row) for row in numbers] for split, numbers in splits.items()}
    return movie_plan(rows, _Hdf5Reader(path, knobs), knobs)


def _check_shapes(path: Path, file: h5py.File) -> int:
    for name, num_axes in _NUM_AXES.items():
        if name not in file:
            raise ConfigError(
                f"{path} has no data set {name!r} (it has {', '.join(sorted(file))}): "
                "download it again"
            )
        if len(file[name].shape) != num_axes:
            raise ConfigError(
                f"{path}: {name} has shape {file[name].shape}, wanted {num_axes} axes"
            )
    num_rows = {name: len(file[name]) for name in _NUM_AXES}
    if len(set(num_rows.values())) != 1:
        raise ConfigError(f"{path}: its data sets have different lengths: {num_rows}")
    if file["genres"].shape[1] != len(GENRES):
        raise ConfigError(
            f"{path}: genres has {file['genres'].shape[1]} columns, wanted {len(GENRES)}"
        )
    if file["images"].shape[1] != 3:
        raise ConfigError(
            f"{path}: images has shape {file['images'].shape}, wanted [N, 3, height, width]"
        )
    return int(num_rows["genres"])


def _ids(path: Path, file: h5py.File) -> list[str]:
    ids = [bytes(movie).decode("ascii", "replace") for movie in file["imdb_ids"][:]]
    for row, movie in enumerate(ids):
        if not is_movie_id(movie):
            raise ConfigError(
                f"{path}: row {row} of imdb_ids is {movie!r}, wanted IMDb ids of 7 digits"
            )
    return ids


def _check_genres(path: Path, file: h5py.File) -> None:
    """Check the column order, if the file has names."""
    names = file["genres"].attrs.get("target_names")
    if names is None:
        return
    found = tuple(json.loads(names))
    for got, wanted in zip(found, GENRES, strict=False):
        if got != wanted:
            raise ConfigError(
                f"{path}: genres are in another order: got {got!r}, wanted {wanted!r}"
            )
    if found != GENRES:
        raise ConfigError(f"{path}: genres are {found}, wanted {GENRES}")


def _splits(path: Path, file: h5py.File, ids: list[str]) -> dict[str, Sequence[int]]:
    """Return split -> row numbers."""
    if "split" not in file.attrs:
        return _splits_of_json(path, ids)
    found: dict[str, Sequence[int]] = {}
    for entry in file.attrs["split"]:
        name, source = (entry[key].decode() for key in ("split", "source"))
        if source != "genres":  # Fuel has equal entries for each source
            continue
        indices: Any = range(entry["start"], entry["stop"])
        if entry["indices"]:
            indices = np.asarray(file[entry["indices"]])
        found[SPLIT_NAMES.get(name, name)] = [int(row) for row in indices]
    if set(found) != set(SPLIT_NAMES.values()):
        raise ConfigError(
            f"{path}: its attribute `split` has {sorted(found)}, "
            "wanted train, dev and test of `genres`"
        )
    return {split: found[split] for split in SPLIT_NAMES.values()}


def _splits_of_json(path: Path, ids: list[str]) -> dict[str, Sequence[int]]:
    """Return split -> row numbers, from the ids in `split.json`."""
    row_of = {movie: row for row, movie in enumerate(ids)}
    found: dict[str, Sequence[int]] = {}
    for split, movies in read_split(path.with_name("split.json")).items():
        for movie in movies:
            if movie not in row_of:
                raise ConfigError(
                    f"{path} has no movie {movie!r}, which split.json lists in {split}: "
                    "use files of the same version"
                )
        found[split] = [row_of[movie] for movie in movies]
    return found


def _check_rows(
    path: Path, splits: dict[str, Sequence[int]], ids: list[str], num_rows: int
) -> None:
    seen: dict[str, str] = {}
    for split, rows in splits.items():
        for row in rows:
            if not 0 <= row < num_rows:
                raise ConfigError(f"{path}: {split} lists row {row}, wanted 0 to {num_rows - 1}")
            if ids[row] in seen:
                raise ConfigError(
                    f"{path}: movie {ids[row]!r} is in {seen[ids[row]]} and again in {split}"
                )
            seen[ids[row]] = split


@dataclass(frozen=True)
class _Hdf5Reader:
    path: Path
    knobs: MovieKnobs
    form = "hdf5"

    def render(self, split: str, entry: tuple[str, int]) -> Sample:
        """Render one row."""
        movie, row = entry
        file, place = _open(self.path), f"{self.path.name}[{row}]"
        draft = Draft.begin(split, movie, MODALITIES, blank_movie(self.knobs))
        draft.add("image", place, lambda: {"image": self._poster(file["images"], row)})
        draft.add("text", place, lambda: tokens_of(self._plot(file["sequences"][row]), self.knobs))
        try:
            with reading(place):
                genres = file["genres"][row]
                if not np.isin(genres, (0, 1)).all():
                    raise Unusable("no label", "genres that are neither 0 nor 1")
        except Unusable as error:
            draft.refuse(None, place, error)
            return draft.finish(labelled=False, file=place)
        draft.label("genres", genres)
        return draft.finish(labelled=bool(genres.any()), file=place)

    def _poster(self, images: h5py.Dataset, row: int) -> Any:
        pixels = images[row]
        if not np.isfinite(pixels).all():
            raise Unusable("not finite")
        if pixels.min() < 0 or pixels.max() > 255:
            raise Unusable("unreadable", f"pixels from {pixels.min()} to {pixels.max()}")
        return fit_image(
            Image.fromarray(pixels.transpose(1, 2, 0).astype(np.uint8)), self.knobs.image
        )

    def _plot(self, sequence: Any) -> str:
        words = read_words(self.path.parent)
        plot = []
        for word_id in map(int, sequence):
            if word_id not in words:
                raise Unusable("unreadable", f"word {word_id} is not in the vocabulary")
            if words[word_id] not in SPECIAL_WORDS:
                plot.append(words[word_id])
        text = " ".join(plot)
        if not text:
            raise Unusable("empty", "no words")
        return text


@lru_cache(maxsize=1)
def _open(path: Path) -> h5py.File:
    """Open the file once per worker."""
    return h5py.File(path, "r")


@lru_cache(maxsize=1)
def read_words(folder: Path) -> dict[int, str]:
    """Return word id -> word, from `metadata.json` ({"ix_to_word": {id: word}}) or `metadata.npy`.

    Raises:
        ConfigError: there is neither, or the pickle contains more than plain data.
    """
    if (folder / "metadata.json").is_file():
        content = read_json_file(folder / "metadata.json")
    elif (folder / "metadata.npy").is_file():
        content = _read_pickled(folder / "metadata.npy")
    else:
        raise ConfigError(
            f"folder {folder} has no metadata.npy or metadata.json, which has the words of the "
            "HDF5 file: download it"
        )
    if not isinstance(content, dict) or not isinstance(content.get("ix_to_word"), dict):
        raise ConfigError(f"the metadata in {folder} has no 'ix_to_word' (word id -> word)")
    try:
        return {int(word_id): str(word) for word_id, word in content["ix_to_word"].items()}
    except (ValueError, TypeError) as error:
        raise ConfigError(f"the metadata in {folder} has a wrong word id ({error})") from None


def _read_pickled(path: Path) -> Any:
    with path.open("rb") as file:
        try:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            array = _PlainUnpickler(file, encoding="latin1").load()
            return np.asarray(array).item()
        except Exception as error:  # a damaged pickle raises errors of many types
            raise ConfigError(
                f"{path} cannot be read as plain data ({error}): write metadata.json instead"
            ) from None


class _PlainUnpickler(pickle.Unpickler):
    """Builds numpy arrays, dictionaries and numbers, and refuses all other classes."""

    ALLOWED = {
        ("ndarray", "numpy"),
        ("dtype", "numpy"),
        ("OrderedDict", "collections"),
        ("defaultdict", "collections"),
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return a class that arrays consist of."""
        numpy_inside = module in ("numpy.core.multiarray", "numpy._core.multiarray")
        if (numpy_inside and name in ("_reconstruct", "scalar")) or (name, module) in self.ALLOWED:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"it contains {module}.{name}")
