"""Export compares the exported model's logits with those that the run wrote for its test split."""

from pathlib import Path

import numpy as np
import pytest
import torch
from clips_study import write_clips
from export_study import exported
from use_study import write_run

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.columns import open_columns
from furnace_hpc.inference import Predictor
from furnace_hpc.inference.export_check import stored_row
from furnace_hpc.model.scores import mean_prediction


def test_logits_are_compared_with_the_runs_own(tmp_path: Path, small_data: Path):
    run = write_run(tmp_path / "runs", small_data)
    exported(run.path, tmp_path / "first")
    predictor = Predictor.load(tmp_path / "first", "cpu")
    columns = open_columns(small_data).split("test")
    rows = [stored_row(predictor, columns, row) for row in range(len(columns["present"]))]
    logits = predictor.logits(rows)["digit"].numpy()
    run.predictions("test").parent.mkdir()
    np.savez(run.predictions("test"), **{"logits.digit": logits, "sample_id": columns["sample_id"]})
    made, reported = exported(run.path, tmp_path / "second")
    assert made.provenance.compared.endswith(" with the run's own for 64 test samples")
    assert made.provenance.compared in reported[-1]
    np.savez(
        run.predictions("test"), **{"logits.digit": logits + 1, "sample_id": columns["sample_id"]}
    )
    with pytest.raises(
        ConfigError,
        match=r"logits differ from the run's own .* Export with the code that trained it",
    ):
        exported(run.path, tmp_path / "third")


def test_mean_over_frames_is_compared(tmp_path: Path):
    """The run wrote the mean over a clip's frames."""
    data = write_clips(tmp_path / "clips")
    tasks = [{"name": "genre", "kind": "multi_label"}, {"name": "digit"}]
    changes = {
        "model__modalities": ["image", "audio"],
        "evaluation__frames": "mean",
        "tasks": tasks,
    }
    run = write_run(tmp_path / "runs", data, **changes)
    exported(run.path, tmp_path / "first")
    predictor, columns = Predictor.load(tmp_path / "first", "cpu"), open_columns(data).split("test")
    frames = [
        predictor.logits([stored_row(predictor, columns, row, frame) for row in range(40)])
        for frame in range(3)
    ]
    mean = {
        f"logits.{task['name']}": mean_prediction(
            torch.stack([frame[task["name"]] for frame in frames]), task.get("kind", "single_label")
        ).numpy()
        for task in tasks
    }
    run.predictions("test").parent.mkdir()
    np.savez(run.predictions("test"), **mean, sample_id=columns["sample_id"])
    made, _ = exported(run.path, tmp_path / "second")
    assert made.provenance.compared.endswith(" with the run's own for 40 test samples")
    middle = {f"logits.{name}": logits.numpy() for name, logits in frames[1].items()}
    np.savez(run.predictions("test"), **middle, sample_id=columns["sample_id"])
    with pytest.raises(ConfigError, match="logits differ from the run's own"):
        exported(run.path, tmp_path / "third")
