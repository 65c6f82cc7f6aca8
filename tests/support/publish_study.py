"""A study with checkpoints for `furnace publish`, in the home folder of an invented user."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from encoder_folders import save_network
from tables_study import result_of
from use_study import SHARD, SMALL, STEP, save

from furnace_hpc.config.grids.expansion import expand
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.manifest import Manifest, read_manifest
from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.engine.deepspeed_engine import parameters_sha256
from furnace_hpc.model.encoders.input_shapes import InputShapes
from furnace_hpc.model.network import FusionModel
from furnace_hpc.runs.folder import GridFolder, write_atomically, write_json
from furnace_hpc.runs.records.metrics import MetricsFile
from furnace_hpc.runs.records.result import write_result

USER, NODE = "gretchen", "wolke17"
# (variant, seed) -> accuracy on validation and test. The best on the test split is another run.
SCORES = {
    ("base", 0): (0.60, 0.99),
    ("base", 1): (0.61, 0.60),
    ("full", 0): (0.70, 0.71),
    ("full", 1): (0.75, 0.72),
}


def make_study(home: Path, data: Path) -> Path:
    """Write the study below a home folder. Return the root of the runs.

    The text encoder is a folder there, so configs have a private path.
    """
    bert = home / "weights" / "tiny-bert"
    save_network("bert", bert)
    model = {name.removeprefix("model__"): value for name, value in SMALL.items()}
    grid = {
        "name": "study",
        "description": "Two losses, two seeds.",
        "base": {
            "deepspeed": "zero0",
            "steps": STEP,
            "evaluation": {"every": STEP},
            "model": model | {"dropout": 0.0, "text": {"encoder": str(bert)}},
        },
        "seeds": [0, 1],
        "reference": "base",
        "metric": "test/digit/accuracy",
        "variants": {"base": {}, "full": {"loss.alpha": 0.5}},
    }
    folder = GridFolder(home / "runs" / "study")
    write_atomically(folder.grid, yaml.safe_dump(grid, sort_keys=False))
    write_runs(Grid.model_validate(grid), folder, data)
    return home / "runs"


def write_runs(grid: Grid, folder: GridFolder, data: Path) -> None:
    """Write all runs of the grid, with its settings."""
    manifest = read_manifest(data)
    for spec in expand(grid, {"tridigits": manifest.fingerprint}):
        _write_run(spec, folder, data, manifest)


def _write_run(spec: RunSpec, folder: GridFolder, data: Path, manifest: Manifest) -> None:
    run, config = folder.run(spec.run_id), spec.config
    val, test = SCORES[spec.variant, config.seed]
    write_atomically(run.spec, spec.model_dump_json())
    attempt: dict[str, Any] = {"attempt": 1, "data_dir": str(data), "nodelist": NODE}
    attempt |= {"start_unix_s": 1000.0, "end_unix_s": 1080.0, "reason": "done", "step": STEP}
    write_json(run.attempt(1), attempt | {"job_id": "17_3", "world_size": 1, "gpus": 0})
    torch.manual_seed(config.seed)
    shapes = InputShapes.of(manifest)
    network = FusionModel(config.model, shapes, {"digit": 10}, config.loss)
    save(run, STEP, {"module": network.state_dict()})
    metrics = MetricsFile(run.metrics(1))
    metrics.write({"step": STEP, "kind": "val", "val/digit/accuracy": val})
    metrics.close()
    parameters = {name: value.detach() for name, value in network.named_parameters()}
    scores = {"val/digit/accuracy": val, "test/digit/accuracy": test}
    more = {"metrics": scores, "steps": STEP, "selected_step": STEP, "precision": "bf16"}
    more |= {"parameters_sha256": parameters_sha256(parameters), "world_size": 1, "zero_stage": 0}
    write_result(run, result_of(spec, **more))
    assert torch.load(run.checkpoint(STEP) / SHARD)
    assert json.loads(run.spec.read_text())
