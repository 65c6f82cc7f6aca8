"""Sources that look like something else: one clear error or a note each."""

import numpy as np
import pytest
import soundfile
from table_files import write_image, write_reviews, write_wav

from furnace_hpc import pack
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.decode.reading import reading
from furnace_hpc.data.packing.rejects import Unusable
from furnace_hpc.data.table.media import Media, sound_length
from furnace_hpc.data.table.sources.folders import read_list


@pytest.mark.parametrize(
    ("text", "encoding", "message"),
    [
        (
            "text\tlabel\none two\ta\nthree\tb\n",
            "utf-16",
            r"with '\t' between them. Rename it to mine.tsv",
        ),
        ("text;label\none two;a\n", "utf-8", "Rename it to mine.csv"),
        ("text,label\none two,a\n\n", "utf-8-sig", "with ',' between them. Rename it to mine.csv"),
    ],
)
def test_a_table_that_is_named_txt(tmp_path, text, encoding, message):
    path = tmp_path / "mine.txt"
    path.write_text(text, encoding=encoding)
    with pytest.raises(ConfigError) as raised:
        pack.main(args=["table", "--source", str(path)], standalone_mode=False)
    assert "is read as a list of paths, but its lines have several columns" in str(raised.value)
    assert message in str(raised.value)


def test_a_file_without_an_option(tmp_path, capsys):
    """`furnace pack table FILE` is `--source FILE`, and `furnace pack FILE` names it."""
    path = write_reviews(tmp_path)
    with pytest.raises(SystemExit):
        pack.main(args=["table", str(path)])
    assert "--label         stars=stars" in capsys.readouterr().out
    with pytest.raises(ConfigError) as raised:
        pack.main(args=[str(path)], standalone_mode=False)
    assert "reviews.csv is a table or a folder. Pack it with: " in str(raised.value)
    assert str(raised.value).endswith(f"furnace pack table --source {path}")
    with pytest.raises(ConfigError, match="--source and --train are both given"):
        pack.main(args=["table", str(path), "--train", str(path)], standalone_mode=False)


def test_paths_with_separators_are_a_list(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("a, b.jpg\nc, d.jpg\n")
    assert read_list(path)["name"].to_list() == ["a, b", "c, d"]


def test_a_folder_with_tables(tmp_path, capsys):
    """They are not used, and a note or an error names them."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "rows.csv").write_text("text,label\na,b\n")
    with pytest.raises(ConfigError) as raised:
        pack.main(args=["table", "--source", str(folder)], standalone_mode=False)
    assert f"images or sounds. Give --source {folder}/rows.csv" in str(raised.value)
    for number in range(12):
        write_image(folder / "ab"[number % 2] / f"{number}.png", number)
    with pytest.raises(SystemExit):
        pack.main(args=["table", "--source", str(folder)])
    shown = capsys.readouterr().out
    assert f"are packed. For its tables give --source {folder}/rows.csv" in shown
    assert "--image         path" in shown


def test_the_length_of_broken_sounds(tmp_path):
    """Empty and missing files are named so, also if they have the ending of another decoder."""
    whole = write_wav(tmp_path / "whole.wav", 1)
    (tmp_path / "empty.mp3").touch()
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 8000)

    def length(name):
        with reading(name):
            return sound_length(Media(str(tmp_path / name), -1, -1, name), None)

    assert length(whole.name) == (0.3, 16_000)
    assert length("none.wav") == (0.0, 8000)
    for name, reason in (("empty.mp3", "empty"), ("away.mp3", "missing")):
        with pytest.raises(Unusable) as raised:
            length(name)
        assert raised.value.reason == reason


def test_an_excel_export_with_empty_rows_and_columns(tmp_path, capsys):
    """UTF-16 with tabs. Quoted cells have tabs, breaks and quotes. Empty rows are refused."""
    lines = ["Frage\tNote\t"]
    lines += [f'"Is it {n}?\tAnd ""so"",\nor not"\t{n % 3}\t' for n in range(60)]
    path = tmp_path / "export.tsv"
    path.write_text("\r\n".join([*lines, "\t\t", "\t\t"]) + "\r\n", encoding="utf-16")
    args = ["table", "--source", str(path), "--yes", "--workers", "1", "--stratify", "Note"]
    args += ["--out", str(tmp_path / "packed")]
    pack.main(args=args, standalone_mode=False)
    shown = capsys.readouterr().out
    assert "label Note: 2 of 62 rows have no value. Such rows are refused" in shown
    assert "packed: 62 rows" in shown
    assert "sample no label 2" in shown
