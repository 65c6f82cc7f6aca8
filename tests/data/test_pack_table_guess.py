"""The guess of `furnace pack table` for tables whose names say little."""

import polars as pl
import pytest
from table_files import write_image

from furnace_hpc import pack


def write_csv(tmp_path, rows):
    path = tmp_path / "mine.csv"
    pl.DataFrame(rows).write_csv(path)
    return path


def guess_of(source, capsys, *options) -> str:
    with pytest.raises(SystemExit):
        pack.main(args=["table", "--source", str(source), *options])
    return capsys.readouterr().out


def test_folders_of_splits_are_the_splits(tmp_path, capsys):
    for number, split in enumerate(("train", "train", "train", "train", "test", "test")):
        place = tmp_path / "pics" / split / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        write_image(place / f"{number}.png", number)
    shown = guess_of(tmp_path / "pics", capsys)
    assert "--label folder=folder --split-column split --split 90/10" in shown
    (tmp_path / "pics" / "test").rename(tmp_path / "pics" / "other")
    assert "--split-column" not in guess_of(tmp_path / "pics", capsys)


def test_the_guess_names_other_possible_labels(tmp_path, capsys):
    """Names such as `Händler` become a task's name without the mark."""
    texts = [f"a text of row {number}" for number in range(30)]
    columns = {"Inhalt": texts, "Note": ["gut", "mies", None] * 10, "Händler": ["a", "b", "c"] * 10}
    shown = guess_of(write_csv(tmp_path, columns), capsys)
    assert "Handler=Händler" in shown
    assert "or as --label   Note" in shown
    assert "Note: (empty)" in shown


def test_the_guess_of_several_texts(tmp_path, capsys):
    """A known pair is joined. Other texts are named."""
    texts = [f"a text of row {number}" for number in range(30)]
    columns = {"premise": texts, "hypothesis": texts, "notes": texts, "label": ["a", "b"] * 15}
    shown = guess_of(write_csv(tmp_path, columns), capsys)
    assert "--text premise --text hypothesis --label label=label" in shown
    assert "or as --text    notes" in shown
