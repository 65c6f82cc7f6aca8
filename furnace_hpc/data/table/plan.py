"""Make the `PackPlan` of a table: columns, settings, and the function that renders one row."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import SAMPLING_WEIGHT, Labels
from furnace_hpc.config.preprocessing.record import RECORD
from furnace_hpc.data.decode.text_pairs import pair_columns
from furnace_hpc.data.decode.tokenizer import TokenReader, load_tokenizer
from furnace_hpc.data.decode.word_bytes import WordTable
from furnace_hpc.data.decode.word_tokenizer import OTHER, encode_words, word_table, word_tokenizer
from furnace_hpc.data.packing.rejects import Unusable
from furnace_hpc.data.packing.sample import Draft, PackPlan, Sample, Values, blank_sample
from furnace_hpc.data.table.media import Media, image_of, media_at, sound_of
from furnace_hpc.data.table.options import LabelKind
from furnace_hpc.data.table.stored.knobs import Knobs

if TYPE_CHECKING:  # workers set its number of threads before they import it
    import polars as pl

RECIPE = 1  # increase it if the same table and settings make other columns
BLOCK_ROWS = 1024  # that a worker reads at once
CHUNK_ROWS = {True: 32, False: 4096}  # with and without images or sounds
SPAN_ROWS = 16_384  # of the table that are searched at once for the rows of a chunk
MAX_ID_BYTES = 512
COLUMNS_OF_TEXT = ("file", "row", "id", "split", "text", "group", "weight")


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

    def stored_all(self, cells: Any) -> np.ndarray[Any, Any]:
        """Return the stored values of a polars series without null."""
        if self.kind is LabelKind.REGRESSION:
            rows = np.array(cells.explode().to_numpy(), np.float64)
            return rows.reshape(len(cells), len(self.classes))
        if self.kind.has_one_class:
            numbers = cells.replace_strict(list(self.index), list(self.index.values()))
            return np.asarray(numbers.to_numpy()).astype(self.blank.dtype)
        return np.stack([self.stored(cell) for cell in cells])


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
    numbers: tuple[str, ...] = ()
    """Names of the numbers."""

    def render(self, split: str, number: Any) -> Sample:
        """Render one row. A row without a label is refused."""
        row = _row(self.parts, int(number))
        draft = Draft.begin(split, row["id"], self.modalities, self.blank)
        where = f"{self.tables[row['file']]}:{row['row']}"
        if row.get("text") is not None:
            draft.add("text", where, lambda: self._tokens(row))
        if "image" in self.modalities:
            self._add_images(draft, row)
        if "audio" in self.modalities and row["audio"] is not None:
            media = _media(row, "audio")
            name = f"{media.name} ({where}, {media.segment})" if media.segment else media.name
            draft.add("audio", name, lambda: self._sound(media))
        if "numbers" in self.modalities and row["numbers"] is not None:
            draft.add("numbers", where, lambda: {"numbers": np.array(row["numbers"], np.float64)})
        for name, label in self.labels.items():
            cell = row[f"label.{name}"]
            if cell is None:
                draft.refuse(None, where, Unusable("no label", f"{name} is empty"))
                return draft.finish(labelled=False, file=where)
            draft.label(name, label.stored(cell))
        if self.has_weights:
            draft.values[SAMPLING_WEIGHT] = np.array(row["weight"], np.float32)
        return draft.finish(file=where)

    def render_many(
        self, split: str, numbers: Sequence[Any]
    ) -> tuple[Values, NDArray[np.bool_]] | None:
        """Render rows of texts and labels at once. All others are left to `render`."""
        if self.modalities != ("text",) or not len(numbers):
            return None
        frame = _rows(self.parts, np.asarray(numbers))
        labels = [f"label.{name}" for name in self.labels]
        if set(frame.columns) - {*COLUMNS_OF_TEXT, *labels}:
            return None
        is_plain = _is_plain(frame, labels, self.blank["source_id"].dtype.itemsize)
        rows = frame.filter(is_plain)
        if self.knobs.uses_own_words:
            tokens = self._encoded(rows["text"])
        else:
            tokens = reader_of(self.knobs, self.words).encode_all(rows["text"].to_list())
        if tokens is None or rows.is_empty():
            return None
        values: Values = {
            "source_id": _as_bytes(rows["id"], self.blank["source_id"].dtype),
            "present": np.ones((len(rows), 1), np.uint8),
            "text": tokens[0],
            "text_length": tokens[1],
        }
        for name, label in self.labels.items():
            values[f"label.{name}"] = label.stored_all(rows[f"label.{name}"])
        if self.has_weights:
            values[SAMPLING_WEIGHT] = rows["weight"].to_numpy().astype(np.float32)
        return values, is_plain.to_numpy()

    @cached_property
    def _vocabulary(self) -> tuple[TokenReader, WordTable]:
        """The pack's own words. Looking them up in another cache would hash all of them."""
        return reader_of(self.knobs, self.words), word_table(self.words)

    def _encoded(self, texts: "pl.Series") -> tuple[NDArray[Any], NDArray[np.int16]] | None:
        """Return ids and lengths of texts. Those with rare characters take the slower way."""
        reader, table = self._vocabulary
        ids, lengths = encode_words(texts, table, reader.max_tokens, reader.dtype)
        others = np.flatnonzero((texts.str.len_bytes() != texts.str.len_chars()).to_numpy())
        if len(others):
            others = others[texts[others].str.contains(OTHER).to_numpy()]
        if len(others):
            made = reader.encode_all(texts[others].to_list())
            if made is None:
                return None
            ids[others], lengths[others] = made
        return ids, lengths

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
        return {"audio": values, "audio_length": np.array(length, self.blank["audio_length"].dtype)}

    def _tokens(self, row: dict[str, Any]) -> Values:
        reader = reader_of(self.knobs, self.words)
        if "text_second" in row:
            return pair_columns(reader, row["text_first"], row["text_second"])
        tokens, length = reader.encode(row["text"])
        return {"text": tokens, "text_length": np.array(length, np.int16)}


