"""AV-MNIST: the variants of the published layout, and the set made by `--make`."""

import gzip
import json
import shutil
import struct

import numpy as np
import pytest
from raw_sets import write_avmnist
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from furnace_hpc import pack
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.columns import open_columns
from furnace_hpc.data.packing.pack import pack_files
from furnace_hpc.data.sets.avmnist import plan_avmnist
from furnace_hpc.data.sets.avmnist_synthesis import (
    MakeKnobs,
    is_made,
    make_avmnist,
    read_digits,
    reduce_images,
)


def ignore(what: str, done: int, total: int) -> None:
    assert 0 <= done <= total, what


def packed(source, out, max_refused=0.0):
    pack_files(plan_avmnist(source), out, ignore, workers=1, max_refused=max_refused, force=False)
    return open_columns(out, verify=True)


@pytest.mark.parametrize(("dtype", "folder"), [(np.uint8, "image"), (np.float64, "images")])
def test_rows_stay_together(tmp_path, dtype, folder):
    """In both types of arrays and with both folder names."""
    source = write_avmnist(tmp_path / "raw", dtype, folder)
    columns = packed(source, tmp_path / "set")
    assert columns.manifest.splits == {"train": 55, "val": 5, "test": 20}
    stored = np.uint8 if dtype is np.uint8 else np.float16
    for split, part in (("train", "train"), ("val", "train"), ("test", "test")):
        found = columns.split(split)
        rows = [int(name.decode().split("/")[1]) for name in found["source_id"]]
        assert rows == list(range(55, 60) if split == "val" else range(len(rows)))
        np.testing.assert_array_equal(found["label.digit"] * 10, found["image"][:, 0, 0, 0])
        np.testing.assert_array_equal(found["label.digit"] * 10, found["audio"][:, 0, 0])
        raw = np.load(source / folder / f"{part}_data.npy")[rows].reshape(-1, 1, 28, 28)
        np.testing.assert_array_equal(found["image"], raw.astype(stored))
        np.testing.assert_array_equal(
            found["audio"], np.load(source / "audio" / f"{part}_data.npy")[rows].astype(stored)
        )
        assert found["image"].dtype == found["audio"].dtype == stored
        assert (found["audio_length"] == 112).all()
    assert set(columns.split("train")["label.digit"].tolist()) == set(range(10))


def test_sixty_thousand_rows_give_the_published_split(tmp_path):
    source = tmp_path / "raw"
    for name in ("image", "audio"):
        (source / name).mkdir(parents=True)
    for part, num_rows in (("train", 60_000), ("test", 10_000)):
        for name, shape in (("image", (num_rows, 784)), ("audio", (num_rows, 112, 112))):
            # holes take no room
            np.lib.format.open_memmap(source / name / f"{part}_data.npy", "w+", np.uint8, shape)
        np.save(source / f"{part}_labels.npy", np.arange(num_rows) % 10)
    rows = plan_avmnist(source).rows
    assert {split: len(listed) for split, listed in rows.items()} == {
        "train": 55_000,
        "val": 5_000,
        "test": 10_000,
    }
    assert rows["val"][0] == ("train", 55_000)


def test_ids_of_a_larger_set_are_not_cut(tmp_path):
    source, num_rows = tmp_path / "raw", 100_001
    for name in ("image", "audio"):
        (source / name).mkdir(parents=True)
    for part, size in (("train", num_rows), ("test", 10)):
        for name, shape in (("image", (size, 784)), ("audio", (size, 2, 2))):
            np.lib.format.open_memmap(source / name / f"{part}_data.npy", "w+", np.uint8, shape)
        np.save(source / f"{part}_labels.npy", np.arange(size) % 10)
    plan = plan_avmnist(source)
    sample = plan.render("val", ("train", num_rows - 1))
    assert sample.values["source_id"].item() == b"train/100000"


def test_values_that_are_not_finite_are_refused(tmp_path):
    source = write_avmnist(tmp_path / "raw", np.float32)
    audio = np.load(source / "audio" / "train_data.npy")
    audio[3, 5, 5] = np.nan
    audio[4, 5, 5] = 1e9
    np.save(source / "audio" / "train_data.npy", audio)
    train = packed(source, tmp_path / "set", max_refused=0.05).split("train")
    assert train["present"][2:6].tolist() == [[1, 1], [1, 0], [1, 0], [1, 1]]
    lines = (tmp_path / "set" / "refused.jsonl").read_text().splitlines()
    assert [json.loads(line)["file"] for line in lines] == [
        "audio/train_data.npy[3]",
        "audio/train_data.npy[4]",
    ]
    assert [json.loads(line)["reason"] for line in lines] == ["not finite", "unreadable"]


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("train_labels", np.arange(60), "row 10 is 10, wanted a digit 0 to 9"),
        (
            "train_labels",
            np.zeros(59),
            r"train images are \(60, 784\), .* labels \(59,\): wanted equal lengths",
        ),
        ("image/test_data", np.zeros((20, 783)), r"has shape \(20, 783\), wanted \[N, 784\]"),
        ("audio/test_data", np.zeros((20, 112)), r"has shape \(20, 112\), wanted \[N, 112, 112\]"),
        (
            "audio/test_data",
            np.zeros((20, 112, 100)),
            r"audio is \(60, 112, 112\) in train and \(20, 112, 100\)",
        ),
        ("image/test_data", np.array([{}]), "is not an npy file"),
        (
            "test_labels",
            None,
            r"test_labels\.npy is missing: check --source, or make the set with --make",
        ),
    ],
)
def test_wrong_arrays_are_errors(tmp_path, name, array, message):
    source = write_avmnist(tmp_path / "raw")
    if array is None:
        (source / f"{name}.npy").unlink()
    else:
        np.save(source / f"{name}.npy", array, allow_pickle=True)
    with pytest.raises(ConfigError, match=message):
        plan_avmnist(source)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "avmnist"
    make_avmnist(folder, None, MakeKnobs(seed=1, components=5, snr_db=10.0, speech="bank"), ignore)
    return folder


