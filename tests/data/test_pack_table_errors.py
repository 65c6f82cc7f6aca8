"""`furnace pack table` on bad input: one clear error each, and nothing is written."""

import json

import polars as pl
import pytest
from table_files import image_bytes, wav_bytes, write_image, write_wav

from furnace_hpc import pack
from furnace_hpc.config.errors import ConfigError

TEXTS = [f"text of row {number} here" for number in range(20)]
KINDS = ["a", "b"] * 10
SPLIT = ("--split", "60/20/20")
COLUMNS = ("--text", "text", "--label", "kind", *SPLIT)


def error_of(tmp_path, *arguments: object) -> str:
    """Run the command and return its error. The folder is as before."""
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ConfigError) as raised:
        pack.main(
            args=["table", *map(str, arguments), "--out", str(tmp_path / "packed")],
            standalone_mode=False,
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    message = str(raised.value)
    assert "\n" not in message
    return message


def csv_of(tmp_path, rows=None, **columns):
    path = tmp_path / "mine.csv"
    pl.DataFrame(rows or {"text": TEXTS, "kind": KINDS} | columns).write_csv(path)
    return path


def test_a_missing_column_names_the_nearest(tmp_path):
    path = csv_of(tmp_path)
    message = error_of(tmp_path, "--source", path, "--text", "txt", "--label", "kind", *SPLIT)
    assert message.startswith("--text 'txt' is not a column; did you mean 'text'?")
    message = error_of(tmp_path, "--source", path, "--text", "text", "--label", "k={knd}", *SPLIT)
    assert "'{knd}' uses 'knd'; did you mean 'kind'?" in message


def test_a_missing_file_names_the_nearest(tmp_path):
    csv_of(tmp_path)
    message = error_of(tmp_path, "--source", tmp_path / "mini.csv", *COLUMNS)
    assert "mini.csv does not exist; did you mean 'mine.csv'?" in message


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"--split": "80/10"}, "--split is '80/10', wanted per cent"),
        ({"--split": "80/10/20"}, "--split is '80/10/20', wanted per cent"),
        ({"--label": "kind:regres"}, "has the kind 'regres'; did you mean 'regression'?"),
        ({"--label": "2x=kind"}, "has the name '2x', wanted letters"),
        ({"--stratify": "sort"}, "--stratify 'sort' is not a label; valid: kind"),
        ({"--split-column": "kind"}, "the split column has the value 'a'"),
        ({"--media-root": "none"}, "--media-root none is not a folder"),
        ({"--require": "sound"}, "--require got 'sound'; valid: text"),
        ({"--tokenizer": "/none"}, "tokenizer '/none' is neither a folder nor in the hub"),
        ({"--train": "x.csv"}, "--source and --train are both given"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrong_options(tmp_path, changes, wanted):
    options = {"--source": csv_of(tmp_path), "--text": "text", "--label": "kind"}
    options |= {"--split": "60/20/20"} | changes
    arguments = [part for pair in options.items() for part in pair]
    assert wanted in error_of(tmp_path, *arguments)


def test_no_split_is_an_error(tmp_path):
    message = error_of(tmp_path, "--source", csv_of(tmp_path), *COLUMNS[:4])
    assert "the table has no splits. Give --split 80/10/10" in message


@pytest.mark.parametrize(("rows", "wanted"), [(0, "has no rows"), (1, "has 1 row, wanted")])
def test_too_few_rows(tmp_path, rows, wanted):
    path = csv_of(tmp_path, {"text": TEXTS[:rows], "kind": KINDS[:rows]})
    assert wanted in error_of(tmp_path, "--source", path, *COLUMNS)


def test_duplicate_ids(tmp_path):
    path = csv_of(tmp_path, name=[f"n{number % 18}" for number in range(20)])
    message = error_of(tmp_path, "--source", path, *COLUMNS, "--id", "name")
    assert "id 'n" in message
    assert (
        "in row 1 and in row 19 (4 rows share an id)" in message or "row 2 and in row 20" in message
    )


def test_labels_that_look_alike(tmp_path):
    path = csv_of(tmp_path, {"text": TEXTS, "kind": ["Cat", "cat ", "dog", "Cat"] * 5})
    message = error_of(tmp_path, "--source", path, *COLUMNS)
    assert "the classes 'Cat' and 'cat ' differ only in case or spaces" in message
    assert "--merge-labels" in message


@pytest.mark.parametrize(
    ("kinds", "wanted"),
    [
        (["a"] * 20, "all rows have the class 'a', so there is nothing to learn"),
        ([None] * 20, "the column has no values"),
        (["nan"] * 4 + ["a", "b"] * 8, "4 of 20 rows have no value, first row 1"),
    ],
    ids=["one class", "empty", "nan"],
)
def test_labels_without_information(tmp_path, kinds, wanted):
    path = csv_of(tmp_path, {"text": TEXTS, "kind": kinds})
    assert wanted in error_of(tmp_path, "--source", path, *COLUMNS)


def test_too_many_classes(tmp_path):
    path = csv_of(
        tmp_path,
        {
            "text": [f"text {number}" for number in range(100_000)],
            "kind": [f"c{number}" for number in range(100_000)],
        },
    )
    message = error_of(tmp_path, "--source", path, *COLUMNS)
    assert "the column has 100,000 classes, at most 10,000. It looks like an id" in message


@pytest.mark.parametrize("image", ["../secret.png", "/etc/secret.png", "a/../../secret.png"])
def test_paths_that_leave_the_root(tmp_path, image):
    for number in range(20):
        write_image(tmp_path / f"{number}.png", number)
    images = [f"{number}.png" for number in range(19)] + [image]
    path = csv_of(tmp_path, image=images)
    message = error_of(tmp_path, "--source", path, *COLUMNS, "--image", "image")
    assert f"row 20: 'image' is {image!r}, which is not in {tmp_path}" in message


def test_a_wrong_media_root(tmp_path):
    path = csv_of(tmp_path, image=[f"{number}.png" for number in range(20)])
    message = error_of(tmp_path, "--source", path, *COLUMNS, "--image", "image")
    assert f"none of the first 20 files of 'image' exists, such as {tmp_path}/0.png" in message


def test_a_spreadsheet(tmp_path):
    (tmp_path / "mine.xlsx").write_bytes(b"PK\x03\x04")
    message = error_of(tmp_path, "--source", tmp_path / "mine.xlsx", *COLUMNS)
    assert "is a spreadsheet. Save it as CSV UTF-8" in message


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("a.parquet", b"PAR1 cut off", "a.parquet cannot be read"),
        ("a.csv", b"", "a.csv is empty"),
        ("a.csv", "text,kind\ncaf\xe9,a\n".encode("latin-1") * 4, "--encoding cp1252"),
        ("a.csv", b"text,kind\na,b\na,b,c\n", "a row has more cells than the header"),
        ("a.csv", b"text,text\na,b\n", "a.csv has two columns 'text'"),
        ("a.jsonl", b'{"text": "a", "kind": 1}\n{"text": \n', "a.jsonl cannot be read"),
        ("a.tar", b"no tar" * 100, "a.tar is not a complete tar file"),
        ("a.bin", b"abc", "a.bin is not a table: wanted a file that ends in .csv"),
        ("a.txt", b"\n\n", "a.txt has no lines"),
    ],
    ids=["parquet", "empty", "latin", "cells", "twice", "json", "tar", "kind", "list"],
)
def test_damaged_tables(tmp_path, name, content, wanted):
    (tmp_path / name).write_bytes(content)
    assert wanted in error_of(tmp_path, "--source", tmp_path / name, *COLUMNS)


