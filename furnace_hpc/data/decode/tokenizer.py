"""Turn text into BERT token ids, with a tokenizer from a folder or the hub's cache.

Nothing is downloaded. Only the library `tokenizers` is used: transformers uses it too, but takes
eight seconds to import.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import BertWordPieceTokenizer, Tokenizer

from furnace_hpc.config.augmentation import SPECIAL_TOKENS
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import Manifest
from furnace_hpc.config.parsing.utf8_path import utf8_path
from furnace_hpc.config.pretrained_files import find_file
from furnace_hpc.data.decode.tokenizer_errors import TokenizerError, tokenizer_errors
from furnace_hpc.data.packing.rejects import Unusable
from furnace_hpc.data.packing.source_lists import fingerprint_of
from furnace_hpc.host.regular_file import read_regular

FILES = ("tokenizer.json", "vocab.txt")
MAX_FILE_BYTES = 200_000_000  # five times the largest tokenizers of multilingual models
OTHER_TOKENIZER = "give a tokenizer of a BERT model, such as bert-base-uncased"
MAX_IDS = 10_000_000  # weights have a row for every id up to the largest


class TokenReader:
    """A tokenizer with a fixed length. Its ids equal those of transformers' BertTokenizer."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        """Check the tokenizer.

        Raises:
            ConfigError: it has no [PAD], cannot encode, or has ids or tokens beyond the limits.
        """
        self._tokenizer, self.max_tokens = tokenizer, max_tokens
        try:
            with tokenizer_errors():
                pad = tokenizer.token_to_id("[PAD]")
                words = tokenizer.get_vocab(with_added_tokens=True)
                tokenizer.no_padding()
                tokenizer.enable_truncation(max_tokens)
                around = len(tokenizer.encode("").ids)
        except TokenizerError as error:
            raise ConfigError(
                f"the tokenizer cannot be used ({error}): {OTHER_TOKENIZER}"
            ) from None
        if pad is None:
            raise ConfigError(f"the tokenizer has no [PAD]: {OTHER_TOKENIZER}")
        if around > max_tokens:
            raise ConfigError(
                f"the tokenizer adds {around} tokens to each text, more than max_tokens "
                f"{max_tokens}: raise --max-tokens"
            )
        self.pad_id = int(pad)
        self.special_tokens = {name: words[name] for name in SPECIAL_TOKENS if name in words}
        self.vocab_size = 1 + max(words.values())  # not len(words): ids may have gaps
        if self.vocab_size > MAX_IDS:
            raise ConfigError(
                f"the tokenizer has the id {self.vocab_size - 1:,}, more than {MAX_IDS:,}: "
                f"{OTHER_TOKENIZER}"
            )
        self.fingerprint = fingerprint_of(words)
        """Hash of all words and their ids."""

    def save(self, path: Path) -> None:
        """Write the tokenizer as one tokenizer.json that gives the same ids."""
        path.write_text(self._tokenizer.to_str(pretty=True), encoding="utf-8")

    @property
    def dtype(self) -> str:
        """Return the smallest signed type that holds every id."""
        return "int16" if self.vocab_size <= 32_767 else "int32"

    def encode(self, text: str) -> tuple[NDArray[np.integer[Any]], int]:
        """Return padded ids [max_tokens], and the number of ids without padding.

        Raises:
            Unusable: the tokenizer fails, for example a regular expression backtracks too often.
        """
        try:
            with tokenizer_errors():
                ids = self._tokenizer.encode(text).ids
        except TokenizerError as error:
            raise Unusable("unreadable", f"the tokenizer fails on the text: {error}") from None
        padded = np.full(self.max_tokens, self.pad_id, self.dtype)
        padded[: len(ids)] = ids
        return padded, len(ids)


@lru_cache(maxsize=2)
def load_tokenizer(name: str, max_tokens: int) -> TokenReader:
    """Load a tokenizer.

    Args:
        name: a folder with tokenizer.json or vocab.txt, or a model in the hub's cache.
        max_tokens: tokens per text.

    Raises:
        ConfigError: there is no such folder or model. Nothing is downloaded.
    """
    if path := _find(name):
        return TokenReader(_open(path), max_tokens)
    if Path(name).is_dir():
        raise ConfigError(
            f"folder {name!r} has neither {' nor '.join(FILES)}: give a tokenizer's folder"
        )
    raise ConfigError(
        f"tokenizer {name!r} is neither a folder nor in the hub's cache here: with network access, "
        f"run `hf download {name} tokenizer.json tokenizer_config.json vocab.txt`, or give "
        "--tokenizer DIR"
    )


def vocabulary_of(manifest: Manifest) -> str | None:
    """Return the fingerprint of the vocabulary of a pack. None if its manifest has none."""
    made = manifest.preprocessing
    words = made.get("vocab") or words_of(manifest)  # TriDigits, and tables without a tokenizer
    if words:
        return fingerprint_of({word: number for number, word in enumerate(words)})
    text = made.get("text")
    if not isinstance(text, dict):
        return None
    return text.get("vocabulary")


def words_of(manifest: Manifest) -> list[str]:
    """Return the words of a pack of a table with its own words. Empty if it has a tokenizer."""
    draw = manifest.preprocessing.get("draw")
    if not isinstance(draw, dict):
        return []
    return [str(word) for word in draw.get("words", [])]


def shipped_vocabulary(name: str) -> str | None:
    """Return the fingerprint of the tokenizer beside a model's weights. None if there is none.

    Raises:
        ConfigError: it cannot be read.
    """
    path = _find(name)
    if path is None:
        return None
    tokenizer = _open(path)
    try:
        with tokenizer_errors():
            words = tokenizer.get_vocab(with_added_tokens=True)
    except TokenizerError as error:
        raise _unreadable(path, error) from None
    return fingerprint_of(words)


def _find(name: str) -> Path | None:
    """Return the tokenizer file of a folder or of a cached model. None if there is none."""
    return next((path for file in FILES if (path := find_file(name, file))), None)


def _open(path: Path) -> Tokenizer:
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise _unreadable(path, f"{size:,} bytes, more than {MAX_FILE_BYTES:,}")
    try:
        with tokenizer_errors(), utf8_path(path) as named:
            if path.name == "tokenizer.json":
                return Tokenizer.from_file(str(named))
            lowercase = _lowercase(path.with_name("tokenizer_config.json"))
            words: Tokenizer = BertWordPieceTokenizer(
                str(named), lowercase=lowercase, strip_accents=None
            )._tokenizer
            return words
    except TokenizerError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, why: object) -> ConfigError:
    return ConfigError(
        f"tokenizer {path} cannot be read ({why}): give a folder with BERT's vocab.txt"
    )


def _lowercase(settings: Path) -> bool:
    """Return the setting in `tokenizer_config.json`. BERT's default is True."""
    try:
        return bool(json.loads(read_regular(settings)).get("do_lower_case", True))
    except (OSError, ValueError, AttributeError, RecursionError):
        return True
