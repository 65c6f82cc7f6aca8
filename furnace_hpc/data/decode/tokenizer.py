"""Text to BERT token ids, by a tokenizer of a local folder or of the hub's cache; nothing is downloaded here.

The library `tokenizers` alone: transformers reads the same files with it, eight seconds later.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import BertWordPieceTokenizer, Tokenizer

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import Manifest
from furnace_hpc.config.parsing.utf8_path import utf8_path
from furnace_hpc.config.pretrained_files import find_file
from furnace_hpc.data.decode.tokenizer_errors import TokenizerError, tokenizer_errors
from furnace_hpc.data.packing.rejects import Unusable
from furnace_hpc.data.packing.source_lists import fingerprint_of

FILES = ("tokenizer.json", "vocab.txt")
MAX_FILE_BYTES = 200_000_000  # the largest tokenizers of multilingual models have a fifth of it
ANOTHER = "give one of BERT's kind, such as bert-base-uncased"
MAX_IDS = 10_000_000  # weights have a row for each id, up to the largest


class TokenReader:
    """A tokenizer with a fixed length; ids are those of transformers' BertTokenizer from the same files."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        """Raise ConfigError where it has no [PAD], cannot encode, or has ids or tokens beyond what is stored."""
        self._tokenizer, self.max_tokens = tokenizer, max_tokens
        try:
            with tokenizer_errors():
                pad = tokenizer.token_to_id("[PAD]")
                words = tokenizer.get_vocab(with_added_tokens=True)
                tokenizer.no_padding()
                tokenizer.enable_truncation(max_tokens)
                around = len(tokenizer.encode("").ids)
        except TokenizerError as error:
            raise ConfigError(f"the tokenizer cannot be used ({error}): {ANOTHER}") from None
        if pad is None:
            raise ConfigError(f"the tokenizer has no [PAD]: {ANOTHER}")
        if around > max_tokens:
            raise ConfigError(
                f"the tokenizer adds {around} tokens to each text, more than max_tokens {max_tokens}"
            )
        self.pad_id = int(pad)
        self.vocab_size = 1 + max(words.values())  # not the number of words: one may stand twice
        if self.vocab_size > MAX_IDS:
            raise ConfigError(
                f"the tokenizer has the id {self.vocab_size - 1:,}, more than {MAX_IDS:,}: {ANOTHER}"
            )
        self.fingerprint = fingerprint_of(words)
        """Of all words and their ids."""

    def save(self, path: Path) -> None:
        """Write it as one tokenizer.json, which gives the same ids."""
        path.write_text(self._tokenizer.to_str(pretty=True), encoding="utf-8")

    @property
    def dtype(self) -> str:
        """The smallest signed type that holds every id."""
        return "int16" if self.vocab_size <= 32_767 else "int32"

    def encode(self, text: str) -> tuple[NDArray[np.integer[Any]], int]:
        """Return ids [max_tokens], padded, and how many of them are the text's.

        Raises:
            Unusable: the tokenizer fails on this text: a regular expression of it that backtracks too often, say.
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
    """Load `name`: a folder with tokenizer.json or vocab.txt, or a model of the hub that is in its cache.

    Raises:
        ConfigError: there is neither; a node without network cannot fetch it.
    """
    if path := _find(name):
        return TokenReader(_open(path), max_tokens)
    if Path(name).is_dir():
        raise ConfigError(
            f"folder {name!r} has neither {' nor '.join(FILES)}: give a tokenizer's folder"
        )
    raise ConfigError(
        f"tokenizer {name!r} is neither a folder nor in the hub's cache here: where there is network, give "
        f"`hf download {name} tokenizer.json tokenizer_config.json vocab.txt`, or give --tokenizer DIR"
    )


def vocabulary_of(manifest: Manifest) -> str | None:
    """The fingerprint of the words and ids that made a packed set's text; None: its manifest does not say."""
    made = manifest.preprocessing
    if "vocab" in made:  # TriDigits: the words themselves
        return fingerprint_of({word: number for number, word in enumerate(made["vocab"])})
    text = made.get("text")
    return text.get("vocabulary") if isinstance(text, dict) else None


def shipped_vocabulary(name: str) -> str | None:
    """The fingerprint of the tokenizer that lies beside a model's weights; None: there is none.

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
    """The tokenizer's file in a folder, or of a model in the hub's cache; None: there is none."""
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
    """What `tokenizer_config.json` says; without it, BERT's own default."""
    try:
        return bool(json.loads(settings.read_text(encoding="utf-8")).get("do_lower_case", True))
    except (OSError, ValueError, AttributeError, RecursionError):
        return True
