"""Bad lines of `furnace predict --input`: each affects only itself."""

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import crash_work
import psutil
import pytest
import soundfile
from broken_files import IMAGES, NOISE, SOUNDS
from hypothesis import given
from hypothesis import strategies as st
from image_files import encoded, exif_of, picture, turned
from use_study import tridigits_model, tridigits_samples  # noqa: F401  fixtures

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.decode import child_process
from furnace_hpc.inference import Predictor, preprocess
from furnace_hpc.inference.batch_predict import answer_file


@pytest.fixture(scope="module")
def predictor(model: Path) -> Predictor:
    return Predictor.load(model, "cpu")


def answered(
    predictor: Predictor, path: Path, batch_size: int = 4
) -> tuple[list[dict[str, Any]], str]:
    """Return the answers as JSON, and the errors."""
    out, errors = io.StringIO(), io.StringIO()
    failed = answer_file(predictor, path, out, errors, None, True, batch_size)
    answers = [json.loads(line, parse_constant=pytest.fail) for line in out.getvalue().splitlines()]
    assert failed == sum("error" in answer for answer in answers)
    return answers, errors.getvalue()


def write_lines(path: Path, *lines: bytes) -> Path:
    """Write the lines, each between two good ones."""
    good = b'{"text": "it is even"}'
    path.write_bytes(
        b"\n".join(line for bad in lines for line in (good, bad)) + b"\n" + good + b"\n"
    )
    return path


@pytest.mark.slow
def test_broken_files_affect_only_their_lines(tmp_path, predictor):
    lines = []
    for number, (name, way) in enumerate(
        (IMAGES | {f"sound: {name}": way for name, way in SOUNDS.items()}).items()
    ):
        path = tmp_path / f"{number}"
        path.write_bytes(b"x")
        way(path)
        modality = "audio" if name.startswith("sound") else "image"
        lines.append(json.dumps({"id": name, modality: path.name}).encode())
    answers, errors = answered(predictor, write_lines(tmp_path / "a.jsonl", *lines))
    assert [("error" in answer) for answer in answers] == [False, True] * len(lines) + [False]
    for answer in answers[1::2]:
        assert any(
            word in answer["error"]
            for word in ("is missing", "is empty", "is unreadable", "is truncated", "is not finite")
        )
    assert errors.count("error: a.jsonl:") == len(lines)


def test_odd_images_are_answered(tmp_path, predictor):
    for name, exif in (
        ("a", exif_of(turned(6), (0x011A, 2, 4, b"300\0"))),
        ("b", exif_of(turned(6))),
    ):
        (tmp_path / f"{name}.jpg").write_bytes(encoded(picture(), "JPEG", exif=exif))
    write_lines(tmp_path / "a.jsonl", b'{"image": "a.jpg"}', b'{"image": "b.jpg"}')
    answers, errors = answered(predictor, tmp_path / "a.jsonl")
    assert errors == ""
    assert answers[1]["tasks"] == answers[3]["tasks"]
    assert predictor.predict(image=tmp_path / "a.jpg").modalities == ("image",)


@pytest.mark.parametrize(
    "line",
    [
        b'{"id": NaN, "text": "it is even"}',
        b'{"id": 1e999, "text": "it is even"}',
        b'{"text": ' + b"[" * 950 + b"]" * 950 + b"}",
        b'{"text": ' + b"[" * 3000 + b"]" * 3000 + b"}",
        b'{"image": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}",
        b'{"text": "x \\ud83d y"}',
        b'{"image": "\\ud83d.png"}',
        b'{"audio": "a\\u0000b.wav"}',
        b'{"image": ""}',
        b'{"image": "."}',
        b'{"image": true}',
        b'{"audio": []}',
        b'{"\\ud83d": 1}',
        b"null",
        b'"text"',
        b"\x00",
        b'{"text": "x\xe9"}',
    ],
)
def test_bad_line_affects_only_itself(tmp_path, predictor, line):
    answers, errors = answered(predictor, write_lines(tmp_path / "a.jsonl", line))
    assert ["error" in answer for answer in answers] == [False, True, False]
    assert errors.startswith("error: a.jsonl:2: ")
    assert errors.count("\n") == 2


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
ROWS = st.dictionaries(st.sampled_from(["id", "text", "image", "audio", "odd"]), JSON, max_size=4)


