"""Any tokenizer file gives tokens or one error."""

import json
import os
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokens import SLOW, WORDS, content

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.decode.tokenizer import load_tokenizer
from furnace_hpc.data.packing.rejects import Unusable

LEAVES = st.none() | st.booleans() | st.integers(-5, 2**33) | st.floats() | st.text(max_size=8)
ANY = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
PATTERNS = st.sampled_from(
    [
        "(a+)+$",
        "(a|a)*b",
        "(?=a)*",
        "\\",
        "[",
        "",
        "(a",
        "a{1000}{1000}",
        "(?<n>a)\\k<n>",
        "\\p{L}+",
    ]
)
MODELS = [
    "WordPiece",
    "BPE",
    "Unigram",
    "WordLevel",
    "Whitespace",
    "ByteLevel",
    "Metaspace",
    "BertNormalizer",
]
STEPS = [
    "Replace",
    "Split",
    "Sequence",
    "Prepend",
    "Strip",
    "BertProcessing",
    "RobertaProcessing",
    "Precompiled",
]
TYPES = st.sampled_from(MODELS + STEPS)


@st.composite
def tokenizer_files(draw: st.DrawFn) -> bytes:
    """A tokenizer.json with a changed part, or with bytes that are cut off or replaced."""
    whole = content()
    for _ in range(draw(st.integers(0, 3))):
        part = draw(
            st.sampled_from(
                [
                    "normalizer",
                    "pre_tokenizer",
                    "post_processor",
                    "added_tokens",
                    "truncation",
                    "model",
                ]
            )
        )
        kind = {
            "type": draw(TYPES),
            "pattern": {"Regex": draw(PATTERNS)},
            "content": draw(st.text(max_size=3)),
        }
        kind |= {"behavior": "Isolated", "invert": draw(st.booleans())}
        match draw(st.integers(0, 3)):
            case 0:
                whole[part] = draw(ANY)
            case 1:
                whole[part] = kind | draw(
                    st.dictionaries(st.sampled_from(["prepend", "vocab", "length", "sep"]), ANY)
                )
            case 2 if isinstance(whole[part], dict):
                whole[part] = whole[part] | {
                    draw(st.sampled_from(sorted(whole[part]) or ["type"])): draw(ANY)
                }
            case _:
                vocab = draw(
                    st.dictionaries(
                        st.sampled_from([*WORDS, "##a", "", "\U0001f600"]), st.integers(-1, 2**32)
                    )
                )
                whole["model"] = content()["model"] | {"vocab": vocab}
    text = json.dumps(whole).encode()
    if draw(st.booleans()):
        return text
    at = draw(st.integers(0, len(text)))
    return text[:at] + draw(st.binary(max_size=4)) + (text[at:] if draw(st.booleans()) else b"")


@pytest.mark.fuzz
# a panic writes a stack of 100 lines
@settings(max_examples=max(20, settings().max_examples // 10))
@given(
    data=tokenizer_files(), text=st.text(max_size=40) | st.just(SLOW), max_tokens=st.integers(1, 12)
)
def test_any_tokenizer_file_gives_tokens_or_one_error(tmp_path_factory, data, text, max_tokens):
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenizer.json").write_bytes(data)
    said, stderr = "", os.dup(2)
    aside = os.memfd_create("stderr")
    os.dup2(aside, 2)
    try:
        ids, length = load_tokenizer(str(folder), max_tokens).encode(text)
        assert ids.shape == (max_tokens,)
        assert 0 <= length <= max_tokens
        assert ids.min() >= 0
    except (ConfigError, Unusable) as error:
        said = str(error)
    finally:
        os.dup2(stderr, 2)
        printed = os.fstat(aside).st_size
        os.close(stderr)
        os.close(aside)
        shutil.rmtree(folder)
    assert (printed, said.count("\n")) == (0, 0)
