"""Choose the words of a pack's own tokenizer: the most frequent ones of the train split."""

import polars as pl

from furnace_hpc.config.manifest import SPLITS
from furnace_hpc.data.decode.word_tokenizer import PATTERN, SPECIAL
from furnace_hpc.data.table.checks import Codes, with_codes
from furnace_hpc.data.table.staging import Staged

LEAST_COUNT = 2  # rarer words are unknown, as most words of val and test texts that train lacks
MAX_ROWS = 1_000_000  # of the train split that are counted


def choose_words(staged: Staged, codes: Codes, max_words: int, *, same_size: bool) -> list[str]:
    """Return the special tokens and the words, the most frequent ones first.

    Args:
        staged: the rows.
        codes: the split of each row.
        max_words: most words.
        same_size: fill up to the number of words in all rows, so that folds have models of one
            size. The added tokens occur in no text.
    """
    frame = with_codes(staged, codes).filter(pl.col("text").is_not_null())
    train = frame.filter(pl.col("split_code") == SPLITS.index("train")).head(MAX_ROWS)
    words = [*SPECIAL, *_frequent(train, max_words)]
    if same_size:
        size = len(SPECIAL) + len(_frequent(frame.head(MAX_ROWS), max_words))
        words += [f"[unused{number}]" for number in range(size - len(words))]
    return words


def _frequent(frame: pl.LazyFrame, max_words: int) -> list[str]:
    counted = (
        frame.select(pl.col("text").str.to_lowercase().str.extract_all(PATTERN).alias("word"))
        .explode("word")
        .filter(pl.col("word").is_not_null())
        .group_by("word")
        .len()
        .filter(pl.col("len") >= LEAST_COUNT)
        .sort("len", "word", descending=[True, False])
        .head(max_words)
        .collect(engine="streaming")
    )
    return counted["word"].to_list()
