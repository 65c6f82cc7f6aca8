"""Failures of a tokenizer give one error each, print no panics of Rust, and lose no other text."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from raw_sets import write_vocab
from use_study import packed_movies  # noqa: F401  fixture

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.decode.tokenizer import (
    MAX_IDS,
    TokenReader,
    load_tokenizer,
    shipped_vocabulary,
)
from furnace_hpc.data.decode.tokenizer_errors import TokenizerError, tokenizer_errors
from furnace_hpc.data.packing.rejects import Unusable

SLOW = "a" * 60 + "!"  # on which BACKTRACKS panics
BACKTRACKS = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "x"}
WORDS = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4, "b": 5}
AROUND: dict[str, Any] = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {
        name: {"id": name, "ids": [WORDS[name]], "tokens": [name]} for name in ("[CLS]", "[SEP]")
    },
}


def content(**changes: Any) -> dict[str, Any]:
    """A tokenizer.json that works, with changes."""
    model = {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "vocab": WORDS,
    }
    model["max_input_chars_per_word"] = 100
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
    }
    whole |= {
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": AROUND,
        "decoder": None,
        "model": model,
    }
    return whole | changes


def write(folder: Path, tokenizer: Any) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    text = tokenizer if isinstance(tokenizer, str) else json.dumps(tokenizer)
    (folder / "tokenizer.json").write_text(text)
    return str(folder)


def load(folder: Path, tokenizer: Any, max_tokens: int = 8) -> TokenReader:
    load_tokenizer.cache_clear()
    return load_tokenizer(write(folder, tokenizer), max_tokens)


@pytest.mark.parametrize(
    "part",
    [
        {"normalizer": BACKTRACKS},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, BACKTRACKS]}},
        {
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"Regex": "(a+)+$"},
                "behavior": "Isolated",
                "invert": False,
            }
        },
    ],
)
def test_a_regex_that_backtracks_loses_one_text(tmp_path, capfd, part):
    reader = load(tmp_path, content(**part))
    with pytest.raises(Unusable, match="the tokenizer fails on the text: .*retry-limit"):
        reader.encode(SLOW)
    ids, length = reader.encode("b")
    assert (ids[:length].tolist(), length) == ([2, 5, 3], 3)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("tokenizer", "words"),
    [
        ("", "cannot be read"),
        ("[1, 2", "cannot be read"),
        ("3", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("\x00\xff", "cannot be read"),
        ({}, "cannot be read"),
        (content(model=None), "cannot be read"),
        (content(model={"type": "Unheard"}), "cannot be read"),
        (content(model=content()["model"] | {"vocab": [1]}), "cannot be read"),
        (content(model=content()["model"] | {"vocab": {"[PAD]": -1}}), "cannot be read"),
        (content(model=content()["model"] | {"vocab": WORDS | {"a": 2**40}}), "cannot be read"),
        (
            content(model=content()["model"] | {"vocab": WORDS | {"z": 2**32 - 1}}),
            "has the id 4,294,967,295, more",
        ),
        (
            content(model=content()["model"] | {"vocab": WORDS | {"z": MAX_IDS}}),
            "has the id 10,000,000, more",
        ),
        (
            content(model=content()["model"] | {"vocab": {"[UNK]": 0}}, post_processor=None),
            r"has no \[PAD\]",
        ),
        (content(model=content()["model"] | {"vocab": {}}, post_processor=None), r"has no \[PAD\]"),
        (
            content(normalizer={"type": "Replace", "pattern": {"Regex": "(a"}, "content": ""}),
            "cannot be read",
        ),
        (content(post_processor=AROUND | {"special_tokens": {}}), "cannot be (read|used)"),
    ],
)
def test_a_broken_tokenizer_is_one_error(tmp_path, capfd, tokenizer, words):
    with pytest.raises(ConfigError, match=words) as error:
        load(tmp_path, tokenizer)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
    assert capfd.readouterr() == ("", "")


def test_max_tokens_below_the_added_tokens(tmp_path):
    assert load(tmp_path, content(), max_tokens=2).encode("a b")[0].tolist() == [2, 3]
    with pytest.raises(ConfigError, match="adds 2 tokens to each text, more than max_tokens 1"):
        load(tmp_path, content(), max_tokens=1)


def test_a_very_large_tokenizer_file_is_not_read(tmp_path):
    with (tmp_path / "tokenizer.json").open("w") as file:
        file.truncate(10**10)
    with pytest.raises(ConfigError, match="10,000,000,000 bytes, more than 200,000,000"):
        load_tokenizer(str(tmp_path), 8)
    with pytest.raises(ConfigError, match="10,000,000,000 bytes"):
        shipped_vocabulary(str(tmp_path))


def test_a_pipe_in_place_of_a_tokenizer_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(ConfigError, match="has neither"):
        load_tokenizer(str(tmp_path), 8)


def test_a_vocabulary_that_is_not_text_is_one_error(tmp_path, capfd):
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe[PAD]\n")
    for call in (
        lambda: load_tokenizer(str(tmp_path), 8),
        lambda: shipped_vocabulary(str(tmp_path)),
    ):
        with pytest.raises(ConfigError, match=r"vocab\.txt cannot be read"):
            call()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "settings_json", ["[" * 100_000, "3", "{}", "\x00", '{"do_lower_case": "what"}']
)
def test_broken_tokenizer_settings_mean_the_default(tmp_path, settings_json):
    folder = write_vocab(tmp_path / "vocab")
    (folder / "tokenizer_config.json").write_text(settings_json)
    assert (
        load_tokenizer(str(folder), 8).encode("LETTER")[0].tolist()
        == load_tokenizer(str(write_vocab(tmp_path / "plain")), 8).encode("letter")[0].tolist()
    )


# --- the library's own stderr ---


def test_stderr_of_others_is_kept(capfd):
    with tokenizer_errors():
        os.write(2, b"from another thread\n")
    assert capfd.readouterr().err == "from another thread\n"


def test_interrupts_are_not_tokenizer_errors(capfd):
    for error in (ValueError("a\nb"), Exception("a b"), TypeError("a b")):
        with pytest.raises(TokenizerError, match="^a b$"), tokenizer_errors():
            raise error
    for kind in (KeyboardInterrupt, SystemExit):
        with pytest.raises(kind), tokenizer_errors():
            raise kind
    os.write(2, b"still there\n")
    assert capfd.readouterr().err == "still there\n"


def test_threads_that_fail_at_once_leave_stderr_alone(tmp_path, capfd):
    reader, failed = load(tmp_path, content(normalizer=BACKTRACKS)), []

    def fail() -> None:
        for _ in range(5):
            with pytest.raises(Unusable):
                reader.encode(SLOW)
            failed.append(1)

    threads = [threading.Thread(target=fail) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(2, b"still there\n")
    assert len(failed) == 20
    assert capfd.readouterr().err == "still there\n"


def test_a_closed_stderr(tmp_path):
    folder = write(tmp_path, content(normalizer=BACKTRACKS))
    code = (
        "import os; os.close(2)\nfrom furnace_hpc.data.decode.tokenizer import load_tokenizer\n"
        "from furnace_hpc.data.packing.rejects import Unusable\n"
        f"reader = load_tokenizer({folder!r}, 8)\n"
        f"try: reader.encode({SLOW!r})\nexcept Unusable as error: print(error.detail)\n"
        "print(reader.encode('b')[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=60
    )
    assert done.stdout.splitlines()[0].startswith("the tokenizer fails on the text")
    assert done.stdout.splitlines()[1] == "3"
