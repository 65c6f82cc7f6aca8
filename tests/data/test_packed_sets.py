"""Packs of the public sets fit their studies, the loader and the network."""

import json

import numpy as np
import pytest
import torch
from raw_sets import write_audioset, write_avmnist, write_mmimdb, write_vocab

from furnace_hpc import pack
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import expand_rows
from furnace_hpc.config.grids.grid import read_grid, with_settings
from furnace_hpc.config.parsing.lookup import find_file
from furnace_hpc.config.sections.model import ModelConfig
from furnace_hpc.data.columns import open_columns
from furnace_hpc.data.decode.audio import SoundKnobs
from furnace_hpc.data.decode.tokenizer import vocabulary_of
from furnace_hpc.data.loading.batches import BatchReader
from furnace_hpc.launch.planning.dataset_checks import fingerprints
from furnace_hpc.model.network import FusionModel, InputShapes

BOTH = ["image", "audio"]
SMALL = {
    "width": 32,
    "feedforward": 64,
    "text_weights": None,
    "image_encoder": "cnn",
    "image_weights": None,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data root with the three sets, packed by the command's own functions."""
    raw, root = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("data")
    vocab = str(write_vocab(raw / "vocab"))
    common = {"workers": 1, "max_refused": 0.5}
    pack.mmimdb(
        write_mmimdb(raw / "mmimdb"),
        root / "mmimdb",
        tokenizer=vocab,
        require=["text", "image"],
        **common,
    )
    pack.avmnist(write_avmnist(raw / "avmnist", np.float32), root / "avmnist", **common)
    clips = {
        "image_size": 64,
        "num_frames": 3,
        "val_fraction": 0.4,
        "require": BOTH,
        "num_classes": 8,
    }
    pack.audioset(write_audioset(raw / "audioset"), root / "audioset", **clips, **common)
    return root


@pytest.mark.parametrize("name", ["mmimdb", "avmnist", "audioset"])
def test_a_study_trains_on_its_packed_set(root, name):
    grid = read_grid(find_file("grid", name))
    rows = expand_rows(grid)
    columns = open_columns(root / name)
    assert fingerprints(rows, root, dry_run=True) == {name: columns.manifest.fingerprint}
    for row in rows:
        reader = BatchReader(
            columns,
            "test",
            row.config.model.modalities,
            tuple(t.name for t in row.config.tasks),
            torch.device("cpu"),
        )
        batch = reader.read(np.arange(4))
        classes = {
            task.name: len(columns.manifest.labels[task.name].classes) for task in row.config.tasks
        }
        torch.manual_seed(0)
        config = ModelConfig.model_validate(row.config.model.model_dump() | SMALL)
        model = FusionModel(config, InputShapes.of(columns.manifest), classes).eval()
        with torch.no_grad():
            logits = model(batch.inputs, batch.lengths, batch.present_BM)["logits"]
        for task, values in logits.items():
            assert values.shape == (4, classes[task])
            assert values.isfinite().all()


def test_the_manifest_has_all_settings(root):
    """With these settings and versions, another pack has the same columns."""
    movies, clips = (open_columns(root / name).manifest for name in ("mmimdb", "audioset"))
    assert movies.preprocessing["image"] == {"size": 224, "fit": "crop", "filter": "bicubic"}
    assert movies.preprocessing["text"] == {
        "tokenizer": "vocab",
        "vocabulary": vocabulary_of(movies),
        "max_tokens": 256,
        "plot": "longest",
    }
    assert movies.columns["image"].shape == (3, 224, 224)
    assert clips.preprocessing["image"] == {
        "size": 64,
        "fit": "crop",
        "filter": "bicubic",
        "frames": 3,
    }
    sound = clips.preprocessing["audio"]
    assert (sound["feature"], sound["coefficients"], sound["sample_rate_hz"]) == (
        "mfcc",
        40,
        16_000,
    )
    assert clips.columns["audio"].shape == (40, 640)
    assert SoundKnobs.model_validate(sound).seconds >= 10  # a whole clip
    assert sound["window"] == 1024
    assert {
        "python",
        "numpy",
        "librosa",
        "soundfile",
        "soxr",
        "pillow",
        "tokenizers",
    } <= clips.versions.keys()


def test_weighted_sampling_needs_weights(root):
    def rows(name):
        return expand_rows(
            with_settings(read_grid(find_file("grid", name)), ["data.sampling=weighted"])
        )

    assert set(fingerprints(rows("audioset"), root, dry_run=True)) == {"audioset"}
    with pytest.raises(
        ConfigError, match="is weighted, but data set .*avmnist has no column sampling_weight"
    ):
        fingerprints(rows("avmnist"), root, dry_run=True)


def test_the_mean_over_frames_needs_clips(root):
    def rows(name):
        return expand_rows(
            with_settings(read_grid(find_file("grid", name)), ["evaluation.frames=mean"])
        )

    assert set(fingerprints(rows("audioset"), root, dry_run=True)) == {"audioset"}
    with pytest.raises(
        ConfigError,
        match="evaluation.frames is mean, but data set .*mmimdb has one image per sample",
    ):
        fingerprints(rows("mmimdb"), root, dry_run=True)


def test_a_row_of_one_modality_needs_require(root, tmp_path):
    """The fixture has clips without sound. A row of sound alone is refused before it starts."""
    whole = open_columns(root / "audioset")
    assert all(whole.split(split)["present"].all() for split in whole.manifest.splits)
    raw = write_audioset(tmp_path / "raw")
    pack.audioset(
        raw,
        tmp_path / "audioset",
        image_size=64,
        num_frames=3,
        num_classes=8,
        workers=1,
        max_refused=0.5,
    )
    rows = {row.name: row for row in expand_rows(read_grid(find_file("grid", "audioset")))}
    assert set(fingerprints([rows["image_audio"]], tmp_path, dry_run=True)) == {"audioset"}
    with pytest.raises(
        ConfigError,
        match="row 'audio': [0-9]+ of .* have none of audio: pack the set with --require audio",
    ):
        fingerprints([rows["audio"]], tmp_path, dry_run=True)
    torn = tmp_path / "audioset" / "train" / "present.npy"
    torn.write_bytes(bytes(torn.stat().st_size))
    with pytest.raises(ConfigError, match="present.npy cannot be read .*: pack the set again"):
        fingerprints([rows["audio"]], tmp_path, dry_run=True)
    lines = [
        json.loads(line) for line in (root / "audioset/refused.jsonl").read_text().splitlines()
    ]
    assert {line["modality"] for line in lines} == {"audio"}
    assert not any(line["kept"] for line in lines)


def test_an_unknown_modality_cannot_be_required(tmp_path):
    with pytest.raises(ConfigError, match="--require got 'text'; "):
        pack.audioset(
            write_audioset(tmp_path / "raw"), tmp_path / "out", num_classes=8, require=["text"]
        )
