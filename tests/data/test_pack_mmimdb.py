"""MM-IMDb from its two published forms."""

import json
import pickle

import h5py
import numpy as np
import pytest
from raw_sets import (
    MOVIES,
    SPLIT,
    VOCAB,
    genres_of,
    marker_of,
    write_mmimdb,
    write_mmimdb_hdf5,
    write_vocab,
)

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.columns import open_columns
from furnace_hpc.data.decode.images import ImageKnobs
from furnace_hpc.data.decode.tokenizer import load_tokenizer
from furnace_hpc.data.packing.pack import pack_files
from furnace_hpc.data.packing.rejects import Unusable
from furnace_hpc.data.sets.mmimdb import GENRES, MovieKnobs, choose_plot, plan_raw, read_split
from furnace_hpc.data.sets.mmimdb_hdf5 import plan_hdf5, read_words


@pytest.fixture(scope="module")
def vocab(tmp_path_factory) -> str:
    return str(write_vocab(tmp_path_factory.mktemp("vocab")))


@pytest.fixture(scope="module")
def knobs(vocab) -> MovieKnobs:
    return MovieKnobs(ImageKnobs(size=32), vocab, 24, "longest")


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_mmimdb(tmp_path_factory.mktemp("sets") / "raw")


def packed(plan, out):
    pack_files(plan, out, lambda *_: None, workers=1, max_refused=0.05, force=False)
    return open_columns(out, verify=True)


def letters(columns, row: int) -> int:
    """The number of words "b" in a packed plot."""
    return int((columns["text"][row] == VOCAB.index("b")).sum())


def test_both_forms_give_the_same_movies(tmp_path, raw, knobs):
    hdf5 = write_mmimdb_hdf5(tmp_path / "hdf5")
    first = packed(plan_raw(raw, knobs), tmp_path / "a")
    second = packed(plan_hdf5(hdf5 / "multimodal_imdb.hdf5", knobs), tmp_path / "b")
    assert first.manifest.splits == second.manifest.splits == {"train": 6, "val": 2, "test": 4}
    assert first.manifest.labels == second.manifest.labels
    assert first.manifest.labels["genres"].kind == "multi_label"
    for split in first.manifest.splits:
        a, b = first.split(split), second.split(split)
        np.testing.assert_array_equal(a["source_id"], b["source_id"])
        np.testing.assert_array_equal(a["label.genres"], b["label.genres"])
        for row, movie in enumerate(a["source_id"]):
            number = MOVIES.index(movie.decode())
            assert a["sample_id"][row] == number
            # grey and CMYK too
            assert marker_of(a["image"][row]) == marker_of(b["image"][row]) == number
            assert letters(b, row) == number
            # movie 3's longest plot is another
            assert letters(a, row) == (0 if number == 3 else number)
            assert {GENRES[i] for i in np.flatnonzero(a["label.genres"][row])} == set(
                genres_of(number)
            )
        assert (a["present"] == 1).all()
    assert a["image"].dtype == np.uint8
    assert a["image"].shape == (4, 3, 32, 32)


def test_statistics_are_of_the_train_split(tmp_path, raw, knobs):
    columns = packed(plan_raw(raw, knobs), tmp_path / "set")
    train = columns.split("train")["image"].astype(np.float64)
    np.testing.assert_allclose(
        columns.manifest.statistics["image"].mean, train.mean((0, 2, 3)), rtol=1e-12
    )
    np.testing.assert_allclose(
        columns.manifest.statistics["image"].std, train.std((0, 2, 3)), rtol=1e-9
    )


def test_the_split_of_split_json(tmp_path, knobs):
    hdf5 = write_mmimdb_hdf5(tmp_path / "hdf5", fuel=False, metadata="json")
    plan = plan_hdf5(hdf5 / "multimodal_imdb.hdf5", knobs)
    assert {split: [movie for movie, _ in rows] for split, rows in plan.rows.items()} == {
        "train": SPLIT["train"],
        "val": SPLIT["dev"],
        "test": SPLIT["test"],
    }