def _media(row: dict[str, Any], slot: str) -> Media:
    media = media_at(row, slot)
    assert media
    return media


def _row(parts: tuple[Path, ...], number: int) -> dict[str, Any]:
    return _block(parts, number // BLOCK_ROWS)[number % BLOCK_ROWS]


@lru_cache(maxsize=2)
def _block(parts: tuple[Path, ...], number: int) -> list[dict[str, Any]]:
    # Workers are many, and each needs one thread. polars reads this when it is imported.
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    import polars as pl

    frame = pl.scan_ipc(list(parts)).slice(number * BLOCK_ROWS, BLOCK_ROWS)
    return frame.collect().to_dicts()


def _rows(parts: tuple[Path, ...], numbers: NDArray[Any]) -> "pl.DataFrame":
    """Return rows in ascending order of their numbers."""
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    import polars as pl

    staged, found = pl.scan_ipc(list(parts)), []
    for start in range(int(numbers[0]), int(numbers[-1]) + 1, SPAN_ROWS):
        own = numbers[(numbers >= start) & (numbers < start + SPAN_ROWS)]
        if len(own):
            length = int(own[-1]) - start + 1
            found.append(staged.slice(start, length).collect()[own - start])
    return pl.concat(found)


def _is_plain(frame: "pl.DataFrame", labels: list[str], id_bytes: int) -> "pl.Series":
    """Return which rows have a text, an id that fits, and all labels."""
    import polars as pl

    name = pl.col("id")
    fits = (name.str.len_bytes() <= id_bytes) & ~name.str.ends_with("\0")
    given = [pl.col(column).is_not_null() for column in ("text", *labels)]
    return frame.select(pl.all_horizontal(fits, *given).fill_null(value=False)).to_series()


def _as_bytes(names: "pl.Series", dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return texts that fit as an array of bytes, with zeros behind them."""
    lengths = names.str.len_bytes().to_numpy().astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    places = np.arange(lengths.sum()) + np.repeat(
        np.arange(len(names)) * dtype.itemsize - starts, lengths
    )
    padded = np.zeros(len(names) * dtype.itemsize, np.uint8)
    padded[places] = np.frombuffer(names.str.join("").item().encode(), np.uint8)
    return padded.view(dtype)


@lru_cache(maxsize=2)
def _word_reader(words: tuple[str, ...], max_tokens: int) -> TokenReader:
    return TokenReader(word_tokenizer(words), max_tokens)


def reader_of(knobs: Knobs, words: tuple[str, ...]) -> TokenReader:
    """Return the tokenizer: of the pack's own words, or the one that is named."""
    if knobs.uses_own_words:
        return _word_reader(words, knobs.max_tokens)
    return load_tokenizer(knobs.tokenizer, knobs.max_tokens, knobs.text_needs)


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
        if knobs.uses_own_words:
            described["draw"]["words"] = list(renderer.words)
        else:
            described["text"]["vocabulary"] = reader.fingerprint
            vocabulary["special_tokens"] = reader.special_tokens
    if "image" in modalities:
        described["image"] = knobs.image.model_dump(mode="json")
    if "audio" in modalities:
        described["audio"] = knobs.sound.model_dump(mode="json")
    if "numbers" in modalities:
        described["numbers"] = {"columns": list(renderer.numbers)}
    if made := {name: made.record for name, made in knobs.made_for.items() if name in modalities}:
        described[RECORD] = made
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
        render_many=renderer.render_many,
        settings=described,
        image_frames=len(renderer.frames) if len(renderer.frames) > 1 else None,
        preload=knobs.sound.preload if "audio" in modalities else (),
        chunk_rows=CHUNK_ROWS[has_media],
        statistics=knobs.statistics(modalities),
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
    num_numbers: int = 0,
    is_pair: bool = False,
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
        reader = reader_of(knobs, words)
        tokens, length = reader.encode("")
        columns |= {"text": tokens, "text_length": np.array(length, np.int16)}
        if is_pair:
            columns |= pair_columns(reader, "", "")
    if "image" in modalities:
        shape: tuple[int, ...] = knobs.image.shape
        if num_frames > 1:
            shape = (num_frames, *shape)
        columns["image"] = np.zeros(shape, np.uint8)
    if "audio" in modalities:
        columns["audio"], columns["audio_length"] = knobs.sound.blank()
    if "numbers" in modalities:
        columns["numbers"] = np.full(num_numbers, np.nan)
    for name, label in labels.items():
        columns[f"label.{name}"] = label.blank
    if has_weights:
        columns[SAMPLING_WEIGHT] = np.zeros((), np.float32)
    return blank_sample(max(1, id_bytes), modalities, **columns)
