"""`furnace pack` and `furnace predict` lose one text if a tokenizer fails on it."""

import json
import shutil
import sys
from pathlib import Path

import forked_commands
from raw_sets import MOVIES, write_mmimdb, write_vocab
from test_tokens import BACKTRACKS, SLOW, content, write
from use_study import packed_movies  # noqa: F401  fixture

from furnace_hpc.runs.records.checkpoint_files import describe


def test_predict_loses_one_line_to_a_tokenizer(movies: Path, tmp_path: Path):
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
    command = [
        sys.executable,
        "-m",
        "furnace_hpc.predict",
        "--model",
        str(model),
        "--input",
        str(tmp_path / "samples.jsonl"),
    ]
    done = forked_commands.run([*command, "--json"])
    assert done.stdout, done.stderr
    answered = [json.loads(line) for line in done.stdout.splitlines()]
    assert ["error" in answer for answer in answered] == [False, True, False]
    assert "the tokenizer fails on the text" in answered[1]["error"]
    assert len(answered[1]["error"]) < 400
    assert "panicked" not in done.stderr
    assert "Traceback" not in done.stderr
    one = forked_commands.run([*command[:5], "--text", SLOW])
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
    done = forked_commands.run(command, timeout=180)
    assert done.returncode == 0, done.stderr
    assert "panicked" not in done.stdout + done.stderr
    refused = [
        json.loads(line) for line in (tmp_path / "out" / "refused.jsonl").read_text().splitlines()
    ]
    [lost] = [line for line in refused if line["sample"] == MOVIES[0]]
    assert (lost["modality"], lost["reason"], lost["kept"]) == ("text", "unreadable", True)
    assert "the tokenizer fails on the text" in lost["detail"]
