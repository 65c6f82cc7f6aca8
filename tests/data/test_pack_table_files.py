"""Every command line of docs/data.md for common layouts, on small copies of those layouts."""

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
from furnace_hpc.data.columns import Columns, open_columns
from furnace_hpc.data.table.options import SourceOptions
from furnace_hpc.data.table.run import _default_out

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
# first word of a row of the page -> how to write the raw files, and what the pack has:
# name, splits, modalities, and classes of each label
WRITERS = {
    "Hateful": lambda place: write_memes(place / "memes"),
    "Food-101:": lambda place: write_food(place / "food"),
    "a folder of images": lambda place: write_food(place / "food"),
    "CREMA-D:": lambda place: write_crema(place / "crema"),
    "MELD:": lambda place: write_meld(place / "meld"),
    "CMU-MOSEI:": lambda place: write_mosei(place / "mosei"),
    "ESC-50:": lambda place: write_esc(place / "esc50"),
    "Hugging": lambda place: write_hub(place / "pets"),
    "spreadsheet": write_excel_export,
    "WebDataset:": lambda place: write_shards(place / "shards"),
    "a folder of `datasets": lambda place: write_saved_dataset(place / "saved"),
}
EXPECTED = {
    "Hateful": ("memes", (24, 6, 6), ("text", "image"), {"hateful": ("0", "1")}),
    "Food-101:": ("food", (24, 3, 9), ("image",), {"dish": ("apple_pie", "baklava", "ramen")}),
    "a folder of images": (
        *("food", (24, 6, 6), ("image",)),
        {"dish": ("apple_pie", "baklava", "ramen")},
    ),
    "CREMA-D:": ("AudioWAV", (36, 12, 12), ("audio",), {"emotion": ("ANG", "HAP", "NEU")}),
    "MELD:": (
        *("meld", None, ("text", "audio")),
        {
            "emotion": ("anger", "joy", "neutral"),
            "sentiment": ("negative", "neutral", "positive"),
        },
    ),
    "CMU-MOSEI:": (
        *("mosei", (24, 6, 6), ("text", "audio")),
        {"sentiment": ("label",), "sign": ("Negative", "Positive")},
    ),
    "ESC-50:": ("esc50", (18, 6, 6), ("audio",), {"category": ("clock_tick", "dog", "rain")}),
    "Hugging": ("pets", (20, 6, 6), ("image",), {"pet": ("cat", "dog")}),
    "spreadsheet": ("befunde", (28, 6, 6), ("text",), {"befund": ("gesund", "krank")}),
    "WebDataset:": ("shards", (20, 6, 6), ("text", "image", "audio"), {"kind": ("0", "1")}),
    "a folder of `datasets": ("saved", (20, 6, 6), ("text",), {"mood": ("neg", "pos")}),
}


def commands() -> dict[str, str]:
    """Layout -> command line, from the page."""
    rows = re.findall(r"^\| (.+?) \| `(furnace pack table .+)` \|$", PAGE.read_text(), re.MULTILINE)
    return {
        next(word for word in EXPECTED if layout.startswith(word)): command
        for layout, command in rows
        if "FILE" not in command
    }


def packed(tmp_path, monkeypatch, layout: str) -> Columns:
    WRITERS[layout](tmp_path)
    monkeypatch.chdir(tmp_path)
    arguments = shlex.split(commands()[layout])[2:]
    pack.main(args=[*arguments, "--workers", "1", "--verify"], standalone_mode=False)
    (folder,) = (tmp_path / "data").iterdir()
    return open_columns(folder)


def test_the_page_has_a_command_for_each_layout():
    assert set(commands()) == set(EXPECTED)


@pytest.mark.parametrize("layout", EXPECTED)
def test_commands_of_the_page(tmp_path, monkeypatch, layout):
    columns = packed(tmp_path, monkeypatch, layout)
    name, splits, modalities, classes = EXPECTED[layout]
    manifest = columns.manifest
    assert columns.folder.name == name
    assert manifest.modalities == modalities
    assert {task: labels.classes for task, labels in manifest.labels.items()} == classes
    if splits is not None:
        assert tuple(manifest.splits.values()) == splits
    for split, size in manifest.splits.items():
        assert size > 0
        assert columns.split(split)["present"].all()
        assert manifest.counts[split]["refused"] == 0


def test_the_first_commands_of_the_page(tmp_path, monkeypatch):
    """The guess of the first one is the second one."""
    write_reviews(tmp_path)
    monkeypatch.chdir(tmp_path)
    lines = re.findall(r"^furnace pack table .*$", PAGE.read_text(), re.MULTILINE)
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
