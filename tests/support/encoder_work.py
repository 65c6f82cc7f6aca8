"""Work of the ranks that train networks with Hugging Face encoders, for forked_ranks.run_phases."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from elastic_work import context_of, saver_of
from encoder_samples import modality_of, sample_of, shapes_of
from make import make_config
from rank_work import FP32

from furnace_hpc.config.train_config import TrainConfig
from furnace_hpc.data.loading.batches import Batch
from furnace_hpc.engine.checkpoint.random_state import seed_everything
from furnace_hpc.engine.checkpoint.shards import whole_weights
from furnace_hpc.engine.deepspeed_engine import build_engine, place
from furnace_hpc.engine.loop import forward
from furnace_hpc.engine.ranks.gather import gather_of
from furnace_hpc.model.encoders.input_shapes import InputShapes
from furnace_hpc.model.encoders.weights import architectures
from furnace_hpc.model.network import FusionModel
from furnace_hpc.runs.folder import RunFolder

STEPS = 2
MODALITIES = ("text", "image", "audio")
Case = dict[str, Any]
"""Keys: do (function), source (checkpoint), families (of the three modalities), stage."""


def make(processes: Any, folder: Path, case: Case) -> Case:
    """Train, save, and write the logits and the descriptions of the encoders."""
    config, shapes = _config(folder, case), _shapes(case)
    model = FusionModel(_seeded(config, 0).model, shapes, {"digit": 10})
    described = architectures(model.encoders, config.model)
    place(model, config, processes)
    engine = build_engine(model, config, processes)
    run, losses = RunFolder(folder / case["source"]), []
    for step in range(STEPS):
        batch = _batch(case)
        present = torch.ones_like(batch.present_BM)
        present[step, (processes.rank + step) % 3] = False  # ranks lack different modalities
        parts = forward(engine, replace(batch, present_BM=present), config, gather_of(processes))
        engine.backward(parts["loss"])
        engine.step()
        losses.append(parts["loss"].item())
    assert saver_of(engine, run, processes).save({"step": STEPS})
    logits = _logits(engine, case)
    if processes.is_rank_zero:
        torch.save({"logits": logits, "architectures": described}, run.path / "live.pt")
    engine.destroy()
    return case | {"losses": losses}


def resume(processes: Any, folder: Path, case: Case) -> Case:
    """Load at another stage. Build the network from its description. Compare the logits."""
    from furnace_hpc.engine.checkpoint import loader

    run = RunFolder(folder / case["source"])
    live = torch.load(run.path / "live.pt", weights_only=False)
    config, shapes = _config(folder, case), _shapes(case)
    model = FusionModel(_seeded(config, 1).model, shapes, {"digit": 10})
    place(model, config, processes)
    engine = build_engine(model, config, processes)
    loader.load(context_of(engine, run, processes), STEPS)
    resumed = _logits(engine, case)
    engine.destroy()
    weights = whole_weights(run.checkpoint(STEPS) / "zero")
    nowhere = _config(folder / "nowhere", case)
    known = replace(shapes, architectures=live["architectures"])
    network = FusionModel(nowhere.model, known, {"digit": 10})
    network.load_state_dict(weights)
    built = _logits(network, case)
    return case | {
        "resumed": (resumed - live["logits"]).abs().max().item(),
        "exported": (built - live["logits"]).abs().max().item(),
    }


def _seeded(config: TrainConfig, seed: int) -> TrainConfig:
    seed_everything(seed)
    return config


def _config(folder: Path, case: Case) -> TrainConfig:
    encoders = {}
    for family in case["families"]:
        path = str(folder / "weights" / family)
        encoders[f"model__{modality_of(family)}"] = {"encoder": path}
    return make_config(
        "zero3_checkpointed",
        global_batch_size=6,
        micro_batch_size=3,
        model__width=16,
        model__fusion="gated",
        deepspeed__zero_optimization__stage=case["stage"],
        deepspeed__zero_optimization__stage3_param_persistence_threshold=0,
        **FP32 | encoders,
    )


def _shapes(case: Case) -> InputShapes:
    return shapes_of(case["families"][2])


def _batch(case: Case) -> Batch:
    samples = dict(zip(MODALITIES, map(sample_of, case["families"]), strict=True))
    lengths = {name: length for name, (_, length) in samples.items() if length is not None}
    inputs = {name: values for name, (values, _) in samples.items()}
    labels = {"digit": torch.arange(3)}
    return Batch(np.arange(3), inputs, lengths, torch.ones(3, 3, dtype=torch.bool), labels)


def _logits(network: Any, case: Case) -> torch.Tensor:
    batch = _batch(case)
    network.eval()
    with torch.no_grad():
        output = network(batch.inputs, batch.lengths, batch.present_BM)
    return output["logits"]["digit"].float()