@pytest.mark.fuzz
@given(
    st.lists(
        ROWS.map(lambda row: json.dumps(row).encode()) | st.binary(max_size=30),
        min_size=1,
        max_size=6,
    )
)
def test_any_line_gets_an_answer_or_an_error(tmp_path_factory, predictor, lines):
    lines = [line.replace(b"\n", b" ") for line in lines]
    path = tmp_path_factory.mktemp("fuzz") / "a.jsonl"
    answers, _ = answered(predictor, write_lines(path, *lines))
    found = [answer["line"] for answer in answers]
    assert found == [
        n + 1 for n in range(2 * len(lines) + 1) if n % 2 == 0 or lines[n // 2].strip()
    ]
    assert not any("error" in answer for answer in answers if answer["line"] % 2)
    shutil.rmtree(path.parent)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("segfault", "the process that read it crashed (SIGSEGV)"),
        ("kill", "the process that read it was killed, probably because memory was full"),
        ("spin", "reading it took more than 2 s of processor time"),
        ("recursion", "RecursionError"),
    ],
)
def test_crashing_decoder_affects_only_its_line(tmp_path, predictor, monkeypatch, how, reason):
    monkeypatch.setattr(preprocess, "read_image", crash_work.read_image)
    good = b'{"image": "good.png", "audio": "good.wav"}'
    if how == "spin":  # importing the decoder of sounds takes longer than this limit
        good = b'{"image": "good.png"}'
        monkeypatch.setattr(child_process, "MAX_CPU_S", 2.0)
    (tmp_path / "bad.png").write_text(how)
    (tmp_path / "good.png").write_bytes(encoded(picture(), "PNG"))
    soundfile.write(tmp_path / "good.wav", NOISE, 16_000)
    answers, errors = answered(
        predictor, write_lines(tmp_path / "a.jsonl", good, b'{"image": "bad.png"}', good)
    )
    assert ["error" in answer for answer in answers] == [n == 3 for n in range(7)], errors
    assert f"bad.png' is unreadable ({reason}" in errors
    alone = predictor.predict(**{name: tmp_path / file for name, file in json.loads(good).items()})
    first = next(iter(alone.tasks["digit"].probabilities.items()))
    assert answers[1]["tasks"]["digit"]["probabilities"][first[0]] == pytest.approx(
        first[1], abs=1e-5
    )
    assert not [
        child for child in psutil.Process().children(recursive=True) if child.ppid() != os.getpid()
    ]


def test_a_batch_that_fails_is_answered_row_by_row(tmp_path, predictor, monkeypatch):
    """A network may run out of memory for a batch, or fail on one line of it."""
    logits = predictor.logits

    def fragile(samples):
        if len(samples) > 1 or samples[0]["present"].sum() > 1:
            raise RuntimeError("out of\nmemory")
        return logits(samples)

    monkeypatch.setattr(predictor, "logits", fragile)
    (tmp_path / "good.png").write_bytes(encoded(picture(), "PNG"))
    both = b'{"text": "it is even", "image": "good.png"}'
    answers, errors = answered(predictor, write_lines(tmp_path / "a.jsonl", both, b"{"))
    assert ["error" in answer for answer in answers] == [False, True, False, True, False]
    assert "a.jsonl:2: no answer (out of memory)" in errors


def test_error_of_one_sample_is_one_line(tmp_path, predictor):
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(
        ConfigError, match=r"^image '.*a.jpg' is unreadable \(a HEIC image, wanted JPEG, PNG"
    ):
        predictor.predict(image=tmp_path / "a.jpg")