def test_fuels_index_references_are_followed(tmp_path, knobs):
    hdf5 = write_mmimdb_hdf5(tmp_path / "hdf5") / "multimodal_imdb.hdf5"
    with h5py.File(hdf5, "a") as file:
        split = file.attrs["split"]
        file["picked"] = np.array([9, 2, 3])
        for entry in split:
            if entry["split"] == b"train":
                entry["indices"] = file["picked"].ref
            if entry["split"] == b"test":
                entry["start"] = 10
        del file.attrs["split"]
        file.attrs["split"] = split
    rows = plan_hdf5(hdf5, knobs).rows
    assert [row for _, row in rows["train"]] == [9, 2, 3]
    assert [row for _, row in rows["test"]] == [10, 11]


def test_missing_posters_plots_and_genres(tmp_path, knobs):
    """A missing poster or plot loses its modality, a missing genre loses the movie."""
    raw = write_mmimdb(tmp_path / "raw")
    dataset = raw / "dataset"
    poster = dataset / f"{MOVIES[0]}.jpeg"
    poster.write_bytes(poster.read_bytes()[:300])
    (dataset / f"{MOVIES[1]}.jpeg").write_bytes(b"")
    (dataset / f"{MOVIES[7]}.jpeg").unlink()
    rewrite(dataset / f"{MOVIES[8]}.json", plot=[], **{"plot outline": None})
    rewrite(dataset / f"{MOVIES[9]}.json", genres=["News"])
    (dataset / f"{MOVIES[10]}.json").write_text("{")
    plan = plan_raw(raw, knobs)
    manifest, _ = pack_files(
        plan, tmp_path / "set", lambda *_: None, workers=1, max_refused=0.6, force=False
    )
    columns = open_columns(tmp_path / "set", verify=True)
    train, test = columns.split("train"), columns.split("test")
    assert train["present"][:3].tolist() == [[1, 0], [1, 0], [1, 1]]
    assert not train["image"][0].any()
    assert columns.split("val")["present"].tolist() == [[1, 1], [1, 0]]
    assert [movie.decode() for movie in test["source_id"]] == [MOVIES[8], MOVIES[11]]
    assert test["present"].tolist() == [[0, 1], [1, 1]]
    assert manifest.counts["test"] == {
        "listed": 4,
        "found": 4,
        "packed": 2,
        "refused": 2,
        "incomplete": 1,
    }
    lines = [
        json.loads(line) for line in (tmp_path / "set" / "refused.jsonl").read_text().splitlines()
    ]
    found = [(line["sample"], line["modality"], line["reason"], line["kept"]) for line in lines]
    assert found == [
        (MOVIES[0], "image", "truncated", True),
        (MOVIES[1], "image", "empty", True),
        (MOVIES[7], "image", "missing", True),
        (MOVIES[8], "text", "missing", True),
        (MOVIES[9], None, "no label", False),
        (MOVIES[10], None, "unreadable", False),  # one line, although it has no label either
    ]
    assert lines[0]["file"] == f"dataset/{MOVIES[0]}.jpeg"
    where = columns.manifest.statistics["image"].mean[0]
    seen = train["image"][train["present"][:, 1] == 1]
    assert where == pytest.approx(seen[:, 0].mean(), rel=1e-12)  # absent posters are not black ones


def test_a_movie_with_genres_only_is_refused(tmp_path, knobs):
    raw = write_mmimdb(tmp_path / "raw")
    (raw / "dataset" / f"{MOVIES[0]}.jpeg").unlink()
    rewrite(raw / "dataset" / f"{MOVIES[0]}.json", plot=[], **{"plot outline": None})
    sample = plan_raw(raw, knobs).render("train", MOVIES[0])
    assert sample.values is None
    found = [(refusal.modality, refusal.reason, refusal.kept) for refusal in sample.refusals]
    assert found == [
        ("image", "missing", False),
        ("text", "missing", False),
        (None, "nothing left", False),
    ]


