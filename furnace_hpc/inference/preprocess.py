"""Raw text, image and sound files to stored values: what packing did with the files that the network was trained on.

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
from furnace_hpc.data.decode.tokenizer import TokenReader, load_tokenizer, vocabulary_of
from furnace_hpc.data.packing.rejects import Unusable
from furnace_hpc.data.packing.sample import Array, Values

Knobs = TypeVar("Knobs", bound=BaseModel)
# a function that reads a file, its path and knobs
Decode = Callable[[Callable[[Path, Any], Any], Path, Any], Any]
DECODERS = (read_image.__module__, read_sound.__module__, "librosa.feature.spectral")


class Recipe:
    """Reads what a user gives as packing read it; each method gives the columns of one sample's modality."""

    def __init__(self, data: Manifest, tokenizer: TokenReader | None) -> None:
        self._tokenizer = tokenizer
        self._image, self._sound = _image_knobs(data), _sound_knobs(data)
        self._columns = {
            name: column for name, column in data.columns.items() if name in MODALITIES
        }
        self._lengths = {name for name in ("text", "audio") if f"{name}_length" in data.columns}
        self.decode: Decode = lambda read, path, knobs: read(path, knobs)
        """Decodes a file; may do so in another process."""
        self._is_clip = data.image_frames is not None
        self._dataset = data.dataset

    def read(self, modality: str, given: Any) -> Values:
        """The stored values of a text, or of an image or sound file; a .npy file, or an array, is taken as stored.

        Raises:
            ConfigError: it cannot be used; one sentence.
        """
        try:
            with reading(
                given if isinstance(given, str | Path) and modality != "text" else modality
            ):
                match modality:
                    case "text":
                        return self._text(given)
                    case "image":
                        return {"image": self._image_of(given)}
                    case _:
                        return self._audio(given)
        except Unusable as error:
            name = repr(str(given)) if isinstance(given, Path) else _short(given)
            detail = f" ({error.detail})" if error.detail else ""
            raise ConfigError(f"{modality} {name} is {error.reason}{detail}") from None

    def blank(self, modality: str) -> Values:
        """What stands for a modality that is absent: the network does not look at it."""
        values: Values = {modality: np.zeros(self._shape(modality), self._columns[modality].dtype)}
        if modality in self._lengths:
            values[f"{modality}_length"] = np.array(1, np.int16)
        return values

    def _text(self, given: Any) -> Values:
        if not isinstance(given, str):
            raise ConfigError(f"text is {_short(given)}, wanted a string")
        try:
            given.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"text is {_short(given)}, which is no Unicode text") from None
        if not given.strip():
            raise ConfigError("text is empty: leave it out, or give some")
        assert self._tokenizer
        try:
            tokens, length = self._tokenizer.encode(given)
        except Unusable as error:
            raise ConfigError(f"text is {_short(given)}: {error.detail}") from None
        return {
            "text": tokens.astype(self._columns["text"].dtype),
            "text_length": np.array(length, np.int16),
        }

    def _image_of(self, given: Any) -> Array:
        if isinstance(given, np.ndarray) or _is_npy(given):
            return self._stored("image", given)
        path = _regular_file("image", given)
        if self._image is None:
            raise self._no_recipe("image")
        pixels: Array = self.decode(read_image, path, self._image)
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
            raise self._no_recipe("audio")
        values, length = self.decode(read_sound, path, self._sound)
        return {"audio": values} | self._length_of(length)

    def _length_of(self, frames: int) -> Values:
        return {"audio_length": np.array(frames, np.int16)} if "audio" in self._lengths else {}

    def _stored(self, modality: str, given: Any) -> Array:
        """An array as the pack would hold it: shape and range of the column."""
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
                "unreadable", f"values from {array.min()} to {array.max()}, stored are {stored}"
            )
        return np.ascontiguousarray(array, dtype=stored)

    def _shape(self, modality: str) -> tuple[int, ...]:
        """Of one sample; of a clip, one frame."""
        shape = self._columns[modality].shape
        return shape[1:] if modality == "image" and self._is_clip else shape

    def _no_recipe(self, modality: str) -> ConfigError:
        return ConfigError(
            f"{self._dataset} was packed from arrays, not from {modality} files: give a .npy file of shape "
            f"{self._shape(modality)}"
        )


def make_tokenizer(data: Manifest, given: str | None) -> TokenReader:
    """The tokenizer that packed the text: `given`, or the one that the manifest names.

    Raises:
        ConfigError: it is not there, or it is another one.
    """
    max_tokens, made = data.columns["text"].shape[0], data.preprocessing
    if "vocab" in made:  # TriDigits: words
        return TokenReader(_of_words(made["vocab"]), max_tokens)
    text = made.get("text", {})
    name = given or text.get("tokenizer")
    if not name:
        raise ConfigError(
            f"the data set {data.dataset} does not say which tokenizer made it: give --tokenizer DIR"
        )
    reader = load_tokenizer(str(name), max_tokens)
    if (
        reader.fingerprint != (vocabulary_of(data) or reader.fingerprint)
        or reader.vocab_size != data.vocab_size
    ):
        raise ConfigError(
            f"tokenizer {str(name)!r} has another vocabulary than the one that packed the data "
            f"({text.get('tokenizer')}, {data.vocab_size} ids): give that one by --tokenizer DIR"
        )
    return reader


def _of_words(words: list[str]) -> Tokenizer:
    ids = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()  # all that was packed is in lower case
    tokenizer.pre_tokenizer = WhitespaceSplit()
    special = [("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    return tokenizer


def _image_knobs(data: Manifest) -> ImageKnobs | None:
    made = data.preprocessing.get("image", {})
    if data.dataset == "tridigits":
        return ImageKnobs(size=made["height"])
    return _knobs(ImageKnobs, made)


def _sound_knobs(data: Manifest) -> SoundKnobs | None:
    made = data.preprocessing.get("audio", {})
    if data.dataset == "tridigits":
        coefficients, frames = data.columns["audio"].shape
        rate, hop = made["sample_rate_hz"], made["hop"]
        return SoundKnobs(
            coefficients=coefficients, frames=frames, sample_rate_hz=rate, hop=hop, window=WINDOW
        )
    return _knobs(SoundKnobs, made)


def _knobs(kind: type[Knobs], made: dict[str, Any]) -> Knobs | None:
    """The knobs among a manifest's settings; None where the files were none that these knobs read."""
    if not kind.model_fields.keys() <= made.keys():
        return None
    try:
        return kind.model_validate({name: made[name] for name in kind.model_fields})
    except ValidationError:
        return None


def _is_npy(given: Any) -> bool:
    return isinstance(given, str | Path) and Path(given).suffix == ".npy"


def _regular_file(modality: str, given: Any) -> Path:
    """The path, which is a file: reading a pipe or a device would not end."""
    if not isinstance(given, str | Path):
        raise ConfigError(f"{modality} is {_short(given)}, wanted the path of a file")
    return regular_file(Path(given))


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} that is nested too deep"
    return text if len(text) <= 60 else f"{text[:60]}..."
