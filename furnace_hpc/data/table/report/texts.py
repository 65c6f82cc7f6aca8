"""Measure the texts of a table in one pass: lengths, and hashes that find duplicates."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from furnace_hpc.config.parsing.plural import counted
from furnace_hpc.data.decode.word_bytes import Words, blocks, split_words
from furnace_hpc.data.table.checks import Codes
from furnace_hpc.data.table.staging import Staged

BATCH_ROWS = 16_384
LONG = 6  # words of a text whose halves are compared
LETTERS = r"[^\W\d_]+"
SPACED = r"\S+"
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd: each place in a text counts differently
_CODE_BITS = np.uint64(3)  # of a hash that is replaced by the number of the split

Hashes = NDArray[np.uint64]
Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Texts:
    """The measured texts of a table, in order. Each array has a value for each text."""

    known: NDArray[np.bool_]
    """Whether a row of the table has a text."""
    lengths: NDArray[np.int32]
    """Words between spaces."""
    equal: Hashes
    """Hash of the text."""
    are_long: NDArray[np.bool_]
    first: Hashes
    """Hash of the first half of its words, without case, digits and punctuation."""
    second: Hashes


def measure_texts(staged: Staged) -> Texts:
    """Read and measure all texts."""
    batches = staged.frame.select("text").collect_batches(
        chunk_size=BATCH_ROWS, maintain_order=True
    )
    measured = list(_in_threads(_measured, (batch["text"] for batch in batches)))
    return Texts(*map(np.concatenate, zip(*measured, strict=True)))


def _in_threads(work: Callable[[Given], Made], items: Iterable[Given]) -> Iterator[Made]:
    """Yield results in order. Only a few items are in memory."""
    threads = len(os.sched_getaffinity(0))
    ahead: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        for future in ahead:
            yield future.result()


def _measured(column: pl.Series) -> tuple[NDArray[Any], ...]:
    """Return the fields of `Texts` for a batch of rows."""
    known = column.is_not_null().to_numpy()
    texts = column.drop_nulls().rechunk()
    lengths = np.zeros(len(texts), np.int32)
    are_long = np.zeros(len(texts), np.bool_)
    halves = np.zeros((2, len(texts)), np.uint64)
    for rows in blocks(texts):
        own = texts[rows]
        lengths[rows] = split_words(own, SPACED).counts
        words = split_words(own, LETTERS)
        are_long[rows] = words.counts >= LONG
        halves[:, rows] = _hashes_of_halves(words)
    return known, lengths, texts.hash(seed=0).to_numpy(), are_long, *halves


def _hashes_of_halves(words: Words) -> Hashes:
    """Return the hashes of the first and second halves [2, texts]. They are valid from 2 words on.

    The hash of a half is the sum of its words' hashes, each times a power for its place.
    """
    half = (words.counts + 1) // 2
    places, half_of = words.places(), np.repeat(half, words.counts)
    places -= np.where(places >= half_of, half_of, 0)
    powers = np.cumprod(np.full(half.max(), _BASE))
    weighted = np.append(words.hashes() * powers[places], np.uint64(0))
    starts = np.cumsum(words.counts) - words.counts
    bounds = np.stack([starts, starts + half], axis=1)
    return np.add.reduceat(weighted, bounds.reshape(-1)).reshape(-1, 2).T


def duplicate_texts(texts: Texts, codes: Codes) -> Iterator[str]:
    """Yield the numbers of texts that are equal or nearly equal, and in two splits.

    Nearly equal: the first or the second half is the same, without case, digits and punctuation.
    """
    codes = codes[texts.known]
    equal = _in_two_splits(texts.equal, codes)
    if equal:
        yield (
            f"{_rows_have(equal)} a text that is also in another split. --group with the text's "
            "column keeps equal texts in one split"
        )
    of_long = codes[texts.are_long]
    halves = texts.first[texts.are_long], texts.second[texts.are_long]
    near = max(_in_two_splits(hashes, of_long) for hashes in halves)
    if near > equal:
        yield (
            f"{_rows_have(near)} a text of which half is also in another split, without case, "
            "digits and punctuation"
        )


def _rows_have(number: int) -> str:
    return f"{counted(number, 'row')} {'has' if number == 1 else 'have'}"


def _in_two_splits(hashes: Hashes, codes: Codes) -> int:
    """Return the number of rows whose hash is in two splits."""
    if not len(hashes):
        return 0
    packed = hashes & ~_CODE_BITS | np.minimum(codes, 3)
    packed.sort()  # one sort is faster and smaller than the order of the rows
    is_first = np.append(True, (packed[1:] ^ packed[:-1]) > _CODE_BITS)
    starts = np.flatnonzero(is_first)
    ends = np.append(starts[1:], len(packed))
    shared = packed[starts] != packed[ends - 1]
    return int((ends - starts)[shared].sum())
