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


def test_names_of_images_may_have_spaces(tmp_path, capsys):
    """And backslashes. A text that ends with a name is a text."""
    rows = range(30)
    columns = {
        "file": [f"my pics\\big dog {n}.PNG" if n % 3 == 0 else f"{n}.jpg" for n in rows],
        "hint": [f"look at the picture {n}.png" for n in rows],
        "label": ["a", "b", "c"] * 10,
    }
    shown = guess_of(write_csv(tmp_path, columns), capsys)
    assert "--image         file" in shown
    assert "--text          hint" in shown


def test_rows_without_a_label_do_not_count_as_a_class(tmp_path, capsys):
    texts = [f"a text of row {number}" for number in range(32)]
    columns = {"text": texts, "label": ["a", "b"] * 15 + [None, None]}
    assert "--stratify label" in guess_of(write_csv(tmp_path, columns), capsys)


def test_the_guess_names_other_possible_labels(tmp_path, capsys):
    """Names such as `Händler` become a task's name without the mark."""
    texts = [f"a text of row {number}" for number in range(30)]
    columns = {"Inhalt": texts, "Note": ["gut", "mies", None] * 10, "Händler": ["a", "b", "c"] * 10}
    shown = guess_of(write_csv(tmp_path, columns), capsys)
    assert "Handler=Händler" in shown
    assert "or as --label   Note" in shown
    assert "Note: (empty)" in shown


def test_the_guess_of_several_texts(tmp_path, capsys):
    """A known pair is a text pair. Other texts are named."""
    texts = [f"a text of row {number}" for number in range(30)]
    columns = {"premise": texts, "hypothesis": texts, "notes": texts, "label": ["a", "b"] * 15}
    shown = guess_of(write_csv(tmp_path, columns), capsys)
    assert "--text premise --text-pair hypothesis --label label=label" in shown
    assert "or as --text    notes" in shown


def test_the_guess_of_numeric_labels(tmp_path, capsys):
    """Many numbers are a regression. Ordered levels are an option, and never chosen silently."""
    texts = [f"a text of row {number}" for number in range(60)]

    def shown(labels):
        return guess_of(write_csv(tmp_path, {"text": texts, "label": labels}), capsys)

    price = shown([f"{number * 7.5:.2f}" for number in range(60)])
    assert "--label label=label:regression" in price
    assert "or ordered" not in price
    assert "--label label=label:regression" in shown([number * 31 for number in range(60)])
    stars = shown([1 + number % 5 for number in range(60)])
    assert "--label         label=label\n" in stars
    assert "  or ordered      --label label=label:ordinal\n" in stars
    for classes in (
        [number % 2 for number in range(60)],
        [10 * (number % 5) for number in range(60)],
    ):
        assert "or ordered" not in shown(classes)
        assert "regression" not in shown(classes)
    digits = shown([number % 25 for number in range(60)])  # classes that repeat
    assert "--label label=label --split" in digits
