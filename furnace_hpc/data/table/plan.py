"""Make the `PackPlan` of a table: columns, settings, and the function that renders one row."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import SAMPLING_WEIGHT, Labels
from furnace_hpc.data.decode.audio import SoundKnobs
from furnace_hpc.data.decode.images import ImageKnobs
from furnace_hpc.data.decode.tokenizer import TokenReader, load_tokenizer
from furnace_hpc.data.decode.word_tokenizer import WORDS, word_tokenizer
from furnace_hpc.data.packing.rejects import Unusable
from furnace_hpc.data.packing.sample import Draft, PackPlan, Sample, Values, blank_sample
from furnace_hpc.data.table.media import Media, image_of, sound_of
from furnace_hpc.data.table.options import LabelKind

RECIPE = 1  # increase it if the same table and settings make other columns
BLOCK_ROWS = 1024  # that a worker reads at once
CHUNK_ROWS = {True: 32, False: 1024}  # with and without images or sounds
MAX_ID_BYTES = 512


@dataclass(frozen=True)
class Knobs:
    """The settings that decide the columns of a pack."""

    image: ImageKnobs
    sound: SoundKnobs
    tokenizer: str
    max_tokens: int


@dataclass(frozen=True)
class LabelPlan:
    """How a label is stored."""

    kind: LabelKind
    classes: tuple[str, ...]
    index: dict[str, int]
    """Every spelling of a class -> its number."""

    @property
    def blank(self) -> np.ndarray[Any, Any]:
        """Return the value of a sample without this label."""
        if self.kind is LabelKind.REGRESSION:
            return np.zeros(len(self.classes), np.float64)
        if self.kind is LabelKind.MULTI:
            return np.zeros(len(self.classes), np.uint8)
        return np.zeros((), np.int16 if len(self.classes) < 32_767 else np.int32)

    def stored(self, cell: Any) -> np.ndarray[Any, Any]:
        """Return the stored value of a cell."""
        if self.kind is LabelKind.REGRESSION:
            return np.array(cell, np.float64)
        if self.kind.has_one_class:
            return np.array(self.index[cell], self.blank.dtype)
        row = self.blank
        for name in cell:
            if name is not None:
                row[self.index[name]] = 1
        return row


@dataclass(frozen=True)
class TableRenderer:
    """Renders rows of the staged table. It is pickled, because other processes use it."""

    parts: tuple[Path, ...]
    tables: tuple[str, ...]
    modalities: tuple[str, ...]
    frames: tuple[str, ...]
    """Slots of the images."""
    labels: dict[str, LabelPlan]
    knobs: Knobs
    words: tuple[str, ...]
    has_weights: bool
    blank: Values

    def render(self, split: str, number: Any) -> Sample:
        """Render one row. A row without a label is refused."""
        row = _row(self.parts, int(number))
        draft = Draft.begin(split, row["id"], self.modalities, self.blank)
        where = f"{self.tables[row['file']]}:{row['row']}"
        if row.get("text") is not None:
            draft.add("text", where, lambda: self._tokens(row["text"]))
        if "image" in self.modalities:
            self._add_images(draft, row)
        if "audio" in self.modalities and row["audio"] is not None:
            media = _media(row, "audio")
            draft.add("audio", media.name, lambda: self._sound(media))
        for name, label in self.labels.items():
            cell = row[f"label.{name}"]
            if cell is None:
                draft.refuse(None, where, Unusable("no label", f"{name} is empty"))
                return draft.finish(labelled=False, file=where)
            draft.label(name, label.stored(cell))
        if self.has_weights:
            draft.values[SAMPLING_WEIGHT] = np.array(row["weight"], np.float32)
        return draft.finish(file=where)

    def _add_images(self, draft: Draft, row: dict[str, Any]) -> None:
        """Add the image, or all frames. If a frame cannot be used, the sample has no images."""
        frames = [_media(row, slot) for slot in self.frames if row[slot] is not None]
        if not frames:
            return
        if len(frames) < len(self.frames):
            draft.refuse("image", frames[0].name, Unusable("missing", "not all frames are given"))
            return
        names = ", ".join(media.name for media in frames)
        draft.add("image", names, lambda: {"image": self._pixels(frames)})

    def _pixels(self, frames: list[Media]) -> np.ndarray[Any, Any]:
        images = [image_of(media, self.knobs.image) for media in frames]
        if len(self.frames) == 1:
            return images[0]
        return np.stack(images)

    def _sound(self, media: Media) -> Values:
        values, length = sound_of(media, self.knobs.sound)
        return {"audio": values, "audio_length": np.array(length, np.int16)}

    def _tokens(self, text: str) -> Values:
        tokens, length = reader_of(self.knobs, self.words).encode(text)
        return {"text": tokens, "text_length": np.array(length, np.int16)}


def _media(row: dict[str, Any], slot: str) -> Media:
    return Media(row[slot], row[f"{slot}_at"], row[f"{slot}_size"], row[f"{slot}_name"])


def _row(parts: tuple[Path, ...], number: int) -> dict[str, Any]:
    return _block(parts, number // BLOCK_ROWS)[number % BLOCK_ROWS]


@lru_cache(maxsize=2)
def _block(parts: tuple[Path, ...], number: int) -> list[dict[str, Any]]:
    # Workers are many, and each needs one thread. polars reads this when it is imported.
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    import polars as pl

    frame = pl.scan_ipc(list(parts)).slice(number * BLOCK_ROWS, BLOCK_ROWS)
    return frame.collect().to_dicts()


@lru_cache(maxsize=2)
def _word_reader(words: tuple[str, ...], max_tokens: int) -> TokenReader:
    return TokenReader(word_tokenizer(words), max_tokens)


def reader_of(knobs: Knobs, words: tuple[str, ...]) -> TokenReader:
    """Return the tokenizer: of the pack's own words, or the one that is named."""
    if knobs.tokenizer == WORDS:
        return _word_reader(words, knobs.max_tokens)
    return load_tokenizer(knobs.tokenizer, knobs.max_tokens)


