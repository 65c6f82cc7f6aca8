"""Prediction and packing turn raw files into the same values, for each data set."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from audioset_study import CSV, KNOBS
from PIL import Image
from raw_sets import CLIPS, SPLIT, write_audioset, write_avmnist
from use_study import exported, packed, packed_movies, tridigits_model, tridigits_samples  # noqa: F401  fixtures

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.columns import open_columns
from furnace_hpc.data.sets.audioset import plan_audioset
from furnace_hpc.data.sets.avmnist import plan_avmnist
from furnace_hpc.data.sets.mmimdb import choose_plot
from furnace_hpc.data.sets.tridigits.plan import VOCAB, encode
from furnace_hpc.inference import Predictor
from furnace_hpc.inference.export_check import stored_row
from furnace_hpc.inference.preprocess import make_tokenizer


def test_tridigits_files_give_packed_values(model: Path, samples: Path, small_data: Path):
    predictor, columns = Predictor.load(model, "cpu"), open_columns(small_data).split("test")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(lines) == 3
    for row, line in enumerate(lines):
        files = {name: samples.parent / line[name] for name in ("image", "audio")}
        values = predictor.read({"text": line["text"]} | files)
        wanted = stored_row(predictor, columns, row)
        assert line["id"] == f"{columns['sample_id'][row]}-digit-{columns['label.digit'][row]}"
        assert (samples.parent / f"{line['id']}.txt").read_text() == line["text"] + "\n"
        for name in ("text", "text_length", "image", "audio_length", "present"):
            assert np.array_equal(values[name], wanted[name]), name
        # the step of float16 at 256
        assert np.abs(values["audio"].astype(np.float32) - wanted["audio"]).max() <= 0.25
        logits, same = (predictor.logits([v])["digit"] for v in (values, wanted))
        assert torch.allclose(logits, same, atol=1e-3)


def test_tridigits_words_give_packed_ids(small_data: Path):
    reader = make_tokenizer(open_columns(small_data).manifest, None)
    for text in (
        "my guess would be odd and prime",
        "the number is even",
        "xyzzy even",
        " ".join(VOCAB[4:9]),
    ):
        ids, length = reader.encode(text)
        assert ids[:length].tolist() == encode(text)
        assert set(ids[length:].tolist()) <= {0}
    assert np.array_equal(reader.encode("It is EVEN")[0], reader.encode("it is even")[0])
    assert reader.encode("even " * 100)[1] == reader.max_tokens


def test_posters_and_plots_give_the_packed_values(movies: Path):
    predictor = Predictor.load(movies / "model", "cpu")
    columns = open_columns(movies / "data").split("test")
    for row, movie in enumerate(SPLIT["test"]):
        plot = choose_plot(
            json.loads((movies / "raw" / "dataset" / f"{movie}.json").read_text()), "longest"
        )
        values = predictor.read(
            {"text": plot, "image": movies / "raw" / "dataset" / f"{movie}.jpeg"}
        )
        wanted = stored_row(predictor, columns, row)
        assert all(
            np.array_equal(values[name], wanted[name]) for name in ("text", "text_length", "image")
        )


def test_frames_and_sounds_give_the_packed_values(tmp_path: Path):
    source = write_audioset(tmp_path / "raw")
    data = packed(
        plan_audioset(source, CSV, source / "audio", source / "frames", KNOBS), tmp_path / "data"
    )
    tasks, modalities = [{"name": "classes", "kind": "multi_label"}], ["image", "audio"]
    predictor = Predictor.load(
        exported(tmp_path, data, tasks=tasks, model__modalities=modalities), "cpu"
    )
    columns = open_columns(data).split("test")
    clip = columns["source_id"][0].decode()
    frame = source / "frames" / "frame_5" / f"{clip}.jpg"
    sound = next((source / "audio").glob(f"{clip}.*"))
    values = predictor.read({"image": frame, "audio": sound})
    wanted = stored_row(predictor, columns, 0)
    assert clip in CLIPS
    for name in ("image", "audio", "audio_length"):
        assert np.array_equal(values[name], wanted[name]), name


def test_pack_of_arrays_takes_arrays_only(tmp_path: Path):
    data = packed(plan_avmnist(write_avmnist(tmp_path / "raw")), tmp_path / "data")
    predictor = Predictor.load(
        exported(tmp_path, data, model__modalities=["image", "audio"]), "cpu"
    )
    sound = np.asarray(open_columns(data).split("test")["audio"][3])
    np.save(tmp_path / "sound.npy", sound)
    by_file = predictor.predict(audio=tmp_path / "sound.npy")
    assert by_file == predictor.predict(audio=sound)
    Image.new("L", (28, 28)).save(tmp_path / "digit.png")
    with pytest.raises(
        ConfigError, match=r"packed from arrays, not from image files\. Give a \.npy file of shape"
    ):
        predictor.predict(image=tmp_path / "digit.png")
    for array, words in (
        (sound[:, :3], r"is unreadable \(uint8 \(112, 3\), wanted numbers of shape \(112, 112\)\)"),
        (sound + 0.5 + 200, "values from"),
        (np.full(sound.shape, np.nan), "not finite"),
    ):
        np.save(tmp_path / "bad.npy", array)
        with pytest.raises(ConfigError, match=words):
            predictor.predict(audio=tmp_path / "bad.npy")
    np.save(tmp_path / "bad.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(ConfigError, match="Python objects"):
        predictor.predict(audio=tmp_path / "bad.npy")