def rewrite(path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_chosen_plot():
    entry = {"plot": ["short", "the longest of them", ""], "plot outline": "outline"}
    assert choose_plot(entry, "longest") == "the longest of them"
    assert choose_plot(entry, "first") == "short"
    assert choose_plot(entry, "joined") == "short\nthe longest of them"
    assert choose_plot({"plot outline": "outline"}, "first") == "outline"
    with pytest.raises(Unusable, match="no plot"):
        choose_plot({"plot": [" "]}, "longest")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": [], "dev": []}, "wanted an object with the keys train, dev, test"),
        (
            {"train": ["0000001"], "dev": ["0000001"], "test": []},
            "'0000001' is in train and again in dev",
        ),
        (
            {"train": ["0000001", "0000001"], "dev": [], "test": []},
            "'0000001' is in train and again in train",
        ),
        (
            {"train": [1], "dev": [], "test": []},
            "train holds 1, wanted IMDb ids of 7 digits in quotes",
        ),
    ],
)
def test_a_wrong_split_file_is_an_error(tmp_path, content, message):
    (tmp_path / "split.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        read_split(tmp_path / "split.json")


@pytest.mark.parametrize(
    "genres", [["Drama", "Cooking"], [["Drama"]], [{"a": 1}], [None], ["x" * 10_000]]
)
def test_a_movie_with_an_unknown_genre_is_refused(tmp_path, knobs, genres):
    raw = write_mmimdb(tmp_path / "raw")
    rewrite(raw / "dataset" / f"{MOVIES[2]}.json", genres=genres)
    sample = plan_raw(raw, knobs).render("train", MOVIES[2])
    [refusal] = sample.refusals
    assert sample.values is None
    assert (refusal.file, refusal.reason) == (f"dataset/{MOVIES[2]}.json", "no label")
    assert "is not one of MM-IMDb's" in refusal.detail
    assert len(refusal.detail) < 80


def test_an_hdf5_file_of_another_kind_is_refused(tmp_path, knobs):
    folder = write_mmimdb_hdf5(tmp_path / "hdf5")
    path = folder / "multimodal_imdb.hdf5"
    with h5py.File(path, "a") as file:
        file["genres"].attrs["target_names"] = json.dumps(GENRES[::-1])
    with pytest.raises(ConfigError, match="got 'Film-Noir', wanted 'Drama'"):
        plan_hdf5(path, knobs)
    with h5py.File(path, "a") as file:
        file["genres"].attrs["target_names"] = json.dumps(GENRES)
        ids = file["imdb_ids"][:].astype("S8")
        ids[3] = b"10872600"
        del file["imdb_ids"]
        file["imdb_ids"] = ids
    with pytest.raises(
        ConfigError, match="row 3 of imdb_ids is '10872600', wanted IMDb ids of 7 digits"
    ):
        plan_hdf5(path, knobs)
    with h5py.File(path, "a") as file:
        del file["images"]
    with pytest.raises(ConfigError, match="has no data set 'images'"):
        plan_hdf5(path, knobs)
    path.write_bytes(b"no HDF5")
    with pytest.raises(ConfigError, match="cannot be read as HDF5"):
        plan_hdf5(path, knobs)


class Harm:
    def __reduce__(self):
        return print, ("a pickle ran",)


def test_a_pickle_with_code_is_refused(tmp_path, capsys):
    write_mmimdb_hdf5(tmp_path / "good")
    assert read_words(tmp_path / "good")[3] == "letter"
    (tmp_path / "bad").mkdir()
    np.save(
        tmp_path / "bad" / "metadata.npy",
        np.array({"ix_to_word": Harm()}, dtype=object),
        allow_pickle=True,
    )
    assert pickle.loads(pickle.dumps(Harm())) is None
    capsys.readouterr()
    with pytest.raises(ConfigError, match=r"it contains builtins\.print"):
        read_words(tmp_path / "bad")
    assert capsys.readouterr().out == ""


def test_tokens_equal_those_of_transformers(vocab):
    from transformers import BertTokenizer

    theirs = BertTokenizer(f"{vocab}/vocab.txt")
    ours = load_tokenizer(vocab, 12)
    for text in ("The detective finds a LETTER.", "Détective cafés, 東京", "", "a " * 40):
        ids, length = ours.encode(text)
        wanted = theirs(text, truncation=True, max_length=12, padding="max_length")
        assert ids.tolist() == wanted["input_ids"]
        assert length == sum(wanted["attention_mask"])
    assert ours.vocab_size == len(VOCAB)


def test_a_missing_tokenizer_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ConfigError,
        match=r"neither a folder nor in the hub's cache here: .*`hf download some/model ",
    ):
        load_tokenizer("some/model", 12)
    with pytest.raises(ConfigError, match=r"has neither tokenizer\.json nor vocab\.txt"):
        load_tokenizer(str(tmp_path), 12)
