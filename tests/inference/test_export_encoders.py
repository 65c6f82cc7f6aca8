"""Export and predict with Hugging Face encoders."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from encoder_folders import save_network
from export_study import exported
from forked_ranks import run_phases
from use_work import ROWS

from furnace_hpc.data.columns import open_columns
from furnace_hpc.inference import Predictor
from furnace_hpc.inference.export import stored_row

WHISPER = {"num_mel_bins": 40, "max_source_positions": 24}  # for 40 frames


@pytest.mark.distributed
def test_predictions_equal_the_live_network(tmp_path: Path, small_data: Path):
    """Two ranks train at stage 3. The exported folder needs none of the encoders' folders."""
    weights = tmp_path / "weights"
    save_network("deberta-v2", weights / "text")
    save_network("resnet", weights / "image")
    save_network("whisper", weights / "audio", **WHISPER)
    encoders = {
        f"model__{modality}": {"encoder": str(weights / modality)}
        for modality in ("text", "image", "audio")
    }
    case = {"do": "make", "source": "run", "stage": 3, "data": str(small_data), "model": encoders}
    run_phases(tmp_path, "use_work", [(2, [case])])
    made, _ = exported(tmp_path / "run", tmp_path / "out")
    types = {modality: values["model_type"] for modality, values in made.architectures.items()}
    assert types == {"text": "deberta-v2", "image": "resnet", "audio": "whisper"}
    live = np.load(tmp_path / "run" / "live.npz")
    shutil.rmtree(weights)
    shutil.rmtree(tmp_path / "run")
    predictor = Predictor.load(tmp_path / "out", "cpu")
    columns = open_columns(small_data).split("test")
    for subset, present in (("text+image+audio", [1, 1, 1]), ("image", [0, 1, 0])):
        rows = [stored_row(predictor, columns, row) for row in range(ROWS)]
        for row in rows:
            row["present"] = np.array(present, np.uint8)
        logits = predictor.logits(rows)["digit"].numpy()
        np.testing.assert_allclose(logits, live[subset], atol=1e-5, rtol=1e-5)
