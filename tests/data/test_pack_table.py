"""`furnace pack table`: stored values, splits, folds, leaks, resuming, and the profile page."""

import html
import json

import numpy as np
import polars as pl
import pytest
from table_files import image_bytes, sentence, write_image, write_memes, write_reviews, write_wav

from furnace_hpc import pack
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import origin_of
from furnace_hpc.data.columns import open_columns
from furnace_hpc.data.decode.images import ImageKnobs, read_image
from furnace_hpc.data.decode.word_tokenizer import word_tokenizer
from furnace_hpc.launch.planning.dataset_checks import _check_draws


def run(*arguments: object) -> None:
    """Run the command in this process."""
    pack.main(args=["table", *map(str, arguments)], standalone_mode=False)


def packed(tmp_path, *arguments: object):
    out = tmp_path / "packed"
    run(*arguments, "--out", out, "--workers", 1, "--verify")
    return open_columns(out)


def ids_of(columns, split):
    return [name.decode() for name in columns.split(split)["source_id"]]


def write_csv(tmp_path, rows, name="mine.csv"):
    path = tmp_path / name
    pl.DataFrame(rows).write_csv(path)
    return path


def numbered(tmp_path, count=40, **columns):
    """A table of texts with two classes and more columns."""
    rows = {
        "text": [sentence(number, "even" if number % 2 == 0 else "odd") for number in range(count)],
        "kind": [("even", "odd")[number % 2] for number in range(count)],
    }
    return write_csv(tmp_path, rows | columns)


SPLIT = ("--text", "text", "--label", "kind", "--split", "60/20/20")


def test_texts_and_labels_are_stored(tmp_path):
    """Each row is in one split, and its tokens are its words."""
    path = write_reviews(tmp_path)
    columns = packed(
        *(tmp_path, "--source", path, "--text", "review", "--label", "stars", "--id", "id"),
        *("--split", "80/10/10", "--stratify", "stars"),
    )
    manifest, table = columns.manifest, pl.read_csv(path)
    assert manifest.splits == {"train": 48, "val": 6, "test": 6}
    assert manifest.labels["stars"].classes == ("bad", "good", "mixed")
    tokenizer = word_tokenizer(manifest.preprocessing["draw"]["words"])
    rows = {row["id"]: row for row in table.iter_rows(named=True)}
    seen = []
    for split in manifest.splits:
        found = columns.split(split)
        for number, name in enumerate(ids_of(columns, split)):
            row = rows[name]
            assert manifest.labels["stars"].classes[found["label.stars"][number]] == row["stars"]
            length = found["text_length"][number]
            expected = tokenizer.encode(row["review"]).ids
            assert found["text"][number][:length].tolist() == expected
        seen += ids_of(columns, split)
        assert np.bincount(found["label.stars"]).tolist() == [manifest.splits[split] // 3] * 3
    assert sorted(seen) == sorted(rows)


def test_words_come_from_the_train_split(tmp_path):
    """A word of the test split alone is unknown to the tokenizer."""
    path = write_csv(
        tmp_path,
        {
            "text": ["red red blue"] * 4 + ["green green"] * 2,
            "kind": ["a", "b"] * 3,
            "part": ["train"] * 3 + ["val", "test", "test"],
        },
    )
    columns = packed(
        tmp_path, "--source", path, "--text", "text", "--label", "kind", "--split-column", "part"
    )
    words = columns.manifest.preprocessing["draw"]["words"]
    assert words == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "blue"]
    assert columns.split("test")["text"][0][:4].tolist() == [2, 1, 1, 3]


def test_images_equal_those_of_the_decoder(tmp_path):
    folder = write_memes(tmp_path / "memes")
    files = [
        part
        for split, name in (("train", "train"), ("val", "dev_seen"), ("test", "test_seen"))
        for part in (f"--{split}", folder / f"{name}.jsonl")
    ]
    columns = packed(
        *(tmp_path, *files, "--text", "text", "--image", "img", "--label", "hateful=label"),
        *("--id", "id", "--image-size", 16),
    )
    assert columns.manifest.modalities == ("text", "image")
    assert ids_of(columns, "val")[0] == "1025"
    for split in ("train", "val", "test"):
        found = columns.split(split)
        for number, name in enumerate(ids_of(columns, split)):
            path = folder / "img" / f"{int(name):05}.png"
            expected = read_image(path, ImageKnobs(size=16))
            np.testing.assert_array_equal(found["image"][number], expected)
            assert found["label.hateful"][number] == int(name) % 2


