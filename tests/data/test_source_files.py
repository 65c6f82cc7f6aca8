"""Files that list or hold a whole set are read, or refused with one error that names them."""

import gzip
import json
import os
import socket
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_sets import write_mmimdb, write_mmimdb_hdf5, write_vocab

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.decode.images import ImageKnobs
from furnace_hpc.data.decode.tokenizer import load_tokenizer
from furnace_hpc.data.packing.source_lists import read_json_file
from furnace_hpc.data.sets import avmnist_synthesis
from furnace_hpc.data.sets.audioset_lists import _read_rows
from furnace_hpc.data.sets.avmnist_synthesis import _read_idx, read_digits
from furnace_hpc.data.sets.mmimdb import SPLIT_NAMES, MovieKnobs, read_split
from furnace_hpc.data.sets.mmimdb_hdf5 import plan_hdf5, read_words

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def outcome(read):
    """What `read` returns, or the text of its one error."""
    try:
        return read()
    except ConfigError as error:
        return str(error)


def to_folder(path):
    path.mkdir()


def to_socket(path):
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path.name)


@pytest.mark.parametrize(
    "kind",
    [os.mkfifo, to_folder, to_socket, lambda path: path.symlink_to(path.name)],
    ids=["pipe", "folder", "socket", "loop"],
)
def test_lists_that_are_no_files_are_refused_at_once(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)  # names of sockets must be short
    kind(path := tmp_path / "list")
    for read in (read_json_file, _read_rows, read_split):
        with pytest.raises(ConfigError, match="list"):
            read(path)


def test_a_pipe_as_tokenizer_settings_is_ignored(tmp_path):
    os.mkfifo(write_vocab(tmp_path / "vocab") / "tokenizer_config.json")
    assert load_tokenizer(str(tmp_path / "vocab"), 8).encode("A a")[0].any()


@pytest.mark.fuzz
@given(JSON | st.fixed_dictionaries(dict.fromkeys(SPLIT_NAMES, JSON)))
def test_fuzz_any_split_file_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "split.json"
    path.write_text(json.dumps(content))
    found = outcome(lambda: read_split(path))
    assert isinstance(found, dict) or "split.json" in found


# --- HDF5 of MM-IMDb ---


@pytest.fixture(scope="module")
def hdf5(tmp_path_factory):
    folder = write_mmimdb_hdf5(tmp_path_factory.mktemp("sets") / "hdf5")
    knobs = MovieKnobs(ImageKnobs(size=8), str(write_vocab(folder / "vocab")), 8, "longest")
    return folder / "multimodal_imdb.hdf5", knobs


@pytest.mark.fuzz
@given(
    at=st.floats(0, 1, exclude_max=True),
    new=st.binary(max_size=8) | st.sampled_from([b"\xff" * 8, bytes(8)]),
    drop=st.sampled_from([0, 8, 100]),
)
def test_fuzz_a_damaged_hdf5_is_planned_or_refused(hdf5, tmp_path_factory, at, new, drop):
    """Most damage is near the beginning, which has the tables of the file."""
    path, knobs = hdf5
    content = path.read_bytes()
    place = int(at * 4000)
    damaged = path.with_name("damaged.hdf5")
    damaged.write_bytes(content[:place] + new + content[place + max(drop, len(new)) :])
    found = outcome(lambda: plan_hdf5(damaged, knobs))
    assert not isinstance(found, str) or "damaged.hdf5" in found


@pytest.mark.fuzz
@given(at=st.floats(0, 1, exclude_max=True), new=st.binary(max_size=4), drop=st.integers(0, 9))
def test_fuzz_a_damaged_vocabulary_is_read_or_refused(hdf5, tmp_path_factory, at, new, drop):
    content = (hdf5[0].parent / "metadata.npy").read_bytes()
    place = int(at * len(content))
    folder = tmp_path_factory.getbasetemp()
    (folder / "metadata.npy").write_bytes(content[:place] + new + content[place + drop :])
    read_words.cache_clear()
    found = outcome(lambda: read_words(folder))
    assert isinstance(found, dict) or "metadata" in found


def test_a_wrong_word_id_is_one_error(tmp_path):
    (tmp_path / "metadata.json").write_text('{"ix_to_word": {"one": "a"}}')
    with pytest.raises(ConfigError, match="wrong word id"):
        read_words(tmp_path)


def test_a_folder_in_place_of_the_raw_form(tmp_path):
    raw = write_mmimdb(tmp_path / "raw")
    (raw / "split.json").unlink()
    (raw / "split.json").symlink_to("split.json")
    with pytest.raises(ConfigError, match=r"split\.json cannot be read \(Too many levels"):
        read_split(raw / "split.json")


# --- idx files of MNIST ---


IDX = gzip.compress(struct.pack(">HBB2I", 0, 8, 2, 30, 40) + bytes(range(240)) * 5)


@pytest.mark.fuzz
@given(at=st.floats(0, 1, exclude_max=True), new=st.binary(max_size=4), drop=st.integers(0, 9))
def test_fuzz_a_damaged_idx_file_is_read_or_refused(tmp_path_factory, at, new, drop):
    folder, place = tmp_path_factory.getbasetemp(), int(at * len(IDX))
    (folder / "x.gz").write_bytes(IDX[:place] + new + IDX[place + drop :])
    found = outcome(lambda: _read_idx(folder, "x"))
    assert isinstance(found, np.ndarray) or "x.gz is not an idx file" in found


def test_a_small_file_that_unpacks_to_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(avmnist_synthesis, "_MAX_IDX_BYTES", 1000)
    (tmp_path / "x.gz").write_bytes(IDX)
    with pytest.raises(ConfigError, match="more than 1,000 bytes"):
        _read_idx(tmp_path, "x")


def test_a_damaged_stream_is_one_error(tmp_path):
    """zlib's error is neither an OSError nor a ValueError."""
    damaged = bytearray(IDX)
    damaged[10] |= 6  # a block of a type that does not exist
    (tmp_path / "x.gz").write_bytes(damaged)
    with pytest.raises(zlib.error):
        gzip.decompress(damaged)
    with pytest.raises(ConfigError, match="x.gz is not an idx file"):
        _read_idx(tmp_path, "x")


@pytest.mark.fuzz
@given(JSON | st.fixed_dictionaries({"data": JSON}))
def test_fuzz_digits_in_json_are_read_or_refused(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("digits", numbered=True)
    for digit in range(10):
        (folder / f"{digit}.json").write_text(json.dumps({"data": [0.5] * 784}))
    (folder / "3.json").write_text(json.dumps(content))
    found = outcome(lambda: read_digits(folder, seed=0))
    assert isinstance(found, tuple) or "3.json" in found
