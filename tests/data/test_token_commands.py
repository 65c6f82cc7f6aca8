"""`furnace pack` and `furnace predict` lose one text if a tokenizer fails on it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from raw_sets import MOVIES, write_mmimdb, write_vocab
from test_tokens import BACKTRACKS, SLOW, content, write
from use_study import packed_movies  # noqa: F401  fixture

from furnace_hpc import pack, predict
from furnace_hpc.cli import run_command
from furnace_hpc.runs.records.checkpoint_files import describe


def run(
    capfd: pytest.CaptureFixture[str], main: Callable[..., Any], words: list[str]
) -> tuple[int, str, str]:
    """Exit code, output and errors, also those of Rust and of child processes."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        run_command(main, words)
    printed = capfd.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, printed.out, printed.err


def test_predict_loses_one_line_to_a_tokenizer(movies: Path, tmp_path: Path, capfd: Any):
    model = shutil.copytree(movies / "model", tmp_path / "model")
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {
        "type": "Sequence",
        "normalizers": [tokenizer["normalizer"], BACKTRACKS],
    }
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = json.loads((model / "config.json").read_text())
    config["files"]["tokenizer.json"] = describe(model / "tokenizer.json")
    (model / "config.json").write_text(json.dumps(config))
    lines = [{"text": "the detective"}, {"text": SLOW * 50}, {"text": "a letter"}]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["--model", str(model), "--input", str(tmp_path / "samples.jsonl"), "--json"]
    code, out, error = run(capfd, predict.main, words)
    answered = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert ["error" in answer for answer in answered] == [False, True, False]
    assert "the tokenizer fails on the text" in answered[1]["error"]
    assert len(answered[1]["error"]) < 400
    assert "panicked" not in error
    assert "Traceback" not in error
    code, out, error = run(capfd, predict.main, [*words[:2], "--text", SLOW])
    assert (code, out) == (2, "")
    assert error.startswith("error: text is 'aaa")
    assert error.count("\n") == 1


def test_pack_loses_one_plot_to_a_tokenizer(tmp_path: Path, capfd: Any):
    raw = write_mmimdb(tmp_path / "raw")
    plot = raw / "dataset" / f"{MOVIES[0]}.json"
    plot.write_text(json.dumps(json.loads(plot.read_text()) | {"plot": [SLOW]}))
    words = (write_vocab(tmp_path / "plain") / "vocab.txt").read_text().split("\n")
    vocab = {word: number for number, word in enumerate(filter(None, words))}
    folder = write(
        tmp_path / "vocab",
        content(model=content()["model"] | {"vocab": vocab}, normalizer=BACKTRACKS),
    )
    words = ["mmimdb", "--source", str(raw), "--out", str(tmp_path / "out")]
    words += ["--tokenizer", folder, "--image-size", "32", "--workers", "1"]
    code, out, error = run(capfd, pack.main, [*words, "--max-refused", "0.5"])
    assert code == 0, error
    assert "panicked" not in out + error
    refused = [
        json.loads(line) for line in (tmp_path / "out" / "refused.jsonl").read_text().splitlines()
    ]
    [lost] = [line for line in refused if line["sample"] == MOVIES[0]]
    assert (lost["modality"], lost["reason"], lost["kept"]) == ("text", "unreadable", True)
    assert "the tokenizer fails on the text" in lost["detail"]
