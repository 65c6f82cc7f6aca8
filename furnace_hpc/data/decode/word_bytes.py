"""Split many texts into words at once, as numpy arrays of bytes.

polars' regular expressions take ten times as long. Only texts with other characters than ASCII need
them here.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import xxhash
from numpy.typing import NDArray

if TYPE_CHECKING:  # workers set its number of threads before they import it
    import polars as pl

BLOCK_BYTES = 1 << 17  # of texts that are split at once. Arrays of this size stay in the cache
KEY_BYTES = 16  # words of more bytes have no exact key
EMPTY = -1  # number of a place without a word
_BETWEEN, _PART, _WHOLE = range(3)  # what a byte is: no word, a part of a word, or a word
_BITS = np.uint64(64)
_MASKS = np.array([(1 << 8 * length) - 1 for length in range(9)], np.uint64)
_FACTORS = tuple(np.uint64(odd) for odd in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F))

Numbers = NDArray[np.int64]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Words:
    """The lower-case words of texts, in order."""

    content: NDArray[np.uint8]
    """Bytes of all texts, with line breaks between and behind them."""
    starts: Numbers
    ends: Numbers
    counts: Numbers
    """Number of words of each text."""

    @property
    def keys(self) -> tuple[Hashes, Hashes]:
        """The first 8 bytes of each word and the next 8, with zeros behind its end."""
        aligned = self.content[: len(self.content) // 8 * 8].view("<u8")
        lengths, own = self.ends - self.starts, self.starts >> 3
        skipped = ((self.starts & 7) << 3).astype(np.uint64)  # bits before the word
        after = aligned[own + 1]
        first = (aligned[own] >> skipped) | (after << (_BITS - skipped))
        second = np.zeros_like(first)
        if len(longer := np.flatnonzero(lengths > 8)):
            skipped, rest = skipped[longer], aligned[own[longer] + 2]
            rest = (after[longer] >> skipped) | (rest << (_BITS - skipped))
            second[longer] = rest & _MASKS[np.minimum(lengths[longer] - 8, 8)]
        return first & _MASKS[np.minimum(lengths, 8)], second

    @property
    def are_long(self) -> NDArray[np.bool_]:
        """Whether a word has more bytes than its key."""
        return self.ends - self.starts > KEY_BYTES

    def at(self, number: int) -> bytes:
        """Return the bytes of a word."""
        return self.content[self.starts[number] : self.ends[number]].tobytes()

    def hashes(self) -> Hashes:
        """Return a hash of each word."""
        found = mixed(*self.keys)
        for number in np.flatnonzero(self.are_long).tolist():
            found[number] = xxhash.xxh3_64_intdigest(self.at(number))
        return found

    def places(self) -> Numbers:
        """Return the number of each word in its text, from 0."""
        firsts = np.cumsum(self.counts) - self.counts
        return np.arange(len(self.starts)) - np.repeat(firsts, self.counts)

    def first(self, most: int) -> "Words":
        """Return the first words of each text."""
        if not len(self.counts) or self.counts.max() <= most:
            return self
        chosen = self.places() < most
        counts = np.minimum(self.counts, most)
        return Words(self.content, self.starts[chosen], self.ends[chosen], counts)


def mixed(first: Hashes, second: Hashes) -> Hashes:
    """Return a hash of two numbers."""
    found = first * _FACTORS[0] + second * _FACTORS[1]
    found ^= found >> np.uint64(32)
    return found * _FACTORS[1]


def split_words(texts: "pl.Series", pattern: str) -> Words:
    """Split texts without null into words.

    Args:
        texts: some megabytes at most.
        pattern: of a word: either one character, or a run of characters of one kind.
    """
    joined = texts.str.join("\n").item()
    if not joined.isascii():
        texts = _spaced(texts, pattern)
        joined = texts.str.join("\n").item()
    content = (joined + "\n" * 24).encode()  # `keys` reads whole words of 8 bytes
    kinds, lower = _tables(pattern)
    found = np.frombuffer(content.translate(kinds), np.uint8)
    is_part, is_whole = found == _PART, found == _WHOLE
    is_start, is_end = is_whole.copy(), is_whole
    is_start[0] = found[0] != _BETWEEN
    is_start[1:] |= is_part[1:] & ~is_part[:-1]
    is_end[:-1] |= is_part[:-1] & ~is_part[1:]
    starts, ends = np.flatnonzero(is_start), np.flatnonzero(is_end) + 1
    behind = np.cumsum(texts.str.len_bytes().to_numpy().astype(np.int64) + 1)
    counts = np.diff(np.searchsorted(starts, behind), prepend=0)
    content_lower = np.frombuffer(content.translate(lower), np.uint8)
    return Words(content_lower, starts, ends, counts)


def _spaced(texts: "pl.Series", pattern: str) -> "pl.Series":
    """Replace texts that are not ASCII by their lower-case words with spaces between them."""
    others = (texts.str.len_bytes() != texts.str.len_chars()).arg_true()
    words = texts.gather(others).str.to_lowercase().str.extract_all(pattern)
    return texts.scatter(others, words.list.join(" "))


@lru_cache(maxsize=4)
def _tables(pattern: str) -> tuple[bytes, bytes]:
    """Return what each byte is, and its lower case. Bytes above 127 are parts of words."""
    expression = re.compile(pattern, re.ASCII)
    kinds = bytearray([_PART] * 256)
    for byte in range(128):
        character = chr(byte)
        if not expression.fullmatch(character):
            kinds[byte] = _BETWEEN
        elif not expression.fullmatch(2 * character):
            kinds[byte] = _WHOLE
    return bytes(kinds), bytes(range(256)).lower()


def blocks(texts: "pl.Series") -> Iterator[slice]:
    """Yield slices of texts of about `BLOCK_BYTES`, at least one text each."""
    ends = np.cumsum(texts.str.len_bytes().to_numpy().astype(np.int64))
    start = 0
    while start < len(ends):
        limit = (ends[start - 1] if start else 0) + BLOCK_BYTES
        stop = max(start + 1, int(np.searchsorted(ends, limit, "right")))
        yield slice(start, stop)
        start = stop


class WordTable:
    """Finds the numbers of words, as a dictionary does, for many words at once."""

    def __init__(self, words: tuple[str, ...], unknown: int) -> None:
        """Make a hash table with a free place behind most words."""
        self._unknown = unknown
        encoded = [word.encode() for word in words]
        self._long = {word: number for number, word in enumerate(encoded) if len(word) > KEY_BYTES}
        padded = np.array([word[:KEY_BYTES] for word in encoded], f"S{KEY_BYTES}").view("<u8")
        self._first, self._second = np.ascontiguousarray(padded.reshape(-1, 2).T)
        bits = max(8, len(words).bit_length() + 2)
        self._shift, self._last = np.uint64(64 - bits), (1 << bits) - 1
        self._numbers = np.full(1 << bits, EMPTY, np.int32)
        for number, place in enumerate(self._places(self._first, self._second)):
            if encoded[number] in self._long:
                continue
            while self._numbers[place] != EMPTY:
                place = (place + 1) & self._last
            self._numbers[place] = number

    def _places(self, first: Hashes, second: Hashes) -> Numbers:
        return (mixed(first, second) >> self._shift).astype(np.int64)

    def find(self, words: Words) -> NDArray[np.int32]:
        """Return the number of each word."""
        keys = words.keys
        places = self._places(*keys)
        numbers = self._numbers[places]
        left = np.flatnonzero(self._differ(numbers, *keys))
        while len(left):  # their places have other words, so look at the next places
            places[left] = (places[left] + 1) & self._last
            found = self._numbers[places[left]]
            numbers[left] = found
            left = left[self._differ(found, keys[0][left], keys[1][left])]
        numbers[numbers == EMPTY] = self._unknown
        for number in np.flatnonzero(words.are_long).tolist():
            numbers[number] = self._long.get(words.at(number), self._unknown)
        return numbers

    def _differ(
        self, numbers: NDArray[np.int32], first: Hashes, second: Hashes
    ) -> NDArray[np.bool_]:
        """Return whether words have another number than that of their place, which is not empty."""
        others = (self._first[numbers] != first) | (self._second[numbers] != second)
        return np.asarray(others & (numbers != EMPTY))
