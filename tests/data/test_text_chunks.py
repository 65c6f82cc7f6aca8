"""Rows of texts and labels that are rendered at once equal rows that are rendered one by one."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from raw_sets import write_vocab
from table_files import sentence

from furnace_hpc import pack
from furnace_hpc.data.decode.tokenizer import TokenReader
from furnace_hpc.data.decode.word_bytes import WordTable, blocks, split_words
from furnace_hpc.data.decode.word_tokenizer import (
    OTHER,
    PATTERN,
    SPECIAL,
    encode_words,
    word_table,
    word_tokenizer,
)
from furnace_hpc.data.packing.rendering import Chunk, Renderer, _render_chunk
from furnace_hpc.data.table import run
from furnace_hpc.data.table.report.texts import LETTERS, SPACED, measure_texts

BLOCKS = ((0, 0xD800), (0xE000, 0x10000), (0x1F000, 0x1FB00))
ODD = [
    *("x² and ½", "\u039f\u0394\u039f\u03a3", "a\u200cb", "𐐀 𐐨 deseret", "", "  "),
    *("😀 emoji 👍🏽 ok", "two\nlines"),
    *("Ünïcode ÅNGSTRÖM İstanbul", "中文 字符", "[PAD] [CLS] </s>", "word " * 40, "\0"),
    *("…—“quoted”", "tab\tnew\nline"),
]


class Watch:
    """Stands in for the watch of a packing process."""

    def begin(self, row, crashed):
        pass


def texts_of(character: str) -> str:
    return f"a{character}B {character} {character}{character}c"


def test_every_character_gives_the_same_tokens():
    """In the ranges that take the fast way. All others are named in `OTHER`."""
    codes = [code for start, end in BLOCKS for code in range(start, end)]
    other = re.compile(OTHER)
    texts = [texts_of(chr(code)) for code in codes if not other.match(chr(code))]
    assert len(codes) - len(texts) == 9
    found: dict[str, int] = {}
    plain = word_tokenizer(SPECIAL)
    lower, cut = plain.normalizer.normalize_str, plain.pre_tokenizer.pre_tokenize_str
    split = [[word for word, _ in cut(lower(text))] for text in texts]
    for words in split:
        found |= dict.fromkeys(words)
    vocabulary = (*SPECIAL, *found)
    ids, lengths = encode_words(pl.Series(texts), word_table(vocabulary), 16, "int32")
    place = {word: number for number, word in enumerate(vocabulary)}
    for words, own, length in zip(split, ids, lengths, strict=True):
        assert own[:length].tolist() == [2, *(place[word] for word in words), 3]
        assert not own[length:].any()


def test_unknown_words_and_long_texts():
    words = (*SPECIAL, "good", "film", "!")
    texts = ["Good FILM!", "a bad film", "", "good " * 20, "good film good film good"]
    reader = TokenReader(word_tokenizer(words), 7)
    ids, lengths = encode_words(pl.Series(texts), word_table(words), 7, reader.dtype)
    for text, own, length in zip(texts, ids, lengths, strict=True):
        expected, expected_length = reader.encode(text)
        assert own.tolist() == expected.tolist()
        assert own.dtype == expected.dtype
        assert length == expected_length


def plan_of(tmp_path, monkeypatch, check, *options):
    """Call `check` with the plan of a table of odd rows."""
    rows = 200
    texts = [ODD[n % 7 * 2 % len(ODD)] if n % 3 == 0 else sentence(n, "x") for n in range(rows)]
    texts[: len(ODD)] = ODD
    table = {
        "text": texts,
        "kind": [("a", "b", None)[min(n % 12, 2) if n % 12 == 2 else n % 2] for n in range(rows)],
        "tags": ["x|y" if n % 2 else "z" for n in range(rows)],
        "score": [n / 3 for n in range(rows)],
        "other": [n * n for n in range(rows)],
        "weight": [1 + n % 4 for n in range(rows)],
    }
    pl.DataFrame(table).write_parquet(tmp_path / "mine.parquet")
    monkeypatch.setattr(run, "pack_plan", lambda plan, *_, **__: check(plan))
    monkeypatch.setattr(run, "_with_near_images", lambda draw: draw.profile)
    monkeypatch.setattr(run, "write_page", lambda *_: "")
    pack.main(
        args=[
            *("table", "--source", str(tmp_path / "mine.parquet"), "--text", "text"),
            *("--label", "kind", "--label", "tags=tags:multi_label", "--max-refused", "0.5"),
            *("--label", "place=score,other:regression", "--weight", "weight"),
            *("--split", "60/20/20", "--out", str(tmp_path / "packed"), *options),
        ],
        standalone_mode=False,
    )


@pytest.mark.parametrize("tokenizer", ["words", "bert"])
def test_chunks_equal_single_rows(tmp_path, monkeypatch, tokenizer):
    """Bytes, refused lines and counts. Rows without a text or label are rendered alone."""
    options = ("--max-tokens", "16")
    if tokenizer == "bert":
        options += ("--tokenizer", str(write_vocab(tmp_path / "vocab")))
    seen = []

    def check(plan):
        at_once = Renderer(plan.render, plan.blank, plan.modalities, plan.render_many)
        for split, rows in plan.rows.items():
            chunk = Chunk(split, 7, rows[:])
            _, mask = plan.render_many(split, rows[:])
            assert mask.any()
            assert not mask.all()
            found = _render_chunk(chunk, at_once, Watch())
            expected = _render_chunk(chunk, replace(at_once, render_many=None), Watch())
            assert found.columns.keys() == expected.columns.keys()
            for name, column in expected.columns.items():
                assert found.columns[name].dtype == column.dtype
                np.testing.assert_array_equal(found.columns[name], column)
            assert found.refused_lines == expected.refused_lines
            assert (found.num_rows, found.incomplete) == (expected.num_rows, expected.incomplete)
            assert found.incomplete > 0
            seen.append(split)

    plan_of(tmp_path, monkeypatch, check, *options)
    assert seen == ["train", "val", "test"]


def test_words_of_all_lengths_are_found():
    """Keys of words have 16 bytes. Some words share their first bytes or their place."""
    long = "abcdefghijklmnopqrst"
    words = tuple(dict.fromkeys(long[:n] + end for n in range(1, 20) for end in ("", "x", "yz")))
    words += tuple(f"w{number}" for number in range(5000))
    table = WordTable(words, unknown=len(words))
    texts = pl.Series([" ".join(words), f"{long} {long}y none w5000", "", "W7"])
    found = table.find(split_words(texts, r"\w+"))
    unknown = len(words)
    assert found.tolist() == [*range(unknown), *[unknown] * 4, words.index("w7")]


@pytest.mark.parametrize("pattern", [PATTERN, LETTERS, SPACED])
def test_words_equal_those_of_the_pattern(pattern):
    """Every character of one byte, and texts that are cut into blocks."""
    texts = pl.Series([texts_of(chr(code)) for code in range(256)] + ODD + ["a-b " * 90_000])
    parts = list(blocks(texts))
    assert len(parts) > 1
    assert [row for part in parts for row in range(part.start, part.stop)] == [*range(len(texts))]
    expected = texts.str.to_lowercase().str.extract_all(pattern)
    for part in parts:
        words = split_words(texts[part], pattern)
        assert words.counts.tolist() == expected[part].list.len().to_list()
        found = [words.at(number).decode() for number in range(len(words.starts))]
        assert found == expected[part].explode().drop_nulls().to_list()


def test_hashes_of_texts_and_halves():
    """Equal halves have equal hashes: case, digits and punctuation do not count."""
    texts = [
        *("Seven eight nine, ten eleven twelve 1!", "seven EIGHT nine ten ELEVEN \u00e4lter"),
        *("nine eight seven ten eleven twelve", "seven eight nine ten eleven", "", None),
        *("\u00c4rger hat er mit \u00fcber 20 Leuten", "\u00e4rger, hat er: mit ihren Leuten"),
    ]
    frame = pl.DataFrame({"text": texts}).lazy()
    found = measure_texts(SimpleNamespace(frame=frame))
    assert found.known.tolist() == [text is not None for text in texts]
    assert found.lengths.tolist() == [7, 6, 6, 5, 0, 7, 6]
    assert found.are_long.tolist() == [True, True, True, False, False, True, True]
    assert found.first[0] == found.first[1] != found.first[2]
    assert found.second[0] == found.second[2] != found.second[1]
    assert found.first[5] == found.first[6]
    assert found.second[5] != found.second[6]
    assert len(set(found.equal.tolist())) == 7
