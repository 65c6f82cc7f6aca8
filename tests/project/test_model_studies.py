"""The shipped studies of the network: their rows, and that each row learns from the default set."""

import itertools

import numpy as np
import pytest
import torch

from furnace_hpc.config.grids.expansion import expand_rows
from furnace_hpc.config.grids.grid import read_grid
from furnace_hpc.config.parsing.lookup import find_file
from furnace_hpc.config.sections.model import FUSIONS
from furnace_hpc.data.columns import open_columns
from furnace_hpc.data.loading.batches import BatchReader
from furnace_hpc.launch.planning.dataset_checks import fingerprints
from furnace_hpc.model.encoders.input_shapes import InputShapes
from furnace_hpc.model.losses import total_loss
from furnace_hpc.model.network import FusionModel

NAMES = ("text", "image", "audio")


def rows_of(name):
    return {row.name: row for row in expand_rows(read_grid(find_file("grid", name)))}


@pytest.mark.parametrize("name", ["fusion", "modalities", "tasks", "zero"])
def test_the_network_of_every_row_learns(name, small_root):
    rows, columns = rows_of(name), open_columns(small_root / "tridigits")
    assert fingerprints(list(rows.values()), small_root, dry_run=True) == {
        "tridigits": columns.manifest.fingerprint
    }
    networks = {
        repr((config.model, config.loss, config.tasks)): config
        for config in (r.config for r in rows.values())
    }
    for config in networks.values():
        modalities, tasks = config.model.modalities, tuple(task.name for task in config.tasks)
        batch = BatchReader(columns, "train", modalities, tasks, torch.device("cpu")).read(
            np.arange(16)
        )
        classes = {task: len(columns.manifest.labels[task].classes) for task in tasks}
        torch.manual_seed(0)
        # so that losses compare
        small = config.model.model_copy(update={"dropout": 0.0, "modality_dropout": 0.0})
        model = FusionModel(small, InputShapes.of(columns.manifest), classes, config.loss)
        optimizer, losses = torch.optim.AdamW(model.parameters(), lr=config.optimizer.lr), []
        for _ in range(3):
            output = model(batch.inputs, batch.lengths, batch.present_BM)
            parts = total_loss(output, batch.labels, output["present"], config.loss, config.tasks)
            optimizer.zero_grad()
            parts["loss"].backward()
            optimizer.step()
            losses.append(parts["loss"].item())
        assert losses[2] < losses[0]
        assert {f"{task}/loss" for task in tasks} <= parts.keys()


def test_the_fusion_study_has_every_fusion():
    models = {name: row.config.model for name, row in rows_of("fusion").items()}
    found = {(model.fusion, model.fusion_layers) for model in models.values()}
    every = FUSIONS
    assert {fusion for fusion, _ in found} == set(every)
    assert models["late"].fusion_layers == 0 < models["bottleneck"].fusion_layers
    same = [
        model.model_copy(update={"fusion": "concat", "fusion_layers": 1})
        for model in models.values()
    ]
    assert len({repr(model.model_copy(update={"modality_dropout": 0.0})) for model in same}) == 1, (
        "the same encoders"
    )


def test_the_modality_study_leaves_each_one_out():
    found = {name: row.config.model.modalities for name, row in rows_of("modalities").items()}
    without = {f"no_{name}": tuple(other for other in NAMES if other != name) for name in NAMES}
    assert found == {"all": NAMES} | without


def test_the_task_study_compares_one_with_several():
    found = {
        name: [task.name for task in row.config.tasks] for name, row in rows_of("tasks").items()
    }
    assert found == {
        "digit_alone": ["digit"],
        "with_parity": ["digit", "parity"],
        "with_parity_and_accent": ["digit", "parity", "accent"],
    }


def test_the_zero_study_has_all_combinations():
    """All stages, with and without recomputation, in both precisions."""
    found = [
        (file.zero_optimization.stage, file.activation_checkpointing is not None, file.precision)
        for file in (row.config.deepspeed for row in rows_of("zero").values())
    ]
    every = set(itertools.product(range(4), (False, True), ("fp32", "bf16")))
    assert sorted(found) == sorted(every - {(0, False, "bf16"), (0, True, "bf16")})
