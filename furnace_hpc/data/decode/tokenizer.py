"""Turn text into BERT token ids, with a tokenizer from a folder or the hub's cache.

Nothing is downloaded. Only the library `tokenizers` is used: transformers uses it too, but takes
eight seconds to import.
"""

import itertools
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import BertWordPieceTokenizer, Encoding, Tokenizer

from furnace_hpc.config.augmentation import SPECIAL_TOKENS
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import Manifest
from furnace_hpc.config.parsing.utf8_path import utf8_path
from furnace_hpc.config.preprocessing.text import TextNeeds
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

    def __init__(
        self, tokenizer: Tokenizer, max_tokens: int, needs: TextNeeds | None = None
    ) -> None:
        """Check the tokenizer.

        Args:
            tokenizer: of any kind.
            max_tokens: stored per text.
            needs: of the encoder that the ids are for. None: they are padded with [PAD].

        Raises:
            ConfigError: it has no [PAD], cannot encode, or has ids or tokens beyond the limits.
        """
        self._tokenizer, self.max_tokens = tokenizer, max_tokens
        try:
            with tokenizer_errors():
                pad = needs.pad_id if needs else tokenizer.token_to_id("[PAD]")
                words = tokenizer.get_vocab(with_added_tokens=True)
                tokenizer.no_padding()
                tokenizer.enable_truncation(max_tokens, direction=needs.cut if needs else "right")
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
        self._is_fixed = needs is not None and needs.is_fixed
        self.special_tokens = {name: words[name] for name in SPECIAL_TOKENS if name in words}
        self.vocab_size = 1 + max(self.pad_id, *words.values())  # not len(words): ids may have gaps
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

        An encoder that was trained without a mask also sees the padding: all ids count.

        Raises:
            Unusable: the tokenizer fails, for example a regular expression backtracks too often.
        """
        ids = self._encoded(text).ids
        return self._padded(ids), self._length(ids)

    def encode_pair(self, first: str, second: str) -> tuple[NDArray[np.integer[Any]], int, int]:
        """Return padded ids, their number, and the place of the second text's first token.

        A pair that is too long loses tokens at the end of its longer text. A tokenizer without
        token types, such as RoBERTa's, gives the number of ids as the place.

        Raises:
            ConfigError: the tokenizer adds more than max_tokens tokens to a pair.
            Unusable: the tokenizer fails.
        """
        if self.max_tokens < (around := self._tokenizer.num_special_tokens_to_add(is_pair=True)):
            raise ConfigError(
                f"the tokenizer adds {around} tokens to each text pair, more than max_tokens "
                f"{self.max_tokens}: raise --max-tokens"
            )
        made = self._encoded(first, second)
        types = made.type_ids
        place = types.index(1) if 1 in types else len(made.ids)
        return self._padded(made.ids), self._length(made.ids), place

    def _encoded(self, text: str, second: str | None = None) -> Encoding:
        try:
            with tokenizer_errors():
                return self._tokenizer.encode(text, second)
        except TokenizerError as error:
            raise Unusable("unreadable", f"the tokenizer fails on the text: {error}") from None

    def _padded(self, ids: list[int]) -> NDArray[np.integer[Any]]:
        padded = np.full(self.max_tokens, self.pad_id, self.dtype)
        padded[: len(ids)] = ids
        return padded

    def _length(self, ids: list[int]) -> int:
        return self.max_tokens if self._is_fixed else len(ids)

    def encode_all(self, texts: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.int16]] | None:
        """Return padded ids [N, max_tokens] and lengths [N]. None if the tokenizer fails."""
        try:
            with tokenizer_errors():
                found = [made.ids for made in self._tokenizer.encode_batch_fast(list(texts))]
        except TokenizerError:
            return None
        lengths = np.array([len(ids) for ids in found], np.int16)
        padded = np.full((len(found), self.max_tokens), self.pad_id, self.dtype)
        flat = np.fromiter(itertools.chain.from_iterable(found), self.dtype, int(lengths.sum()))
        padded[np.arange(self.max_tokens) < lengths[:, None]] = flat
        if self._is_fixed:
            lengths[:] = self.max_tokens
        return padded, lengths


@lru_cache(maxsize=2)
def load_tokenizer(name: str, max_tokens: int, needs: TextNeeds | None = None) -> TokenReader:
    """Load a tokenizer.

    Args:
        name: a folder with tokenizer.json or vocab.txt, or a model in the hub's cache.
        max_tokens: tokens per text.
        needs: of the encoder that the ids are for.

    Raises:
        ConfigError: there is no such folder or model. Nothing is downloaded.
    """
    if path := _find(name):
        return TokenReader(_open(path), max_tokens, needs)
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
