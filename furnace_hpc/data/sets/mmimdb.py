"""Plan a pack of MM-IMDb (Arevalo et al. 2017, arXiv 1702.01992).

It has plots and posters of 25,959 movies with 23 genres, multi-label. Two forms were published: the
raw folder (`split.json`, `dataset/<id>.json` and `.jpeg`), and `multimodal_imdb.hdf5` (see
mmimdb_hdf5.py). C genres.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import Labels
from furnace_hpc.data.decode.images import ImageKnobs, read_image
from furnace_hpc.data.decode.reading import reading, regular_file
from furnace_hpc.data.decode.tokenizer import load_tokenizer
from furnace_hpc.data.packing.rejects import Unusable
from furnace_hpc.data.packing.sample import Draft, PackPlan, Sample, Values, blank_sample
from furnace_hpc.data.packing.source_lists import fingerprint_of, read_json_file

# Ordered by frequency, as the columns of `genres` in the HDF5 file.
GENRES = (
    "Drama", "Comedy", "Romance", "Thriller", "Crime", "Action", "Adventure", "Horror",
    "Documentary", "Mystery", "Sci-Fi", "Fantasy", "Family", "Biography", "War", "History",
    "Music", "Animation", "Musical", "Western", "Sport", "Short", "Film-Noir",
)  # fmt: skip
DROPPED = ("News", "Adult", "Talk-Show", "Reality-TV")  # rare: the authors left them out
ID_BYTES = 7
MAX_ENTRY_BYTES = 50_000_000  # of one movie's JSON
RECIPE = 1  # increase it if the same files and settings make other columns
SPLIT_NAMES = {"train": "train", "dev": "val", "test": "test"}
HDF5_FILE = "multimodal_imdb.hdf5"
MODALITIES = ("text", "image")
LABELS = {"genres": Labels(kind="multi_label", classes=GENRES)}
Plot = Literal["longest", "first", "joined"]


@dataclass(frozen=True)
class MovieKnobs:
    """The settings that decide the columns."""

    image: ImageKnobs
    tokenizer: str
    max_tokens: int
    plot: Plot


def plan_raw(source: Path, knobs: MovieKnobs) -> PackPlan:
    """Plan a pack of the raw folder.

    Raises:
        ConfigError: `split.json` is missing or malformed, or an id is listed twice.
    """
    rows = read_split(source / "split.json")
    if not (source / "dataset").is_dir():
        raise ConfigError(
            f"folder {source / 'dataset'} is missing, wanted <id>.json and <id>.jpeg of each "
            "movie: check --source"
        )
    return movie_plan(rows, _RawReader(source, knobs), knobs)


def movie_plan(rows: Mapping[str, Sequence[Any]], reader: Any, knobs: MovieKnobs) -> PackPlan:
    """Return the plan of either form. `rows` are ids, or pairs (id, HDF5 row)."""
    tokenizer = load_tokenizer(knobs.tokenizer, knobs.max_tokens)
    return PackPlan(
        dataset="mmimdb",
        modalities=MODALITIES,
        labels=LABELS,
        rows=rows,
        listed={split: len(ids) for split, ids in rows.items()},
        blank=blank_movie(knobs),
        render=reader.render,
        settings={
            "recipe": RECIPE,
            "form": reader.form,
            "listing": fingerprint_of(rows),
            "image": knobs.image.model_dump(mode="json"),
            "text": {
                "tokenizer": Path(knobs.tokenizer).name,
                "vocabulary": tokenizer.fingerprint,
                "max_tokens": knobs.max_tokens,
                "plot": knobs.plot,
            },
            "dropped_genres": list(DROPPED),
        },
        vocab_size=tokenizer.vocab_size,
        pad_id=tokenizer.pad_id,
        special_tokens=tokenizer.special_tokens,
    )


def blank_movie(knobs: MovieKnobs) -> Values:
    """Return a movie without plot and poster."""
    tokens, length = load_tokenizer(knobs.tokenizer, knobs.max_tokens).encode("")
    return blank_sample(
        ID_BYTES,
        MODALITIES,
        image=np.zeros((3, knobs.image.size, knobs.image.size), np.uint8),
        text=tokens,
        text_length=np.array(length, np.int16),
        **{"label.genres": np.zeros(len(GENRES), np.uint8)},
    )


def tokens_of(text: str, knobs: MovieKnobs) -> Values:
    """Return the columns of a text.

    Raises:
        Unusable: it contains half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Unusable(
            "unreadable", f"character {error.start} is half of a surrogate pair"
        ) from None
    tokens, length = load_tokenizer(knobs.tokenizer, knobs.max_tokens).encode(text)
    return {"text": tokens, "text_length": np.array(length, np.int16)}


