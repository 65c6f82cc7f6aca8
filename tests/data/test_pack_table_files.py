"""Every command line of docs/datasets.md, on small copies of the published layouts."""

import re
import shlex
from pathlib import Path

import pytest
from table_files import (
    write_crema,
    write_esc,
    write_excel_export,
    write_food,
    write_hub,
    write_meld,
    write_memes,
    write_mosei,
    write_reviews,
    write_saved_dataset,
    write_shards,
)

from furnace_hpc import pack
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.columns import Columns, open_columns
from furnace_hpc.data.table.options import SourceOptions
from furnace_hpc.data.table.run import _default_out

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "datasets.md"
DISHES = ("apple_pie", "baklava", "ramen")
EMOTIONS = {
    "emotion": ("anger", "joy", "neutral"),
    "sentiment": ("negative", "neutral", "positive"),
}
# --out or name of the source -> how to write the raw files
WRITERS = {
    "memes": write_memes,
    "food": write_food,
    "dishes": lambda folder: write_food(folder.with_name("food")),
    "AudioWAV": lambda folder: write_crema(folder.with_name("crema")),
    "meld": write_meld,
    "mosei": write_mosei,
    "esc50": write_esc,
    "pets": write_hub,
    "saved": write_saved_dataset,
    "befunde": lambda folder: write_excel_export(folder.parent),
    "shards": write_shards,
}
# what the packs have: rows of train, val and test, modalities, and classes of each label
EXPECTED = {
    "memes": ((24, 6, 6), ("text", "image"), {"hateful": ("0", "1")}),
    "food": ((24, 3, 9), ("image",), {"dish": DISHES}),
    "dishes": ((24, 6, 6), ("image",), {"dish": DISHES}),
    "AudioWAV": ((36, 12, 12), ("audio",), {"emotion": ("ANG", "HAP", "NEU")}),
    "meld": ((24, 9, 9), ("text", "audio"), EMOTIONS),
    "mosei": (
        *((24, 6, 6), ("text", "audio")),
        {"sentiment": ("label",), "sign": ("Negative", "Positive")},
    ),
    "esc50": ((18, 6, 6), ("audio",), {"category": ("clock_tick", "dog", "rain")}),
    "pets": ((20, 6, 6), ("image",), {"pet": ("cat", "dog")}),
    "saved": ((20, 6, 6), ("text",), {"mood": ("neg", "pos")}),
    "befunde": ((28, 6, 6), ("text",), {"befund": ("gesund", "krank")}),
    "shards": ((20, 6, 6), ("text", "image", "audio"), {"kind": ("0", "1")}),
}


def commands() -> list[list[str]]:
    """The words after `furnace pack` of each command of the page."""
    blocks = re.findall(r"^```sh\n(furnace pack table .+?)```$", PAGE.read_text(), re.M | re.S)
    return [shlex.split(block.replace("\\\n", " "))[2:] for block in blocks]


def name_of(words: list[str]) -> str:
    """The name of the pack that a command makes."""
    if "--out" in words:
        return Path(words[words.index("--out") + 1]).name
    option = "--source" if "--source" in words else "--train"
    return _default_out(SourceOptions((words[words.index(option) + 1],))).name


def packed(tmp_path, monkeypatch, words: list[str]) -> Columns:
    WRITERS[name_of(words)](tmp_path / name_of(words))
    monkeypatch.chdir(tmp_path)
    pack.main(args=[*words, "--workers", "1", "--verify"], standalone_mode=False)
    (folder,) = (tmp_path / "data").iterdir()
    return open_columns(folder)


def test_the_page_has_a_command_for_each_layout():
    assert [name_of(words) for words in commands()] == list(EXPECTED)
    assert len(PAGE.read_text().splitlines()) < 200


@pytest.mark.parametrize("words", commands(), ids=name_of)
def test_commands_of_the_page(tmp_path, monkeypatch, words):
    columns = packed(tmp_path, monkeypatch, words)
    splits, modalities, classes = EXPECTED[name_of(words)]
    manifest = columns.manifest
    assert columns.folder.name == name_of(words)
    assert manifest.modalities == modalities
    assert {task: labels.classes for task, labels in manifest.labels.items()} == classes
    assert tuple(manifest.splits.values()) == splits
    for split in manifest.splits:
        assert columns.split(split)["present"].all()
        assert manifest.counts[split]["refused"] == 0


def test_the_first_commands_of_the_page(tmp_path, monkeypatch):
    """The guess of the first one is the second one."""
    write_reviews(tmp_path)
    monkeypatch.chdir(tmp_path)
    lines = re.findall(r"^furnace pack table .*$", (DOCS / "data.md").read_text(), re.M)
    first, second = (shlex.split(line)[2:] for line in lines[:2])
    with pytest.raises(SystemExit) as stopped:
        pack.main(args=first)
    assert stopped.value.code == 2
    pack.main(args=[*first, "--yes"], standalone_mode=False)
    guessed = open_columns(tmp_path / "data" / "reviews").manifest
    pack.main(args=[*second, "--out", "again"], standalone_mode=False)
    assert open_columns(tmp_path / "again").manifest.fingerprint == guessed.fingerprint


@pytest.mark.parametrize(
    ("file", "out"),
    [
        ("field/My notes (2).v3.csv", "data/My_notes_2"),
        ("field/train.csv", "data/field"),
        ("reports/\u8bc4\u8bba.csv", "data/reports"),
        (f"field/{'long' * 20}.csv", f"data/{'long' * 16}"),
    ],
)
def test_the_pack_has_a_name_for_grids(file, out):
    """Files of others have spaces, brackets and letters that no grid takes."""
    assert str(_default_out(SourceOptions((file,)))) == out


def test_folds_print_one_next_command(tmp_path, monkeypatch, capsys):
    write_reviews(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = ["--text", "review", "--label", "stars", "--folds", "3", "--workers", "1"]
    pack.main(args=["table", "--source", "reviews.csv", *words], standalone_mode=False)
    folds = " ".join(f"--data data/reviews-fold{number}" for number in range(3))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("then: ")
    assert last.endswith(f"furnace new reviews {folds}")


LISTED = ("--source", "crema/AudioWAV", "--audio", "path", "--label", "emotion")


@pytest.mark.parametrize(
    ("pattern", "error"),
    [
        ("([0-9]+)_", "has no named group. Name its groups, such as (?P<actor>[0-9]+)"),
        ("(?P<name>[0-9]+)_", "names the column 'name' again"),
        ("(?P<emotion>[0-9]+", "is not a regular expression: "),
        ("(?P<emotion>HAP|ANG)", "does not match '1001_IEO_NEU_XX.wav' (20 paths in all)"),
    ],
)
def test_path_patterns_that_are_wrong(tmp_path, monkeypatch, pattern, error):
    write_crema(tmp_path / "crema")
    monkeypatch.chdir(tmp_path)
    words = [*LISTED, "--split", "60/20/20", "--path-pattern", pattern]
    with pytest.raises(ConfigError) as raised:
        pack.main(args=["table", *words], standalone_mode=False)
    assert error in str(raised.value)
    assert [file.name for file in tmp_path.rglob("*.npy")] == []


def test_a_path_pattern_needs_paths(tmp_path, monkeypatch):
    write_reviews(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = ["--source", "reviews.csv", "--path-pattern", "(?P<x>a)", "--yes"]
    with pytest.raises(ConfigError, match="--path-pattern needs a column 'path', which reviews"):
        pack.main(args=["table", *words], standalone_mode=False)
