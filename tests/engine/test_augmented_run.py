"""Runs with all augmentations, mixup and an average: kills, world sizes, and the export."""

import json
from pathlib import Path
from typing import Any

import pytest
from export_study import exported
from killed_ranks import Point, run_attempt
from killed_run import differences, new_run
from photo_plan import plan

from furnace_hpc.data.packing.pack import pack_files
from furnace_hpc.engine.checkpoint.shards import whole_average

CHANGES: dict[str, Any] = {
    "augment": {
        "image": {"flip": 0.5, "crop": 0.6, "colour": 0.2},
        "audio": {"gain_db": 3, "noise": 0.1, "time_mask": 6, "frequency_mask": 4},
        "text": {"token_dropout": 0.2},
        "mixup": 0.4,
    },
    "ema": {"decay": 0.9},
    "optimizer": {"lr": 0.01},
}
STEPS = 12
INTERRUPTIONS = (
    (Point("stop", how="step 5"), "requeue"),
    (Point("save", nth=2, how="before"), "fail"),
    (Point("stop", rank=1, how="evaluation on val"), "requeue"),
)
pytestmark = pytest.mark.distributed


def new(place: Path, data: Path, stage: int, size: int, **more: Any) -> Path:
    return new_run(place, data, stage=stage, size=size, steps=STEPS, changes=CHANGES | more)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, small_data: Path) -> Path:
    folder = new(tmp_path_factory.mktemp("calm") / "place", small_data, 2, 2)
    assert run_attempt(folder, small_data, 2, None) == ("done", 0)
    return folder


def average_of(folder: Path) -> dict[str, bytes]:
    average = whole_average(folder / f"checkpoints/step-{STEPS}" / "zero")
    assert average
    return {name: value.numpy().tobytes() for name, value in average.items()}


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_bits(calm: Path, small_data: Path, tmp_path: Path):
    """Weights, losses, predictions of the average, and the average itself."""
    folder = new(tmp_path / "place", small_data, 2, 2)
    for point, decision in INTERRUPTIONS:
        assert run_attempt(folder, small_data, 2, point)[0] == decision
        assert not (folder / "result.json").exists()
    assert run_attempt(folder, small_data, 2, None) == ("done", 0)
    assert differences(folder, calm) == []
    assert average_of(folder) == average_of(calm)


def test_export_has_the_weights_that_were_evaluated(calm: Path, small_data: Path, tmp_path: Path):
    """Its logits equal the run's predictions, and its hash is not that of the last weights."""
    made, lines = exported(calm, tmp_path / "out", data_dir=small_data)
    assert any("of the largest logit" in line or "equal bit for bit with" in line for line in lines)
    assert any(line == "moving average of the weights, decay 0.9" for line in lines)
    result = json.loads((calm / "result.json").read_text())
    assert made.provenance.parameters_sha256 != result["parameters_sha256"]


def test_stage_0_and_one_process_train_with_it(small_data: Path, tmp_path: Path):
    """A run of one process sees the samples of two, and its export passes the comparison."""
    folder = new(tmp_path / "place", small_data, 0, 1)
    assert run_attempt(folder, small_data, 1, Point("stop", how="step 7"))[0] == "requeue"
    assert run_attempt(folder, small_data, 1, None) == ("done", 0)
    _, lines = exported(folder, tmp_path / "out", data_dir=small_data)
    assert any("with the run's own" in line for line in lines)


def test_a_run_reads_images_stored_as_jpeg(tmp_path: Path):
    """It crops the larger stored images at random, and a resumed run ends with the same bits."""
    data = tmp_path / "photos"
    pack_files(plan(), data, lambda *_: None, workers=1, max_refused=0.05, force=False)
    changes = {
        "tasks": [{"name": "odd"}],
        "augment": {"image": {"crop": 0.5, "flip": 0.5}},
        "model": {
            **{"modalities": ["text", "image"], "text_layers": 1},
            **{"width": 16, "num_heads": 2, "feedforward": 32},
        },
    }
    folders = []
    for name, points in (("calm", ()), ("stopped", (Point("stop", how="step 4"),))):
        folder = new_run(tmp_path / name, data, stage=0, size=1, steps=6, changes=changes)
        for point in points:
            assert run_attempt(folder, data, 1, point)[0] == "requeue"
        assert run_attempt(folder, data, 1, None) == ("done", 0)
        folders.append(folder)
    assert differences(*folders) == []