@dataclass(frozen=True)
class _RawReader:
    source: Path
    knobs: MovieKnobs
    form = "raw"

    def render(self, split: str, movie: str) -> Sample:
        """Render one movie. It is refused without its JSON, which has the genres."""
        draft = Draft.begin(split, movie, MODALITIES, blank_movie(self.knobs))
        info, poster = f"dataset/{movie}.json", f"dataset/{movie}.jpeg"
        draft.add(
            "image", poster, lambda: {"image": read_image(self.source / poster, self.knobs.image)}
        )
        try:
            with reading(info):
                entry = _read_entry(self.source / info)
                genres = genre_row(entry.get("genres"))
        except Unusable as error:
            draft.refuse(None, info, error)
            return draft.finish(labelled=False, file=info)
        draft.add("text", info, lambda: tokens_of(choose_plot(entry, self.knobs.plot), self.knobs))
        draft.label("genres", genres)
        return draft.finish(labelled=bool(genres.any()), file=info)


def read_split(path: Path) -> dict[str, Sequence[str]]:
    """Read `split.json`: {train, dev, test} -> list of 7-character ids.

    Raises:
        ConfigError: a key is missing, or an id is invalid or listed twice.
    """
    content = read_json_file(path)
    if not isinstance(content, dict) or not set(SPLIT_NAMES) <= set(content):
        raise ConfigError(f"{path}: wanted an object with the keys {', '.join(SPLIT_NAMES)}")
    seen: dict[str, str] = {}
    for name in SPLIT_NAMES:
        if not isinstance(content[name], list):
            raise ConfigError(f"{path}: {name} is no list, wanted a list of IMDb ids")
        for movie in content[name]:
            if not is_movie_id(movie):
                raise ConfigError(
                    f"{path}: {name} holds {movie!r}, wanted IMDb ids of 7 digits in quotes"
                )
            if movie in seen:
                raise ConfigError(
                    f"{path}: movie {movie!r} is in {seen[movie]} and again in {name}: keep one"
                )
            seen[movie] = name
    return {split: tuple(content[name]) for name, split in SPLIT_NAMES.items()}


def is_movie_id(movie: Any) -> bool:
    """Return whether it is an IMDb id of this set: 7 digits."""
    return isinstance(movie, str) and movie.isascii() and movie.isdigit() and len(movie) == ID_BYTES


def _read_entry(path: Path) -> dict[str, Any]:
    with regular_file(path).open("rb") as file:
        content = file.read(MAX_ENTRY_BYTES + 1)
    if len(content) > MAX_ENTRY_BYTES:
        raise Unusable("unreadable", f"more than {MAX_ENTRY_BYTES:,} bytes")
    entry = json.loads(content)
    if not isinstance(entry, dict):
        raise Unusable("unreadable", "no JSON object")
    return entry


def genre_row(genres: Any) -> NDArray[np.uint8]:
    """Return genres [C] as 0 and 1, without the four rare ones.

    Raises:
        Unusable: a genre is unknown, so the labels would be incomplete.
    """
    row = np.zeros(len(GENRES), np.uint8)
    for genre in genres if isinstance(genres, list) else ():
        if genre in DROPPED:
            continue
        if genre not in GENRES:
            raise Unusable("no label", f"genre {str(genre)[:40]!r} is not one of MM-IMDb's")
        row[GENRES.index(genre)] = 1
    return row


def choose_plot(entry: dict[str, Any], plot: Plot) -> str:
    """Return the chosen plot, or the outline if there is no plot.

    Raises:
        Unusable: there is neither.
    """
    plots, outline = _texts(entry.get("plot")), entry.get("plot outline")
    if not plots and isinstance(outline, str):
        plots = _texts(outline)
    if not plots:
        raise Unusable("missing", "no plot")
    match plot:
        case "longest":
            return max(plots, key=len)
        case "first":
            return plots[0]
        case "joined":
            return "\n".join(plots)


def _texts(value: Any) -> list[str]:
    """Return all texts that are not blank, of a text or a list."""
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str) and text.strip()]
