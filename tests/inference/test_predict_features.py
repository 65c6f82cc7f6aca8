"""Predict from sounds as packing prepared them for encoders of features: Whisper, AST and CLAP."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import soundfile
from preprocessing_folders import write_preprocessor
from use_study import exported

from furnace_hpc import pack
from furnace_hpc.data.columns import Columns, open_columns
from furnace_hpc.inference.predictor import Predictor
from furnace_hpc.inference.preprocess import Preprocessor

pytestmark = pytest.mark.slow
ROWS, RATE = 6, 16_000
EXTRACTORS: dict[str, dict[str, Any]] = {
    "WhisperFeatureExtractor": {"chunk_length": 1, "feature_size": 80},
    "ASTFeatureExtractor": {"max_length": 48, "num_mel_bins": 32},
    "ClapFeatureExtractor": {
        "max_length_s": 1,
        "sampling_rate": 16_000,
        "truncation": "rand_trunc",
    },
}


def packed(place: Path, kind: str) -> Columns:
    """A table of sounds of 0.3 to 0.5 seconds, packed with an extractor."""
    generator = np.random.default_rng(0)
    for number in range(ROWS):
        wave = generator.normal(0, 0.1, RATE // 10 * (3 + number % 3))
        soundfile.write(place / f"{number}.wav", wave, RATE, subtype="PCM_16")
    columns = {
        "sound": [f"{number}.wav" for number in range(ROWS)],
        "kind": [("even", "odd")[number % 2] for number in range(ROWS)],
        "part": ["train", "train", "val", "val", "test", "test"],
    }
    pl.DataFrame(columns).write_csv(place / "mine.csv")
    encoder = write_preprocessor(place / "encoder", kind, **EXTRACTORS[kind])
    words = ["table", "--source", place / "mine.csv", "--audio", "sound", "--label", "kind"]
    words += ["--split-column", "part", "--for", f"audio={encoder}", "--workers", "1"]
    words += ["--out", place / "pack"]
    pack.main(args=list(map(str, words)), standalone_mode=False)
    return open_columns(place / "pack")


@pytest.mark.parametrize("kind", EXTRACTORS)
def test_features_equal_those_of_the_pack(tmp_path: Path, kind: str):
    columns = packed(tmp_path, kind)
    split = columns.split("test")
    preprocessor = Preprocessor(columns.manifest, None)
    changes = {"tasks": [{"name": "kind"}], "model__modalities": ("audio",)}
    predictor = Predictor.load(exported(tmp_path / "runs", columns.folder, **changes), "cpu")
    for row in range(2):
        file = tmp_path / f"{ROWS - 2 + row}.wav"
        values = preprocessor.read("audio", file)
        assert values.keys() <= split.keys()
        for column, value in values.items():
            assert np.array_equal(value, split[column][row]), column
        answer = predictor.predict(audio=file)
        assert set(answer.tasks["kind"].probabilities) == {"even", "odd"}
