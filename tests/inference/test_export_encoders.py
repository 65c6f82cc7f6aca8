"""Export and predict with Hugging Face encoders."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder_folders import save_network
from export_study import exported
from forked_ranks import run_phases
from use_study import SHARD, STEP, write_run
from use_work import ROWS

from furnace_hpc.data.columns import open_columns
from furnace_hpc.data.loading.batches import BatchReader
from furnace_hpc.inference import Predictor
from furnace_hpc.inference.export_check import stored_row
from furnace_hpc.inference.model_folder import Exported

MODALITIES = ("text", "image", "audio")


def encoders_in(folder: Path) -> dict[str, Any]:
    """Keys of encoders with a mask of their own, batch statistics, and filled frames."""
    save_network("deberta-v2", folder / "text")
    save_network("resnet", folder / "image")
    save_network("whisper", folder / "audio", num_mel_bins=40, max_source_positions=24)
    return {f"model__{name}": {"encoder": str(folder / name)} for name in MODALITIES}


def check_types(made: Exported) -> None:
    types = {modality: values["model_type"] for modality, values in made.architectures.items()}
    assert types == {"text": "deberta-v2", "image": "resnet", "audio": "whisper"}


def predicted(predictor: Predictor, data: Path, present: list[int]) -> np.ndarray:
    """Logits of the first test samples from these modalities."""
    columns = open_columns(data).split("test")
    rows = [stored_row(predictor, columns, row) for row in range(ROWS)]
    for row in rows:
        row["present"] = np.array(present, np.uint8)
    return predictor.logits(rows)["digit"].numpy()


def test_predictions_need_no_folder(tmp_path: Path, small_data: Path):
    """They are those of the network in the checkpoint."""
    run = write_run(tmp_path / "runs", small_data, **encoders_in(tmp_path / "weights"))
    made, _ = exported(run.path, tmp_path / "out")
    check_types(made)
    network = made.network().eval()
    network.load_state_dict(torch.load(run.checkpoint(STEP) / SHARD)["module"])
    columns = open_columns(small_data)
    reader = BatchReader(columns, "test", MODALITIES, ("digit",), torch.device("cpu"))
    batch = reader.read(np.arange(ROWS))
    with torch.no_grad():
        live = network(batch.inputs, batch.lengths, torch.ones(ROWS, 3, dtype=torch.bool))
    shutil.rmtree(tmp_path / "weights")
    shutil.rmtree(tmp_path / "runs")
    found = predicted(Predictor.load(tmp_path / "out", "cpu"), small_data, [1, 1, 1])
    np.testing.assert_allclose(found, live["logits"]["digit"].numpy(), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.distributed
def test_predictions_equal_the_live_network(tmp_path: Path, small_data: Path):
    """Two ranks train at stage 3. The exported folder needs none of the encoders' folders."""
    encoders = encoders_in(tmp_path / "weights")
    case = {"do": "make", "source": "run", "stage": 3, "data": str(small_data), "model": encoders}
    run_phases(tmp_path, "use_work", [(2, [case])], per_case_s=300)
    made, _ = exported(tmp_path / "run", tmp_path / "out")
    check_types(made)
    live = np.load(tmp_path / "run" / "live.npz")
    shutil.rmtree(tmp_path / "weights")
    shutil.rmtree(tmp_path / "run")
    predictor = Predictor.load(tmp_path / "out", "cpu")
    for subset, present in (("text+image+audio", [1, 1, 1]), ("image", [0, 1, 0])):
        logits = predicted(predictor, small_data, present)
        np.testing.assert_allclose(logits, live[subset], atol=1e-5, rtol=1e-5)