def test_images_inside_parquet_equal_files(tmp_path):
    """Bytes in a table give the pixels that the same file gives."""
    number_of = {"train": 4, "val": 2, "test": 2}
    first = 0
    rows: dict[str, list] = {"inside": [], "path": [], "kind": [], "split": []}
    for split, count in number_of.items():
        for number in range(first, first + count):
            write_image(tmp_path / f"{number}.png", number)
            rows["inside"].append({"bytes": image_bytes(number), "path": f"{number}.png"})
            rows["path"].append(f"{number}.png")
            rows["kind"].append(number % 2)
            rows["split"].append(split)
        first += count
    pl.DataFrame(rows).write_parquet(tmp_path / "mine.parquet")
    stored = []
    for column in ("inside", "path"):
        run(
            *("--source", tmp_path / "mine.parquet", "--image", column, "--label", "kind"),
            *("--split-column", "split", "--image-size", 24, "--out", tmp_path / column),
            *("--workers", 1),
        )
        stored.append(open_columns(tmp_path / column).split("train")["image"])
    np.testing.assert_array_equal(stored[0], stored[1])
    assert len(np.unique(stored[0].reshape(4, -1), axis=0)) == 4


def test_groups_stay_in_one_split(tmp_path):
    path = numbered(tmp_path, 60, speaker=[f"s{number // 4}" for number in range(60)])
    columns = packed(tmp_path, "--source", path, *SPLIT, "--group", "speaker", "--stratify", "kind")
    speakers = {
        split: {(int(name) - 1) // 4 for name in ids_of(columns, split)}
        for split in ("train", "val", "test")
    }
    assert sum(map(len, speakers.values())) == 15
    assert len(set.union(*speakers.values())) == 15


def test_each_row_is_tested_in_one_fold(tmp_path):
    """The folds share their rows, so tables correct for it. A grid takes them as draws."""
    path = numbered(tmp_path, 30)
    run(
        *("--source", path, "--text", "text", "--label", "kind", "--folds", 3),
        *("--stratify", "kind", "--out", tmp_path / "cv", "--workers", 1),
    )
    packs = {f"cv-fold{fold}": open_columns(tmp_path / f"cv-fold{fold}") for fold in range(3)}
    tested = [name for columns in packs.values() for name in ids_of(columns, "test")]
    assert sorted(map(int, tested)) == list(range(1, 31))
    manifests = {name: columns.manifest for name, columns in packs.items()}
    origins = {origin_of(manifest) for manifest in manifests.values()}
    assert len(origins) == 1
    assert origins.pop().test_per_train == 1
    assert len({manifest.vocab_size for manifest in manifests.values()}) == 1
    _check_draws(manifests)


def test_a_file_in_two_splits_stops_the_pack(tmp_path):
    """Equal content under two names. `--allow-leak` records it."""
    for number in range(6):
        write_image(tmp_path / f"{number}.png", min(number, 4))
    path = write_csv(
        tmp_path,
        {
            "image": [f"{number}.png" for number in range(6)],
            "kind": ["a", "b"] * 3,
            "part": ["train", "train", "val", "val", "train", "test"],
        },
    )
    options = (
        *("--source", path, "--image", "image", "--label", "kind", "--split-column", "part"),
        *("--image-size", 16),
    )
    with pytest.raises(ConfigError) as raised:
        packed(tmp_path, *options)
    assert "one file is in train (row 5, 4.png) and test (row 6, 5.png)" in str(raised.value)
    assert not (tmp_path / "packed").exists()
    assert not list(tmp_path.glob(".packed*"))
    manifest = packed(tmp_path, *options, "--allow-leak").manifest
    assert manifest.preprocessing["leak"] == {"image files": 1}
    assert origin_of(manifest).leak == "1 image file"


def test_a_group_in_two_splits_names_rows(tmp_path):
    path = numbered(tmp_path, 6, part=["train"] * 3 + ["val"] * 2 + ["test"], who=list("aabbcd"))
    options = ("--text", "text", "--label", "kind", "--split-column", "part", "--group", "who")
    with pytest.raises(ConfigError, match=r"group 'b' is in train \(row 3\) and val \(row 4\)"):
        packed(tmp_path, "--source", path, *options)


def test_several_labels_per_row(tmp_path):
    genres = ["drama|war", "war", "comedy | drama", "comedy", "war|comedy", "drama"] * 2
    path = numbered(tmp_path, 12, genre=genres)
    columns = packed(
        *(tmp_path, "--source", path, "--text", "text", "--label", "genres=genre:multi_label"),
        *("--split", "50/25/25"),
    )
    labels = columns.manifest.labels["genres"]
    assert (labels.kind, labels.classes) == ("multi_label", ("comedy", "drama", "war"))
    for split in ("train", "val", "test"):
        for name, stored in zip(
            ids_of(columns, split), columns.split(split)["label.genres"], strict=True
        ):
            cell = genres[int(name) - 1]
            assert stored.tolist() == [kind in cell for kind in labels.classes]


def test_lists_in_json_lines_are_labels(tmp_path):
    rows = [
        {"text": sentence(number, "x"), "tags": [["a"], ["a", "b"], []][number % 3]}
        for number in range(12)
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    columns = packed(
        *(tmp_path, "--source", path, "--text", "text", "--label", "tags:multi_label"),
        *("--split", "50/25/25"),
    )
    stored = {
        int(name): row.tolist()
        for split in ("train", "val", "test")
        for name, row in zip(
            ids_of(columns, split), columns.split(split)["label.tags"], strict=True
        )
    }
    assert [stored[row] for row in (1, 2, 3)] == [[1, 0], [1, 1], [0, 0]]


def test_an_empty_cell_is_an_absent_modality(tmp_path):
    write_wav(tmp_path / "a.wav", 1)
    sounds = ["a.wav" if number == 0 else None for number in range(10)]
    path = numbered(tmp_path, 10, sound=sounds, part=["train"] * 6 + ["val"] * 2 + ["test"] * 2)
    columns = packed(
        *(tmp_path, "--source", path, "--text", "text", "--audio", "sound", "--label", "kind"),
        *("--split-column", "part", "--audio-seconds", 0.5),
    )
    assert columns.split("train")["present"].tolist() == [[1, 1]] + [[1, 0]] * 5
    assert columns.split("train")["audio_length"][0] == 31
    assert columns.manifest.counts["train"]["incomplete"] == 0


def test_missing_files_are_refused(tmp_path, capsys):
    """A missing file counts for --max-refused before packing, a broken one while packing."""
    for number in range(18):
        write_image(tmp_path / f"{number}.png", number)
    (tmp_path / "18.png").write_bytes(image_bytes(18)[:200])
    path = numbered(tmp_path, 20, image=[f"{number}.png" for number in range(20)])
    options = ("--source", path, "--image", "image", "--image-size", 16, *SPLIT[2:])
    lost = "1 of the first 20 image files is missing, such as '19.png' of row 20"
    with pytest.raises(ConfigError) as raised:
        packed(tmp_path, *options, "--max-refused", 0.01)
    assert str(raised.value).startswith(f"{lost} (--max-refused is 1.0%). Fix the paths")
    assert str(raised.value).endswith("accept them with --max-refused 0.06")
    assert [file.suffix for file in tmp_path.iterdir() if "packed" in file.name] == []
    capsys.readouterr()
    with pytest.raises(ConfigError, match=r"--max-refused is 6\.0%\): image missing 1"):
        packed(tmp_path, *options, "--max-refused", 0.06)
    assert f"warning: {lost}\n" in capsys.readouterr().out
    assert (tmp_path / "packed.packing").is_dir()
    resumed = packed(tmp_path, *options, "--max-refused", 0.1)
    run(*options, "--max-refused", 0.1, "--out", tmp_path / "fresh", "--workers", 1)
    assert open_columns(tmp_path / "fresh").manifest.files == resumed.manifest.files
    lines = (tmp_path / "packed" / "refused.jsonl").read_text().splitlines()
    refused = {entry["file"]: entry["reason"] for entry in map(json.loads, lines)}
    assert refused.pop("18.png") in ("truncated", "unreadable")
    lost_ = ("mine.csv:19", "mine.csv:20")
    assert refused == {"19.png": "missing"} | dict.fromkeys(lost_, "nothing left")


def test_workers_do_not_change_the_pack(tmp_path):
    path = numbered(tmp_path, 3000)
    hashes = []
    for workers in (1, 3):
        out = tmp_path / f"w{workers}"
        run("--source", path, *SPLIT, "--out", out, "--workers", workers)
        hashes.append(open_columns(out).manifest.files)
    assert hashes[0] == hashes[1]


def test_the_same_options_do_nothing(tmp_path, capsys):
    path = numbered(tmp_path)
    packed(tmp_path, "--source", path, *SPLIT)
    capsys.readouterr()
    packed(tmp_path, "--source", path, *SPLIT)
    assert "already packed with these settings" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="other settings"):
        packed(tmp_path, "--source", path, *SPLIT, "--seed", 1)


def test_weights_are_the_sampling_weights(tmp_path):
    """Decimal commas are read as numbers."""
    path = tmp_path / "mine.csv"
    lines = [f"{sentence(n, 'x')};{'ab'[n % 2]};{n},5" for n in range(12)]
    path.write_text("\ufeff" + "\n".join(["text;kind;weight", *lines]))
    columns = packed(tmp_path, "--source", path, *SPLIT, "--weight", "weight")
    found = columns.split("train")
    expected = [int(name) - 0.5 for name in ids_of(columns, "train")]
    assert found["sampling_weight"].tolist() == expected


def test_the_page_escapes_the_table(tmp_path):
    path = numbered(tmp_path, 20, note=["<script>alert(1)</script>"] * 20)
    packed(tmp_path, "--source", path, *SPLIT, "--text", "note")
    page = (tmp_path / "packed" / "profile.html").read_text()
    assert html.escape("<script>alert(1)</script>") in page
    assert "<script" not in page
    assert page.count("class=sample") == 10
    assert "src=" not in page.replace('src="data:', "")


def test_a_determined_label_is_reported(tmp_path, capsys):
    scores = [("-1.5", "2,25")[number % 2] for number in range(40)]
    path = numbered(tmp_path, 40, score=scores, other=[str(number % 7) for number in range(40)])
    packed(tmp_path, "--source", path, *SPLIT)
    shown = capsys.readouterr().out
    assert "column 'score' determines label kind" in shown
    assert "column 'other'" not in shown


def test_texts_in_two_splits_are_counted(tmp_path, capsys):
    """Three equal texts, and two that differ in case, digits and punctuation."""
    texts = [f"{word} is a word of row {word} here" for word in "abcdefghij"]
    texts += ["one two three four five six"] * 3
    texts += ["Seven eight nine, ten eleven twelve 1!", "seven EIGHT nine ten eleven twelve 2"]
    path = write_csv(
        tmp_path,
        {
            "text": texts,
            "kind": ["a", "b", "a"] * 5,
            "part": ["train"] * 8 + ["val", "test", "train", "train", "test", "train", "val"],
        },
    )
    packed(
        tmp_path, "--source", path, "--text", "text", "--label", "kind", "--split-column", "part"
    )
    shown = capsys.readouterr().out
    assert "warning: 3 rows have a text that is also in another split" in shown
    assert "warning: 5 rows have a text of which half is also in another split" in shown


def test_the_guess_is_printed_and_stops(tmp_path, capsys, monkeypatch):
    """With the command line to run. `--yes` packs."""
    path = write_reviews(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["furnace", "pack", "table", "--source", str(path)])
    with pytest.raises(SystemExit) as stopped:
        pack.main(args=["table", "--source", str(path)])
    assert stopped.value.code == 2
    shown = capsys.readouterr().out
    command = (
        f"furnace pack table --source {path} --text review --id id --label stars=stars "
        "--split 80/10/10 --stratify stars"
    )
    assert command in shown
    assert shown.count(" | review: ") == 3
    assert not (tmp_path / "data" / "reviews").exists()
    run("--source", path, "--yes", "--workers", 1)
    assert open_columns(tmp_path / "data" / "reviews").manifest.labels["stars"].classes


def test_a_class_like_a_missing_value_is_named(tmp_path, capsys):
    """Joined spellings lose their spaces."""
    path = numbered(tmp_path, 30, kind=["Cat ", "N/A", "cat"] * 10)
    options = ("--text", "text", "--label", "kind", "--split", "80/10/10", "--merge-labels")
    manifest = packed(tmp_path, "--source", path, *options).manifest
    assert sorted(manifest.labels["kind"].classes) == ["Cat", "N/A"]
    assert "the class 'N/A' looks like a missing value" in capsys.readouterr().out