@pytest.mark.slow
def test_the_made_set_pairs_sound_and_label(made, tmp_path):
    columns = packed(made, tmp_path / "set")
    card = columns.manifest.preprocessing["made_by"]
    assert (card["components"], card["speech"], card["seed"]) == (5, "bank", 1)
    assert 0.5 < card["cumulative_energy"] < 0.7
    assert sum(columns.manifest.splits.values()) == 1797
    train, test = columns.split("train"), columns.split("test")
    assert train["audio"].dtype == np.uint8
    assert train["image"].shape[1:] == (1, 28, 28)
    assert train["audio"].shape[1:] == (112, 112)
    coarse = [
        part["audio"].reshape(-1, 28, 4, 14, 8).mean((2, 4)).reshape(len(part["audio"]), -1) / 255
        for part in (train, test)
    ]
    model = LogisticRegression(max_iter=200).fit(coarse[0], train["label.digit"])
    score = model.score(coarse[1], test["label.digit"])
    rolled = model.score(coarse[1], np.roll(test["label.digit"], 1))
    assert score > 0.3  # on new voices and times. Chance is 0.1.
    assert rolled < 0.2  # as with labels that do not match, the error of the published copies


@pytest.mark.slow
def test_a_set_is_made_once_per_options(made, tmp_path):
    """The same options use the existing set, and other options are an error."""
    again = tmp_path / "again"
    options = {"seed": 1, "components": 5, "snr_db": 10.0, "speech": "bank", "workers": 1}
    pack.avmnist(again, tmp_path / "set", make=True, **options)
    card = json.loads((again / "avmnist.json").read_text())
    assert open_columns(tmp_path / "set").manifest.preprocessing["made_by"] == card
    times = {path: path.stat().st_mtime_ns for path in again.rglob("*")}
    pack.avmnist(again, tmp_path / "set", make=True, **options)
    assert {path: path.stat().st_mtime_ns for path in again.rglob("*")} == times
    with pytest.raises(
        ConfigError, match="holds a set that was made with components 5, wanted 4: choose another"
    ):
        pack.avmnist(again, tmp_path / "set", make=True, **options | {"components": 4})
    names = [path.relative_to(made) for path in made.rglob("*.*")]
    assert len(names) == 7
    for name in names:
        assert (made / name).read_bytes() == (again / name).read_bytes(), name


def test_only_unfinished_arrays_are_overwritten(tmp_path):
    source = write_avmnist(tmp_path / "raw")
    knobs = MakeKnobs(seed=1, components=5, snr_db=10.0, speech="bank")
    before = {path: path.read_bytes() for path in source.rglob("*.npy")}
    with pytest.raises(
        ConfigError,
        match=r"--make would overwrite .*\.npy, which it did not make: choose another",
    ):
        pack.avmnist(source, tmp_path / "set", make=True, speech="bank")
    assert {path: path.read_bytes() for path in source.rglob("*.npy")} == before
    (source / "avmnist.json.part").touch()  # left by a killed command
    assert not is_made(source, knobs)
    assert not is_made(tmp_path / "nowhere", knobs)


def test_components_keep_the_recorded_energy():
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(3, 784))
    train = np.clip(rng.normal(size=(300, 3)) @ basis * 10 + 128, 0, 255).astype(np.uint8)
    all_of_it, energy = reduce_images(train, train[:10], 784)
    assert energy == pytest.approx(1.0)
    np.testing.assert_allclose(all_of_it["test"], train[:10], atol=1e-3)
    three, energy = reduce_images(train, train[:10], 3)
    residual = ((three["train"] - train) ** 2).sum() / ((train - train.mean(0)) ** 2).sum()
    assert 1 - energy == pytest.approx(residual, rel=1e-3)


def test_mnists_own_files_are_read(tmp_path):
    bunch = load_digits()
    images = np.kron(bunch.images[:70] * 15, np.ones((3, 3)))
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2))).astype(np.uint8)
    for part, rows in (("train", slice(0, 60)), ("t10k", slice(60, 70))):
        pixels, labels = padded[rows], bunch.target[rows].astype(np.uint8)
        header = struct.pack(">HBB3I", 0, 8, 3, *pixels.shape)
        with gzip.open(tmp_path / f"{part}-images-idx3-ubyte.gz", "wb") as file:
            file.write(header + pixels.tobytes())
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">HBBI", 0, 8, 1, len(labels)) + labels.tobytes()
        )
    digits, origin = read_digits(tmp_path, seed=0)
    np.testing.assert_array_equal(digits["train"][0], padded[:60].reshape(60, 784))
    np.testing.assert_array_equal(digits["test"][1], bunch.target[60:70])
    assert origin == "MNIST, idx files"
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="is not an idx file"):
        read_digits(tmp_path, seed=0)
    shutil.rmtree(tmp_path)
    with pytest.raises(
        ConfigError,
        match=r"has neither MNIST's train-images-idx3-ubyte\(.gz\) nor 0.json to 9.json",
    ):
        read_digits(tmp_path, seed=0)
