"""Turn raw text, image and sound files into stored values, as packing did for the training data.

C channels, H height, W width, K coefficients, F frames, T tokens.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from pydantic import BaseModel, ValidationError
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.manifest import MODALITIES, TEXT_SECOND, Manifest, number_names
from furnace_hpc.config.parsing.numbers import MISSING, number_of_text
from furnace_hpc.config.preprocessing.record import recorded, recorded_encoder
from furnace_hpc.config.preprocessing.text import TextNeeds, text_needs
from furnace_hpc.data.columns import map_file
from furnace_hpc.data.decode.audio import SoundKnobs, read_sound
from furnace_hpc.data.decode.features import WINDOW
from furnace_hpc.data.decode.for_encoder.images import EncoderImageKnobs
from furnace_hpc.data.decode.for_encoder.sounds import (
    EncoderSoundKnobs,
    FeatureKnobs,
    WaveformKnobs,
)
from furnace_hpc.data.decode.images import ImageKnobs, read_image
from furnace_hpc.data.decode.reading import reading, regular_file
from furnace_hpc.data.decode.segments import WHOLE_SOUND, Segment
from furnace_hpc.data.decode.text_pairs import pair_columns
from furnace_hpc.data.decode.tokenizer import TokenReader, load_tokenizer, vocabulary_of, words_of
from furnace_hpc.data.decode.word_tokenizer import word_tokenizer
from furnace_hpc.data.jpeg_images import decode, encode
from furnace_hpc.data.packing.rejects import Unusable
from furnace_hpc.data.packing.sample import Array, Values
from furnace_hpc.data.table.media import Media, image_of, sound_of

Knobs = TypeVar("Knobs", bound=BaseModel)
# decode(function, path or part of a file, knobs) returns function(path, knobs)
Decode = Callable[[Callable[[Any, Any], Any], Any, Any], Any]
PAIR = ("first", "second")
DECODERS = (image_of.__module__, "librosa.feature.spectral")


class Preprocessor:
    """Reads texts and files as packing did. A method returns the columns of one modality."""

    def __init__(self, data: Manifest, tokenizer: TokenReader | None) -> None:
        self._tokenizer = tokenizer
        self._image, self._sound = _image_knobs(data), _sound_knobs(data)
        self._columns = {
            name: column for name, column in data.columns.items() if name in MODALITIES
        }
        self._length_types = {
            name: data.columns[f"{name}_length"].dtype
            for name in ("text", "audio")
            if f"{name}_length" in data.columns
        }
        self.decode: Decode = lambda read, path, knobs: read(path, knobs)
        """Decodes a file. A caller may replace it, to decode in another process."""
        self._numbers = number_names(data)
        self._is_pair = TEXT_SECOND in data.columns
        self._jpeg = data.columns["image"].jpeg if "image" in data.columns else None
        self._is_clip = data.image_frames is not None
        self._dataset = data.dataset

    def read(self, modality: str, given: Any) -> Values:
        """Return the stored values of a text or of numbers, or of an image or sound file.

        An array, or a .npy file, already holds stored values.

        Raises:
            ConfigError: the text or the file cannot be used. The message is one line.
        """
        about = modality
        if modality in ("image", "audio") and isinstance(given, str | Path | Media):
            about = str(given)
        try:
            with reading(about):
                match modality:
                    case "text":
                        return self._text(given)
                    case "image":
                        return {"image": self._image_of(given)}
                    case "numbers":
                        return {"numbers": self._numbers_of(given)}
                    case _:
                        return self._audio(given)
        except Unusable as error:
            named = given.get("path") if isinstance(given, Mapping) else given
            name = _short_repr(given)
            if isinstance(named, Path | Media):
                name = repr(str(named))
            message = f"{modality} {name} is {error.reason}"
            if error.detail:
                message += f" ({error.detail})"
            raise ConfigError(message) from None

    def blank(self, modality: str) -> Values:
        """Return zeros for an absent modality. The network ignores them."""
        values: Values = {modality: np.zeros(self._shape(modality), self._columns[modality].dtype)}
        if modality in self._length_types:
            values[f"{modality}_length"] = np.array(1, self._length_types[modality])
        if modality == "text" and self._is_pair:
            values[TEXT_SECOND] = np.array(1, np.int16)
        return values

    def _text(self, given: Any) -> Values:
        texts = self._texts(given)
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ConfigError(f"text {_short_repr(text)} is not valid Unicode") from None
        if not any(text.strip() for text in texts):
            raise ConfigError("text is empty. Leave it out or give a text")
        assert self._tokenizer
        try:
            if self._is_pair:
                values = pair_columns(self._tokenizer, *texts)
            else:
                tokens, length = self._tokenizer.encode(*texts)
                values = {"text": tokens, "text_length": np.array(length, np.int16)}
        except Unusable as error:
            raise ConfigError(f"text is {_short_repr(given)}: {error.detail}") from None
        return values | {"text": values["text"].astype(self._columns["text"].dtype)}

    def _texts(self, given: Any) -> list[str]:
        """Return the text, or both texts of a pair. One of them may be empty."""
        if not self._is_pair:
            if not isinstance(given, str):
                raise ConfigError(f"text is {_short_repr(given)}, wanted a string")
            return [given]
        if not isinstance(given, list | tuple) or len(given) != len(PAIR):
            raise ConfigError(
                f"text is {_short_repr(given)}, wanted a pair of strings: this model reads two "
                "texts"
            )
        texts = ["" if text is None else text for text in given]
        for which, text in zip(PAIR, texts, strict=True):
            if not isinstance(text, str):
                raise ConfigError(f"the {which} text is {_short_repr(text)}, wanted a string")
        return texts

    def _numbers_of(self, given: Any) -> Array:
        """Return a row of numbers in the order of the pack. NaN is a missing number."""
        names = self._numbers
        if isinstance(given, np.ndarray):
            given = given.tolist()
        if isinstance(given, Mapping):
            if unknown := [name for name in given if name not in names]:
                raise ConfigError(f"numbers have no {unknown[0]!r}; {nearest(unknown[0], names)}")
            given = [given.get(name) for name in names]
        if not isinstance(given, Sequence) or isinstance(given, str) or len(given) != len(names):
            raise ConfigError(
                f"numbers are {_short_repr(given)}, wanted {len(names)} of them, such as "
                f"{{{names[0]!r}: 1.5}}: {', '.join(names)}"
            )
        row = np.array([_number(*pair) for pair in zip(names, given, strict=True)], np.float64)
        if np.isnan(row).all():
            raise ConfigError("numbers are all missing. Leave them out, or give one of them")
        return row

    def _image_of(self, given: Any) -> Array:
        if isinstance(given, np.ndarray) or _is_npy(given):
            return self._stored("image", given)
        read, source = self._source("image", given, read_image, image_of)
        if self._image is None:
            raise self._only_arrays("image")
        pixels: Array = self.decode(read, source, self._image)
        if self._jpeg:
            return decode(encode(pixels, self._jpeg), self._jpeg)
        if self._shape("image")[0] == 1:
            grey = Image.fromarray(pixels.transpose(1, 2, 0)).convert("L")
            pixels = np.asarray(grey, np.uint8)[None]
        return pixels

    def _audio(self, given: Any) -> Values:
        segment = None
        if isinstance(given, Mapping):
            given, segment = _segment(given)
        if isinstance(given, np.ndarray) or _is_npy(given):
            values = self._stored("audio", given)
            return {"audio": values} | self._length_of(values.shape[-1])
        read, source = self._source("audio", given, read_sound, sound_of)
        if self._sound is None:
            raise self._only_arrays("audio")
        if segment:
            if isinstance(source, Media):
                source = replace(source, segment=segment)
            else:
                read = partial(read, segment=segment)
        values, length = self.decode(read, source, self._sound)
        return {"audio": values} | self._length_of(length)

    def _source(self, modality: str, given: Any, of_file: Any, of_part: Any) -> tuple[Any, Any]:
        """Return a decoder and what it reads: a file, or a part of another file."""
        if isinstance(given, Media):
            return of_part, given
        return of_file, _regular_file(modality, given)

    def _length_of(self, frames: int) -> Values:
        if "audio" not in self._length_types:
            return {}
        return {"audio_length": np.array(frames, self._length_types["audio"])}

    def _stored(self, modality: str, given: Any) -> Array:
        """Check the shape and range of stored values, and convert them to the column's type."""
        array, shape = given, self._shape(modality)
        if not isinstance(array, np.ndarray):
            array = map_file(_regular_file(modality, given))
        if array.shape != shape or array.dtype.kind not in "uif":
            raise Unusable(
                "unreadable", f"{array.dtype} {array.shape}, wanted numbers of shape {shape}"
            )
        if not np.isfinite(array).all():
            raise Unusable("not finite")
        stored = np.dtype(self._columns[modality].dtype)
        limits: Any = np.iinfo(stored) if stored.kind in "ui" else np.finfo(stored)
        if array.min() < limits.min or array.max() > limits.max:
            raise Unusable(
                "unreadable",
                f"values from {array.min()} to {array.max()}, wanted those of {stored}",
            )
        return np.ascontiguousarray(array, dtype=stored)

    def _shape(self, modality: str) -> tuple[int, ...]:
        """The shape of one sample. For a clip, the shape of one frame."""
        shape = self._columns[modality].shape
        if modality == "image" and self._is_clip:
            return shape[1:]
        return shape

    def _only_arrays(self, modality: str) -> ConfigError:
        return ConfigError(
            f"{self._dataset} was packed from arrays, not from {modality} files. "
            f"Give a .npy file of shape {self._shape(modality)}"
        )


