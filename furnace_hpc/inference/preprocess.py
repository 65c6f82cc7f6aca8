"""Turn raw text, image and sound files into stored values, as packing did for the training data.

C channels, H height, W width, K coefficients, F frames, T tokens.
"""

from collections.abc import Callable
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

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import MODALITIES, Manifest
from furnace_hpc.data.columns import map_file
from furnace_hpc.data.decode.audio import SoundKnobs, read_sound
from furnace_hpc.data.decode.features import WINDOW
from furnace_hpc.data.decode.images import ImageKnobs, read_image
from furnace_hpc.data.decode.reading import reading, regular_file
from furnace_hpc.data.decode.tokenizer import TokenReader, load_tokenizer, vocabulary_of, words_of
from furnace_hpc.data.decode.word_tokenizer import word_tokenizer
from furnace_hpc.data.jpeg_images import decode, encode
from furnace_hpc.data.packing.rejects import Unusable
from furnace_hpc.data.packing.sample import Array, Values

Knobs = TypeVar("Knobs", bound=BaseModel)
# decode(function, path, knobs) returns function(path, knobs)
Decode = Callable[[Callable[[Path, Any], Any], Path, Any], Any]
DECODERS = (read_image.__module__, read_sound.__module__, "librosa.feature.spectral")


class Preprocessor:
    """Reads texts and files as packing did. A method returns the columns of one modality."""

    def __init__(self, data: Manifest, tokenizer: TokenReader | None) -> None:
        self._tokenizer = tokenizer
        self._image, self._sound = _image_knobs(data), _sound_knobs(data)
        self._columns = {
            name: column for name, column in data.columns.items() if name in MODALITIES
        }
        self._lengths = {name for name in ("text", "audio") if f"{name}_length" in data.columns}
        self.decode: Decode = lambda read, path, knobs: read(path, knobs)
        """Decodes a file. A caller may replace it, to decode in another process."""
        self._jpeg = data.columns["image"].jpeg if "image" in data.columns else None
        self._is_clip = data.image_frames is not None
        self._dataset = data.dataset

    def read(self, modality: str, given: Any) -> Values:
        """Return the stored values of a text, or of an image or sound file.

        An array, or a .npy file, already holds stored values.

        Raises:
            ConfigError: the text or the file cannot be used. The message is one line.
        """
        about: str | Path = modality
        if modality != "text" and isinstance(given, str | Path):
            about = given
        try:
            with reading(about):
                match modality:
                    case "text":
                        return self._text(given)
                    case "image":
                        return {"image": self._image_of(given)}
                    case _:
                        return self._audio(given)
        except Unusable as error:
            name = _short_repr(given)
            if isinstance(given, Path):
                name = repr(str(given))
            message = f"{modality} {name} is {error.reason}"
            if error.detail:
                message += f" ({error.detail})"
            raise ConfigError(message) from None

    def blank(self, modality: str) -> Values:
        """Return zeros for an absent modality. The network ignores them."""
        values: Values = {modality: np.zeros(self._shape(modality), self._columns[modality].dtype)}
        if modality in self._lengths:
            values[f"{modality}_length"] = np.array(1, np.int16)
        return values

    def _text(self, given: Any) -> Values:
        if not isinstance(given, str):
            raise ConfigError(f"text is {_short_repr(given)}, wanted a string")
        try:
            given.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"text {_short_repr(given)} is not valid Unicode") from None
        if not given.strip():
            raise ConfigError("text is empty. Leave it out or give a text")
        assert self._tokenizer
        try:
            tokens, length = self._tokenizer.encode(given)
        except Unusable as error:
            raise ConfigError(f"text is {_short_repr(given)}: {error.detail}") from None
        return {
            "text": tokens.astype(self._columns["text"].dtype),
            "text_length": np.array(length, np.int16),
        }

    def _image_of(self, given: Any) -> Array:
        if isinstance(given, np.ndarray) or _is_npy(given):
            return self._stored("image", given)
        path = _regular_file("image", given)
        if self._image is None:
            raise self._only_arrays("image")
        pixels: Array = self.decode(read_image, path, self._image)
        if self._jpeg:
            return decode(encode(pixels, self._jpeg), self._jpeg)
        if self._shape("image")[0] == 1:
            grey = Image.fromarray(pixels.transpose(1, 2, 0)).convert("L")
            pixels = np.asarray(grey, np.uint8)[None]
        return pixels

    def _audio(self, given: Any) -> Values:
        if isinstance(given, np.ndarray) or _is_npy(given):
            values = self._stored("audio", given)
            return {"audio": values} | self._length_of(values.shape[-1])
        path = _regular_file("audio", given)
        if self._sound is None:
            raise self._only_arrays("audio")
        values, length = self.decode(read_sound, path, self._sound)
        return {"audio": values} | self._length_of(length)

    def _length_of(self, frames: int) -> Values:
        if "audio" not in self._lengths:
            return {}
        return {"audio_length": np.array(frames, np.int16)}

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


def make_tokenizer(data: Manifest, given: str | None) -> TokenReader:
    """Load the tokenizer of the packed text: `given`, or the one in the data's manifest.

    Raises:
        ConfigError: the tokenizer is missing or has another vocabulary.
    """
    max_tokens, settings = data.columns["text"].shape[0], data.preprocessing
    if "vocab" in settings:  # TriDigits
        return TokenReader(_word_tokenizer(settings["vocab"]), max_tokens)
    if words := words_of(data):
        return TokenReader(word_tokenizer(words), max_tokens)
    packed_with = settings.get("text", {}).get("tokenizer")
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


def _word_tokenizer(words: list[str]) -> Tokenizer:
    ids = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()  # the packed words are lower case
    tokenizer.pre_tokenizer = WhitespaceSplit()
    special = [("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    return tokenizer


def _image_knobs(data: Manifest) -> ImageKnobs | None:
    settings = data.preprocessing.get("image", {})
    if data.dataset == "tridigits":
        return ImageKnobs(size=settings["height"])
    return _knobs(ImageKnobs, settings)


def _sound_knobs(data: Manifest) -> SoundKnobs | None:
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
    return _knobs(SoundKnobs, settings)


def _knobs(kind: type[Knobs], settings: dict[str, Any]) -> Knobs | None:
    """Take the knobs from a manifest's settings. None if the data was not packed from files."""
    if not kind.model_fields.keys() <= settings.keys():
        return None
    try:
        return kind.model_validate({name: settings[name] for name in kind.model_fields})
    except ValidationError:
        return None


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
