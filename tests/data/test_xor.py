"""A set whose label is image digit xor audio digit, each 0 or 1.

A single modality has no information, and a sum over modalities stays at chance. Only a network that
combines them can learn it.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from furnace_hpc.config.sections.loss import LossConfig
from furnace_hpc.config.sections.model import ModelConfig
from furnace_hpc.config.sections.tasks import TaskConfig
from furnace_hpc.data.columns import open_columns
from furnace_hpc.data.loading.batches import Batch, BatchReader
from furnace_hpc.data.loading.sampler import step_indices
from furnace_hpc.model.encoders.input_shapes import InputShapes
from furnace_hpc.model.losses import total_loss
from furnace_hpc.model.network import FusionModel

TASKS = tuple(TaskConfig(name=name) for name in ("xor", "image_digit", "audio_digit"))
NAMES = ("image", "audio")  # the text of this set has no information
STEPS = 150


@pytest.fixture(scope="module")
def xor_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from furnace_hpc.data.sets.tridigits.pack import pack
    from furnace_hpc.data.sets.tridigits.plan import TriDigitsKnobs

    folder = tmp_path_factory.mktemp("xor") / "xor"
    pack(
        TriDigitsKnobs(variant="xor", train=800, val=20, test=400),
        folder,
        lambda what, done, total: None,
    )
    return folder


def reader_of(data: Path, split: str) -> BatchReader:
    return BatchReader(
        open_columns(data), split, NAMES, tuple(t.name for t in TASKS), torch.device("cpu")
    )


def rolled(batch: Batch) -> Batch:
    """Each image with the sound of its neighbour."""
    return replace(batch, inputs=batch.inputs | {"audio": batch.inputs["audio"].roll(1, 0)})


def accuracy(data: Path, misaligned: bool = False, **changes: Any) -> dict[str, float]:
    """Test accuracy of each task after a short training with auxiliary heads for both digits."""
    torch.manual_seed(0)
    config = ModelConfig(modalities=NAMES, width=32, feedforward=64, dropout=0.0, **changes)
    model = FusionModel(
        config, InputShapes.of(open_columns(data).manifest), {task.name: 2 for task in TASKS}
    )
    optimizer, train = torch.optim.AdamW(model.parameters(), lr=3e-3), reader_of(data, "train")
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, STEPS)
    for step in range(STEPS):
        batch = train.read(step_indices(train.num_samples, 0, step, 32))
        batch = rolled(batch) if misaligned else batch
        output = model(batch.inputs, batch.lengths, batch.present_BM)
        optimizer.zero_grad()
        total_loss(output, batch.labels, batch.present_BM, LossConfig(), TASKS)["loss"].backward()
        optimizer.step()
        schedule.step()
    batch = reader_of(data, "test").read(np.arange(400))
    batch = rolled(batch) if misaligned else batch
    with torch.no_grad():
        logits = model.eval()(batch.inputs, batch.lengths, batch.present_BM)["logits"]
    return {
        name: (part.argmax(1) == batch.labels[name]).float().mean().item()
        for name, part in logits.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["concat", "gated", "low_rank", "cross_attention", "bottleneck"])
def test_fusion_learns_xor(fusion, xor_data):
    reached = accuracy(xor_data, fusion=fusion, fusion_layers=2)
    assert reached["xor"] > 0.9, reached


@pytest.mark.slow
def test_a_sum_of_modalities_does_not_learn_xor(xor_data):
    reached = accuracy(xor_data, fusion="bottleneck", fusion_layers=0)
    # both digits are recognised
    assert reached["image_digit"] > 0.9 < reached["audio_digit"]
    assert reached["xor"] < 0.62


@pytest.mark.slow
def test_misaligned_audio_does_not_learn_xor(xor_data):
    reached = accuracy(xor_data, misaligned=True, fusion="concat")
    assert reached["image_digit"] > 0.9
    assert reached["xor"] < 0.62  # text and image alone: chance