def make_tokenizer(data: Manifest, given: str | None, encoder: str | None = None) -> TokenReader:
    """Load the tokenizer of the packed text: `given`, or the one in the data's manifest.

    Args:
        data: manifest of the pack.
        given: a folder or a name, which goes first.
        encoder: the run's text encoder. Its folder has the tokenizer that the text was packed for.

    Raises:
        ConfigError: the tokenizer is missing or has another vocabulary.
    """
    max_tokens, settings = data.columns["text"].shape[0], data.preprocessing
    if "vocab" in settings:  # TriDigits
        return TokenReader(_word_tokenizer(settings["vocab"]), max_tokens)
    if words := words_of(data):
        return TokenReader(word_tokenizer(words), max_tokens)
    packed_with = settings.get("text", {}).get("tokenizer")
    needs = recorded(data, "text")
    if isinstance(needs, TextNeeds):
        packed_for = recorded_encoder(data, "text")
        return _tokenizer_for(needs, given or encoder or packed_for, packed_for, max_tokens)
    name = given or packed_with
    if not name:
        raise ConfigError(
            f"the manifest of the data set {data.dataset} names no tokenizer. Give --tokenizer DIR"
        )
    reader = load_tokenizer(str(name), max_tokens)
    has_same_words = reader.fingerprint == (vocabulary_of(data) or reader.fingerprint)
    if not has_same_words or reader.vocab_size != data.vocab_size:
        raise ConfigError(
            f"tokenizer {str(name)!r} has another vocabulary than the one that packed the data "
            f"({packed_with}, {data.vocab_size} ids). Give that one with --tokenizer DIR"
        )
    return reader