def make_plan(
    renderer: TableRenderer,
    name: str,
    rows: Mapping[str, Any],
    settings: dict[str, Any],
    notes: tuple[str, ...] = (),
) -> PackPlan:
    """Return the plan of a pack with these rows.

    Args:
        renderer: renders a row.
        name: kind of the data set.
        rows: split -> numbers of its rows.
        settings: all other settings of the pack, as JSON.
        notes: printed before anything is rendered.
    """
    described: dict[str, Any] = {"recipe": RECIPE} | settings
    vocabulary: dict[str, Any] = {}
    knobs, modalities = renderer.knobs, renderer.modalities
    if "text" in modalities:
        reader = reader_of(knobs, renderer.words)
        vocabulary = {"vocab_size": reader.vocab_size, "pad_id": reader.pad_id}
        described["text"] = {
            "tokenizer": Path(knobs.tokenizer).name,
            "max_tokens": knobs.max_tokens,
        }
        if knobs.tokenizer == WORDS:
            described["draw"]["words"] = list(renderer.words)
        else:
            described["text"]["vocabulary"] = reader.fingerprint
            vocabulary["special_tokens"] = reader.special_tokens
    if "image" in modalities:
        described["image"] = knobs.image.model_dump(mode="json")
    if "audio" in modalities:
        described["audio"] = knobs.sound.model_dump(mode="json")
    has_media = bool({"image", "audio"} & set(modalities))
    return PackPlan(
        dataset=name,
        modalities=modalities,
        labels={
            task: Labels(kind=label.kind.value, classes=label.classes)
            for task, label in renderer.labels.items()
        },
        rows=rows,
        listed={split: len(numbers) for split, numbers in rows.items()},
        blank=renderer.blank,
        render=renderer.render,
        settings=described,
        image_frames=len(renderer.frames) if len(renderer.frames) > 1 else None,
        preload=("librosa.feature.spectral",) if "audio" in modalities else (),
        chunk_rows=CHUNK_ROWS[has_media],
        notes=notes,
        **vocabulary,
    )


def blank_row(
    id_bytes: int,
    modalities: tuple[str, ...],
    num_frames: int,
    labels: dict[str, LabelPlan],
    knobs: Knobs,
    words: tuple[str, ...],
    has_weights: bool,
) -> Values:
    """Return the columns of a row without text and files.

    Raises:
        ConfigError: an id is too long for a column.
    """
    if id_bytes > MAX_ID_BYTES:
        raise ConfigError(
            f"the longest id has {id_bytes:,} bytes, at most {MAX_ID_BYTES}. Choose another --id"
        )
    columns: Values = {}
    if "text" in modalities:
        tokens, length = reader_of(knobs, words).encode("")
        columns |= {"text": tokens, "text_length": np.array(length, np.int16)}
    if "image" in modalities:
        shape: tuple[int, ...] = (3, knobs.image.size, knobs.image.size)
        if num_frames > 1:
            shape = (num_frames, *shape)
        columns["image"] = np.zeros(shape, np.uint8)
    if "audio" in modalities:
        sound = knobs.sound
        columns["audio"] = np.zeros((sound.coefficients, sound.frames), np.float16)
        columns["audio_length"] = np.array(1, np.int16)
    for name, label in labels.items():
        columns[f"label.{name}"] = label.blank
    if has_weights:
        columns[SAMPLING_WEIGHT] = np.zeros((), np.float32)
    return blank_sample(max(1, id_bytes), modalities, **columns)
