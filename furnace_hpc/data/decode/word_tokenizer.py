"""A tokenizer of whole words, made from the texts of a pack. It needs no download.

The pack's manifest lists the words, so `furnace predict` makes the same tokenizer again.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing

from furnace_hpc.data.decode.word_bytes import WordTable, blocks, split_words

if TYPE_CHECKING:  # only packing needs it
    import polars as pl

WORDS = "words"  # name of this tokenizer in options and manifests
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
# A word, or one character that is neither a letter, digit, underscore nor space. polars and
# `tokenizers` read this expression in the same way.
PATTERN = r"\w+|[^\w\s]"
# Characters that the two libraries classify or lower differently, and those that no test compares.
OTHER = (
    "[\u00b2\u00b3\u00b9\u00bc-\u00be\u03a3\u200c\u200d\U00010000-\U0001efff\U0001fb00-\U0010ffff]"
)


def word_tokenizer(words: Sequence[str]) -> Tokenizer:
    """Return the tokenizer of these words. The first ones are `SPECIAL`."""
    ids = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Split(Regex(PATTERN), behavior="removed", invert=True)
    special = [("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    return tokenizer


def word_table(words: tuple[str, ...]) -> WordTable:
    """Return the vocabulary for `encode_words`."""
    return WordTable(words, unknown=SPECIAL.index("[UNK]"))


def encode_words(
    texts: "pl.Series", table: WordTable, max_tokens: int, dtype: str
) -> tuple[NDArray[Any], NDArray[np.int16]]:
    """Return padded ids [N, max_tokens] and lengths [N]: those of `word_tokenizer`, but faster.

    Args:
        texts: without null, and without characters of `OTHER`.
        table: the vocabulary.
        max_tokens: ids of a text, with those of [CLS] and [SEP].
        dtype: of the ids.
    """
    pad, _, start, end = range(len(SPECIAL))
    padded = np.full((len(texts), max_tokens), pad, dtype)
    padded[:, 0] = start
    lengths = np.zeros(len(texts), np.int16)
    for rows in blocks(texts):
        found = split_words(texts[rows], PATTERN).first(max_tokens - 2)
        first_places = np.arange(rows.start, rows.stop) * max_tokens + 1
        places = np.repeat(first_places, found.counts) + found.places()
        padded.reshape(-1)[places] = table.find(found)
        lengths[rows] = found.counts
    padded[np.arange(len(texts)), lengths + 1] = end
    return padded, lengths + np.int16(2)
