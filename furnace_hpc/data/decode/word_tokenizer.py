"""A tokenizer of whole words, made from the texts of a pack. It needs no download.

The pack's manifest lists the words, so `furnace predict` makes the same tokenizer again.
"""

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing

WORDS = "words"  # name of this tokenizer in options and manifests
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
# A word, or one character that is neither a letter, digit, underscore nor space. polars and
# `tokenizers` read this expression in the same way.
PATTERN = r"\w+|[^\w\s]"


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