def test_a_truncated_parquet(tmp_path):
    """Cut anywhere, also after a valid header."""
    rows = {"image": [{"bytes": image_bytes(n), "path": None} for n in range(20)], "kind": KINDS}
    path = tmp_path / "mine.parquet"
    pl.DataFrame(rows).write_parquet(path)
    whole = path.read_bytes()
    for size in (len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        message = error_of(
            tmp_path, "--source", path, "--image", "image", "--label", "kind", *SPLIT
        )
        assert "mine.parquet cannot be read" in message


def test_mixed_types_are_text(tmp_path):
    """A label that is a number in one row and a word in another is a class in both."""
    path = tmp_path / "mine.jsonl"
    kinds = [1, "one", 2.5, None] * 5
    lines = [{"text": text, "kind": kind} for text, kind in zip(TEXTS, kinds, strict=True)]
    path.write_text("\n".join(map(json.dumps, lines)))
    message = error_of(tmp_path, "--source", path, *COLUMNS)
    assert "5 of 20 rows have no value, first row 4" in message


@pytest.mark.parametrize("option", ["--text", "--label", "--id"])
def test_a_column_of_structs(tmp_path, option):
    path = tmp_path / "mine.jsonl"
    lines = [
        {"text": text, "kind": kind, "odd": {"x": 1}}
        for text, kind in zip(TEXTS, KINDS, strict=True)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    value = "odd" if option != "--label" else "more=odd"
    message = error_of(tmp_path, "--source", path, *COLUMNS, option, value)
    assert "'odd' holds Struct" in message or "the column holds" in message


def test_files_with_other_columns(tmp_path):
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    first.write_text("text,kind\na,b\n")
    second.write_text("text,sort\na,b\n")
    message = error_of(tmp_path, "--train", first, "--test", second, *COLUMNS[:4])
    assert f"{second} has no column 'kind', which {first} has" in message


def test_no_column_looks_like_a_label(tmp_path):
    path = csv_of(tmp_path, {"text": TEXTS, "other": TEXTS})
    message = error_of(tmp_path, "--source", path)
    assert "looks like a label. Name the columns with --text" in message


def test_rows_without_a_split(tmp_path):
    path = csv_of(tmp_path, part=["train"] * 10 + [None] + ["test"] * 9)
    message = error_of(tmp_path, "--source", path, *COLUMNS[:4], "--split-column", "part")
    assert "row 11 has no split (1 row in all)" in message


def test_another_pack_is_not_replaced(tmp_path):
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "notes.txt").write_text("mine")
    message = error_of(tmp_path, "--source", csv_of(tmp_path), *COLUMNS)
    assert "holds 'notes.txt', which is not part of a packed data set" in message
    assert [path.name for path in (tmp_path / "packed").iterdir()] == ["notes.txt"]


def test_a_folder_that_no_grid_can_name(tmp_path):
    """It would be packed, and refused by `furnace submit` afterwards."""
    path = csv_of(tmp_path)
    words = ["table", "--source", str(path), *COLUMNS, "--out", str(tmp_path / "two words")]
    with pytest.raises(ConfigError, match="two words'?: a grid cannot name this folder. Choose a"):
        pack.main(args=words, standalone_mode=False)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.csv"]


@pytest.mark.parametrize("options", [(), COLUMNS], ids=["guess", "columns"])
def test_another_encoding_is_named(tmp_path, options):
    path = tmp_path / "export.csv"
    path.write_bytes(b"text;kind\n" + "schön;groß\n".encode("cp1252") * 20)
    message = error_of(tmp_path, "--source", path, *options)
    assert "export.csv cannot be read" in message
    assert "--encoding cp1252" in message


def test_a_table_without_column_names(tmp_path):
    path = tmp_path / "spam.csv"
    path.write_text("".join(f"a text of row {n},{('spam', 'ham')[n % 2]}\n" for n in range(30)))
    message = error_of(tmp_path, "--source", path)
    assert "the first line of" in message
    assert "'spam' is also a value of its column" in message


def test_files_of_another_kind(tmp_path):
    """Sounds in the column of images are an error before packing. One of them is a warning."""
    for number in range(20):
        write_wav(tmp_path / f"{number}.wav", number)
    path = csv_of(tmp_path, image=[f"{number}.wav" for number in range(20)])
    message = error_of(tmp_path, "--source", path, *COLUMNS, "--image", "image")
    assert message.startswith("none of 20 image files can be read, such as '0.wav' (")
    assert message.endswith("Give --image a column of image files")
    for number in range(20):
        write_image(tmp_path / f"{number}.png", number)
    message = error_of(
        *(tmp_path, "--source", path, *COLUMNS, "--audio", "{image}", "--image-size", "16"),
        *("--label", "text", "--stratify", "text"),
    )
    assert "--stratify cannot divide classes of one row (20 in all)" in message


def test_some_files_of_another_kind(tmp_path, capsys):
    for number in range(20):
        write_image(tmp_path / f"{number}.png", number)
    (tmp_path / "7.png").write_bytes(wav_bytes(7))
    path = csv_of(tmp_path, image=[f"{number}.png" for number in range(20)])
    pack.main(
        args=[
            *("table", "--source", str(path), *COLUMNS, "--image", "image", "--image-size", "16"),
            *("--out", str(tmp_path / "packed"), "--workers", "1"),
        ],
        standalone_mode=False,
    )
    shown = capsys.readouterr().out
    assert "warning: 1 of 20 image files that were looked at cannot be read, such as '7." in shown
