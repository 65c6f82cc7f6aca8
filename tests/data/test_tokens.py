"""A tokenizer's failures: one clear error each, no text of Rust's panics, and other texts are not lost."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_sets import MOVIES, write_mmimdb, write_vocab
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
from furnace_hpc.runs.records.checkpoint_files import describe

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
def test_a_regex_that_backtracks_costs_one_text(tmp_path, capfd, part):
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


def test_fewer_tokens_than_the_tokenizer_adds_are_refused(tmp_path):
    assert load(tmp_path, content(), max_tokens=2).encode("a b")[0].tolist() == [2, 3]
    with pytest.raises(ConfigError, match="adds 2 tokens to each text, more than max_tokens 1"):
        load(tmp_path, content(), max_tokens=1)


def test_a_file_beyond_any_tokenizer_is_not_read(tmp_path):
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


def test_a_vocabulary_that_is_no_text_is_one_error(tmp_path, capfd):
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
def test_broken_settings_of_a_tokenizer_mean_the_default(tmp_path, settings_json):
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


def test_what_fails_is_a_tokenizer_error_and_what_interrupts_is_not(capfd):
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


def test_a_closed_stderr_is_no_obstacle(tmp_path):
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


# --- commands ---


def test_predict_loses_one_line_to_a_tokenizer(movies: Path, tmp_path: Path):
    model = shutil.copytree(movies / "model", tmp_path / "model")
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {
        "type": "Sequence",
        "normalizers": [tokenizer["normalizer"], BACKTRACKS],
    }
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    told = json.loads((model / "config.json").read_text())
    told["files"]["tokenizer.json"] = describe(model / "tokenizer.json")
    (model / "config.json").write_text(json.dumps(told))
    lines = [{"text": "the detective"}, {"text": SLOW * 50}, {"text": "a letter"}]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [
        sys.executable,
        "-m",
        "furnace_hpc.predict",
        "--model",
        str(model),
        "--input",
        str(tmp_path / "samples.jsonl"),
    ]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=120)
    assert done.stdout, done.stderr
    answered = [json.loads(line) for line in done.stdout.splitlines()]
    assert ["error" in answer for answer in answered] == [False, True, False]
    assert "the tokenizer fails on the text" in answered[1]["error"]
    assert len(answered[1]["error"]) < 400
    assert "panicked" not in done.stderr
    assert "Traceback" not in done.stderr
    one = subprocess.run(
        [*command[:5], "--text", SLOW], capture_output=True, text=True, timeout=120
    )
    assert (one.returncode, one.stdout) == (2, "")
    assert one.stderr.startswith("error: text is 'aaa")
    assert one.stderr.count("\n") == 1


def test_pack_loses_one_plot_to_a_tokenizer(tmp_path: Path):
    raw = write_mmimdb(tmp_path / "raw")
    plot = raw / "dataset" / f"{MOVIES[0]}.json"
    plot.write_text(json.dumps(json.loads(plot.read_text()) | {"plot": [SLOW]}))
    words = (write_vocab(tmp_path / "plain") / "vocab.txt").read_text().split("\n")
    vocab = {word: number for number, word in enumerate(filter(None, words))}
    folder = write(
        tmp_path / "vocab",
        content(model=content()["model"] | {"vocab": vocab}, normalizer=BACKTRACKS),
    )
    command = [
        sys.executable,
        "-m",
        "furnace_hpc.pack",
        "mmimdb",
        "--source",
        str(raw),
        "--out",
        str(tmp_path / "out"),
    ]
    command += [
        "--tokenizer",
        folder,
        "--image-size",
        "32",
        "--workers",
        "1",
        "--max-refused",
        "0.5",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert "panicked" not in done.stdout + done.stderr
    refused = [
        json.loads(line) for line in (tmp_path / "out" / "refused.jsonl").read_text().splitlines()
    ]
    [lost] = [line for line in refused if line["sample"] == MOVIES[0]]
    assert (lost["modality"], lost["reason"], lost["kept"]) == ("text", "unreadable", True)
    assert "the tokenizer fails on the text" in lost["detail"]


# --- any file ---

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
    """A tokenizer.json of which a part is something else; or its text, cut or with other bytes."""
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
