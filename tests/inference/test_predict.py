"""`furnace predict`: subsets of the modalities, files of samples, and errors."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from raw_sets import MOVIES
from use_study import packed_movies, tridigits_model, tridigits_samples  # noqa: F401  fixtures

from furnace_hpc.cli import run_command
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.metrics import subsets
from furnace_hpc.data.sets.mmimdb import GENRES
from furnace_hpc.inference import Predictor
from furnace_hpc.predict import main

DIGITS = tuple("0123456789")


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        run_command(main, [str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, printed.out, printed.err


# --- answers ---


@pytest.mark.slow
def test_every_subset_of_modalities(model: Path, samples: Path):
    predictor = Predictor.load(model, "cpu")
    line = json.loads(samples.read_text().splitlines()[0])
    given = {"text": line["text"]} | {
        name: samples.parent / line[name] for name in ("image", "audio")
    }
    seen = set()
    for subset in subsets(("text", "image", "audio")):
        answer = predictor.predict(**{name: given[name] for name in subset})
        assert answer.modalities == subset
        assert answer.tasks.keys() == {"digit", "parity"}
        digit = answer.tasks["digit"]
        assert sorted(digit.probabilities) == list(DIGITS)
        assert list(digit.probabilities.values()) == sorted(
            digit.probabilities.values(), reverse=True
        )
        assert sum(digit.probabilities.values()) == pytest.approx(1)
        assert digit.labels == (next(iter(digit.probabilities)),)
        seen.add(tuple(digit.probabilities.values()))
    assert len(seen) == 7, "each subset gives another answer"


def test_multi_label_task_uses_tuned_threshold(movies: Path, capsys: Any):
    predictor = Predictor.load(movies / "model", "cpu")
    answer = predictor.predict(text="the detective finds a letter").tasks["genres"]
    assert answer.threshold == 0.47
    assert answer.probabilities.keys() == set(GENRES)
    assert answer.labels == tuple(name for name, p in answer.probabilities.items() if p > 0.47)
    assert 0 < len(answer.labels) < len(GENRES)
    code, out, _ = command(
        capsys, "--model", movies / "model", "--text", "love", "--json", "--top", 4
    )
    genres = json.loads(out)["tasks"]["genres"]
    assert (code, genres["threshold"], len(genres["probabilities"])) == (0, 0.47, 4)
    assert genres["labels"]
    code, out, _ = command(capsys, "--model", movies / "model", "--text", "love")
    assert "(above 0.470)" in out


def test_command_predicts_one_sample(model: Path, samples: Path, capsys: Any):
    image = next(samples.parent.glob("*.png"))
    code, out, err = command(capsys, "--model", model, "--image", image, "--top", 3)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "from image; without text, audio"
    assert [line.split(":")[0] for line in lines if not line.startswith(" ")][1:] == [
        "digit",
        "parity",
    ]
    assert sum(line.endswith(" %") for line in lines) == 3 + 2
    code, out, _ = command(capsys, "--model", model, "--image", image, "--top", 10**30)
    assert (code, sum(line.endswith(" %") for line in out.splitlines())) == (0, 10 + 2)
    code, out, _ = command(capsys, "--model", model, "--image", image, "--json")
    tasks = json.loads(out)["tasks"]
    assert (code, len(tasks["digit"]["probabilities"]), tasks["digit"]["label"]) == (
        0,
        10,
        lines[1].split()[1],
    )


BAD_ENTRIES: list[tuple[Any, str]] = [
    ({"image": "nowhere.png"}, "nowhere.png' is missing"),
    ({"image": "folder.png"}, "folder.png' is unreadable (a folder)"),
    ({"audio": "pipe.wav"}, "pipe.wav' is unreadable (no regular file)"),
    ({"audio": "/dev/zero"}, "'/dev/zero' is unreadable (no regular file)"),
    ({"image": "empty.png"}, "empty.png' is empty"),
    ({"image": "text.png", "text": "it is even"}, "text.png' is unreadable"),
    ({"image": "a\0b.png"}, "is unreadable"),
    ({"image": "x" * 5000}, "is unreadable (File name too long)"),
    ({"audio": 1e308}, "audio is 1e+308, wanted the path of a file"),
    ({"text": 5}, "text is 5, wanted a string"),
    ({"text": " "}, "text is empty"),
    ({"imgae": "here.png"}, "unknown key 'imgae'; did you mean 'image'?"),
    ({}, "nothing is given. Give any of text, image, audio"),
    ([1], "a JSON list, wanted an object"),
]
BAD_LINES = [
    (b"{", "not JSON"),
    (b"\xff\xfe", "not JSON"),
    (b"[" * 100_000, "not JSON"),
    (b"1" * 5000, "not JSON"),
    (b'{"text": "\\ud800"}', "not valid Unicode"),
]


@pytest.mark.slow
def test_input_file_with_bad_lines(model: Path, samples: Path, tmp_path: Path, capsys: Any):
    """Lines are answered in order. A bad line affects only itself."""
    good = json.loads(samples.read_text().splitlines()[0])
    good |= {name: str(samples.parent / good[name]) for name in ("image", "audio")}
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "here.png").write_bytes(Path(good["image"]).read_bytes())
    bad = [(json.dumps(entry).encode(), words) for entry, words in BAD_ENTRIES] + BAD_LINES
    last = b'{"id": 7, "image": "here.png", "text": null}'
    lines = [json.dumps(good).encode(), b"", *(line for line, _ in bad), last]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines) + b"\n")

    code, out, err = command(
        capsys, "--model", model, "--input", tmp_path / "rows.jsonl", "--json", "--batch-size", 4
    )
    assert code == 1
    first, *failed, last = [json.loads(line) for line in out.splitlines()]
    assert (first["line"], first["id"], last["line"], last["id"]) == (1, good["id"], len(lines), 7)
    assert first["modalities"] == ["text", "image", "audio"]
    assert last["modalities"] == ["image"]
    assert [answer["line"] for answer in failed] == list(range(3, len(lines)))
    *errors, summary = err.splitlines()
    assert summary == f"samples without an answer: {len(bad)}"
    for (_, words), answer, error in zip(bad, failed, errors, strict=True):
        assert error.startswith(f"error: rows.jsonl:{answer['line']}: "), error
        assert words in error
        assert answer["error"] in error
    predictor = Predictor.load(model, "cpu")
    alone = predictor.predict(image=tmp_path / "here.png").tasks["digit"].probabilities
    assert last["tasks"]["digit"]["probabilities"] == pytest.approx(alone, abs=1e-5)


def test_input_file_as_text(model: Path, samples: Path, capsys: Any):
    ids = [json.loads(line)["id"] for line in samples.read_text().splitlines()]
    code, out, err = command(capsys, "--model", model, "--input", samples)
    assert (code, err) == (0, "")
    assert [line.split("  ")[0] for line in out.splitlines()] == ids


@pytest.mark.slow
def test_ctrl_c_leaves_whole_answers(model: Path, tmp_path: Path):
    many = tmp_path / "many.jsonl"
    many.write_text(
        "".join(json.dumps({"id": str(n), "text": "it is even"}) + "\n" for n in range(100_000))
    )
    arguments = [
        sys.executable,
        "-m",
        "furnace_hpc.predict",
        "--model",
        str(model),
        "--input",
        str(many),
        "--json",
    ]
    answers = tmp_path / "answers.jsonl"
    with answers.open("w") as file:
        process = subprocess.Popen(arguments, stdout=file, stderr=subprocess.PIPE, text=True)
    while not answers.read_text():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    ids = [json.loads(line)["id"] for line in answers.read_text().splitlines()]
    assert ids == [str(n) for n in range(len(ids))]
    assert 1 <= len(ids) < 100_000


# --- errors ---


def test_bad_arguments_exit_with_2(model: Path, movies: Path, tmp_path: Path, capsys: Any):
    """The error is one line."""
    for arguments, words in (
        ((model,), "no sample is given. Give any of --text, --image, --audio and"),
        ((model, "--text", "a", "--input", "x.jsonl"), "--input and --text are both given"),
        ((model, "--input", tmp_path), "is not a file. Give a file with one JSON object per line"),
        ((model, "--image", tmp_path), "is unreadable (a folder)"),
        ((model, "--image", tmp_path / "no.png"), "is missing"),
        ((model, "--text", "a", "--device", "tpu:9"), "device 'tpu:9'"),
        ((tmp_path, "--text", "a"), "is not an exported model"),
        ((movies / "model", "--audio", "x.wav"), "this model uses only text and image"),
    ):
        code, out, err = command(capsys, "--model", *arguments)
        assert (code, out) == (2, ""), arguments
        assert words in err
        assert err.count("\n") == 1
    assert len(MOVIES) == 12


def test_damaged_or_foreign_model_is_refused(model: Path, tmp_path: Path):
    import shutil

    copy = shutil.copytree(model, tmp_path / "copy")
    config = (copy / "config.json").read_text()
    good = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(
        ConfigError,
        match=r"model\.safetensors is missing or differs from its size and hash in config",
    ):
        Predictor.load(copy)
    (copy / "model.safetensors").write_bytes(good)
    content = json.loads(config)
    outside = content | {"files": content["files"] | {"../../etc/passwd": [1, "x"]}}
    for text, words in (
        ("{", "is not the config of an exported model"),
        ("[]", "is not the config of an exported model"),
        (json.dumps(content | {"format": 2}), "has format 2, and this Furnace reads format 1"),
        (json.dumps(content | {"files": {}}), "names no model.safetensors"),
        (json.dumps(outside), "passwd is missing or differs from its size and hash in config.json"),
    ):
        (copy / "config.json").write_text(text)
        with pytest.raises(ConfigError, match=words):
            Predictor.load(copy)
