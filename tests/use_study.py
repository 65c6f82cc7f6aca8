"""Run folders whose checkpoint is one file of stage 0, made without DeepSpeed: for what is not about its shards."""

from pathlib import Path
from typing import Any

import torch
from make import make_config
from tables_study import result_of

from furnace_hpc.engine.zero import parameters_sha256
from furnace_hpc.model.encoders import InputShapes
from furnace_hpc.model.network import FusionModel
from furnace_hpc.runs.checkpoint_files import complete, describe
from furnace_hpc.runs.folder import RunFolder, write_atomically, write_json
from furnace_hpc.runs.metrics import MetricsFile
from furnace_hpc.runs.records import write_result
from furnace_hpc.spec.config import Resources, RunSpec
from furnace_hpc.spec.manifest import read_manifest

SHARD = "zero/mp_rank_00_model_states.pt"
STEP = 4
SMALL = {"model__width": 16, "model__num_heads": 2, "model__feedforward": 24}


def write_run(
    place: Path, data: Path, scores: dict[str, float] | None = None, done: bool = True, **changes: Any
) -> RunFolder:
    """A run of random weights with a checkpoint of step 4, which is the best; `scores` are those of its evaluation."""
    manifest = read_manifest(data)
    config = make_config("zero0", **SMALL | {"steps": STEP} | changes)
    spec = RunSpec(
        grid="g", variant="base", config=config, resources=Resources(), data_fingerprint=manifest.fingerprint
    )
    run = RunFolder(place / spec.run_id)
    write_atomically(run.spec, spec.model_dump_json())
    write_json(run.attempt(1), {"attempt": 1, "data_dir": str(data)})
    torch.manual_seed(0)
    num_classes = {task.name: len(manifest.labels[task.name].classes) for task in config.tasks}
    network = FusionModel(config.model, InputShapes.of(manifest), num_classes, config.loss)
    save(run, STEP, {"module": network.state_dict()})
    metrics = MetricsFile(run.metrics(1))
    metrics.write({"step": STEP, "kind": "val", **(scores or {})})
    metrics.close()
    if done:
        sha256 = parameters_sha256(_parameters(network))
        more = {
            "accuracy": 0.5,
            "metrics": scores or {},
            "steps": config.steps,
            "selected_step": STEP,
            "parameters_sha256": sha256,
        }
        write_result(run, result_of(spec, **more))
    return run


def save(run: RunFolder, step: int, content: Any) -> None:
    """A checkpoint as the saver leaves it."""
    aside = run.checkpoints / f"step-{step}.tmp-x"
    (aside / SHARD).parent.mkdir(parents=True)
    torch.save(content, aside / SHARD)
    facts = {"step": step, "world_size": 1, "zero_stage": 0, "state": {"best_step": step}}
    complete(
        aside, run.checkpoint(step), facts | {"code_hash": "c0de", "versions": {}}, {SHARD: describe(aside / SHARD)}
    )


def _parameters(network: FusionModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in network.named_parameters()}
