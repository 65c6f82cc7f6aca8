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

from furnace_hpc.data.listing import fingerprint_of
from furnace_hpc.spec.errors import ConfigError
from furnace_hpc.spec.manifest import Manifest
from furnace_hpc.spec.pretrained import find_file
from furnace_hpc.spec.utf8_path import utf8_path

FILES = ("tokenizer.json", "vocab.txt")


class TokenReader:
    """A tokenizer with a fixed length; ids are those of transformers' BertTokenizer from the same files."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        self._tokenizer, self.max_tokens = tokenizer, max_tokens
        pad = tokenizer.token_to_id("[PAD]")
        if pad is None:
            raise ConfigError("the tokenizer has no [PAD]: give one of BERT's kind, e.g. bert-base-uncased")
        self.pad_id = int(pad)
        words = tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = 1 + max(words.values())  # not the number of words: one may stand twice
        self.fingerprint = fingerprint_of(words)
        """Of all words and their ids."""
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens)

    def save(self, path: Path) -> None:
        """Write it as one tokenizer.json, which gives the same ids."""
        path.write_text(self._tokenizer.to_str(pretty=True), encoding="utf-8")

    @property
    def dtype(self) -> str:
        """The smallest signed type that holds every id."""
        return "int16" if self.vocab_size <= 32_767 else "int32"

    def encode(self, text: str) -> tuple[NDArray[np.integer[Any]], int]:
        """Return ids [max_tokens], padded, and how many of them are the text's."""
        ids = self._tokenizer.encode(text).ids
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
        raise ConfigError(f"folder {name!r} has neither {' nor '.join(FILES)}: give a tokenizer's folder")
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
    return None if path is None else fingerprint_of(_open(path).get_vocab(with_added_tokens=True))


def _find(name: str) -> Path | None:
    """The tokenizer's file in a folder, or of a model in the hub's cache; None: there is none."""
    return next((path for file in FILES if (path := find_file(name, file))), None)


def _open(path: Path) -> Tokenizer:
    try:
        if path.name == "tokenizer.json":
            with utf8_path(path) as named:
                return Tokenizer.from_file(str(named))
        lowercase = _lowercase(path.with_name("tokenizer_config.json"))
        with utf8_path(path) as named:
            words: Tokenizer = BertWordPieceTokenizer(str(named), lowercase=lowercase, strip_accents=None)._tokenizer
        return words
    except Exception as error:  # the library raises bare Exception
        raise ConfigError(f"tokenizer {path} cannot be read ({error}): give a folder with BERT's vocab.txt") from None


def _lowercase(settings: Path) -> bool:
    """What `tokenizer_config.json` says; without it, BERT's own default."""
    try:
        return bool(json.loads(settings.read_text(encoding="utf-8")).get("do_lower_case", True))
    except (OSError, ValueError, AttributeError):
        return True