def _tokenizer_for(needs: TextNeeds, name: str, packed_for: str, max_tokens: int) -> TokenReader:
    found = text_needs(name)
    if found is None or found.tokenizer != needs.tokenizer:
        problem = "has no tokenizer" if found is None else "has another tokenizer"
        raise ConfigError(
            f"{name!r} {problem} than the one of {packed_for}, for which the text was packed. Give "
            "that one with --tokenizer DIR"
        )
    return load_tokenizer(name, max_tokens, needs)


def _word_tokenizer(words: list[str]) -> Tokenizer:
    ids = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()  # the packed words are lower case
    tokenizer.pre_tokenizer = WhitespaceSplit()
    special = [("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    return tokenizer


def _image_knobs(data: Manifest) -> ImageKnobs | EncoderImageKnobs | None:
    settings = data.preprocessing.get("image", {})
    if data.dataset == "tridigits":
        return ImageKnobs(size=settings["height"])
    return _knobs(ImageKnobs, settings) or _knobs(EncoderImageKnobs, settings)


def _sound_knobs(data: Manifest) -> SoundKnobs | EncoderSoundKnobs | None:
    settings = data.preprocessing.get("audio", {})
    if data.dataset == "tridigits":
        coefficients, frames = data.columns["audio"].shape
        return SoundKnobs(
            coefficients=coefficients,
            frames=frames,
            sample_rate_hz=settings["sample_rate_hz"],
            hop=settings["hop"],
            window=WINDOW,
        )
    return (
        _knobs(SoundKnobs, settings)
        or _knobs(WaveformKnobs, settings)
        or _knobs(FeatureKnobs, settings)
    )


def _knobs(kind: type[Knobs], settings: dict[str, Any]) -> Knobs | None:
    """Take the knobs from a manifest's settings. None if the data was not packed from files."""
    if not kind.model_fields.keys() <= settings.keys():
        return None
    try:
        return kind.model_validate({name: settings[name] for name in kind.model_fields})
    except ValidationError:
        return None


def _segment(given: Mapping[str, Any]) -> tuple[Any, Segment | None]:
    """Return the path and the segment of `{"path": ..., "start": ..., "end": ...}`.

    Without start and end it is the whole sound.

    Raises:
        ConfigError: a key is unknown, or start and end are not seconds in this order.
    """
    keys = ("path", "start", "end")
    if unknown := [key for key in given if key not in keys]:
        raise ConfigError(f"audio has the key {unknown[0]!r}; {nearest(str(unknown[0]), keys)}")
    start, end = _number("start", given.get("start")), _number("end", given.get("end"))
    start, end = 0.0 if math.isnan(start) else start, math.inf if math.isnan(end) else end
    if not 0 <= start < end:
        raise ConfigError(
            f"audio starts at {start:g} s and ends at {end:g} s, wanted an end after the start"
        )
    segment = Segment(start, end)
    return given.get("path"), None if segment == WHOLE_SOUND else segment


def _number(name: str, value: Any) -> float:
    """Return a number of a row. None, NaN and text without a value are a missing number."""
    if value is None or (isinstance(value, str) and value.strip() in ("", *MISSING)):
        return math.nan
    number = math.inf
    with suppress(ValueError, TypeError, OverflowError):
        if isinstance(value, int | float):
            number = float(value)
        elif isinstance(value, str):
            number = number_of_text(value)
    if math.isinf(number):
        raise ConfigError(f"number {name!r} is {_short_repr(value)}, wanted a finite number")
    return number


def _is_npy(given: Any) -> bool:
    return isinstance(given, str | Path) and Path(given).suffix == ".npy"


def _regular_file(modality: str, given: Any) -> Path:
    """Return the path if it is a regular file. Reading a pipe or a device would not end."""
    if not isinstance(given, str | Path):
        raise ConfigError(f"{modality} is {_short_repr(given)}, wanted the path of a file")
    return regular_file(Path(given))


def _short_repr(value: Any) -> str:
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} that is nested too deep"
    if len(text) > 60:
        return f"{text[:60]}..."
    return text
