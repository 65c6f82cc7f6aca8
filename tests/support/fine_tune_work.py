"""Work of the ranks in test_fine_tuning.py, for forked_ranks.run_phases.

They train real engines of a small network with frozen parts, adapters and several rates.
"""

from pathlib import Path
from typing import Any

import torch
from elastic_work import GLOBAL_BATCH, _fusion_loss, context_of, saver_of
from make import SHAPES, make_config
from rank_work import FP32

from furnace_hpc.config.train_config import TrainConfig
from furnace_hpc.engine.checkpoint.random_state import seed_everything
from furnace_hpc.engine.deepspeed_engine import (
    build_engine,
    engine_sha256,
    full_fp32_parameters,
    place,
)
from furnace_hpc.engine.optimization.group_norms import GroupNorms
from furnace_hpc.engine.optimization.groups import set_learning_rate
from furnace_hpc.engine.optimization.schedule import learning_rate
from furnace_hpc.model.network import FusionModel
from furnace_hpc.runs.folder import RunFolder

MADE_AT, MORE = 3, 3  # steps before the checkpoint; steps after it
PARTITIONED = {
    "deepspeed__zero_optimization__stage3_param_persistence_threshold": 0,
    "deepspeed__zero_optimization__stage3_prefetch_bucket_size": 0,
}
# A frozen layer and slower layers, adapters, a frozen encoder, and no decay of norms and biases.
TUNED: dict[str, Any] = {
    "model__text_layers": 2,
    "model__text": {"freeze": 1, "layer_decay": 0.5, "lr_multiplier": 0.5},
    "model__image_encoder": "vit",
    "model__image_layers": 1,
    "model__image": {"lora": {"rank": 2, "targets": ["q_proj", "v_proj"]}},
    "model__audio": {"freeze": "all"},
    "optimizer__no_decay": ["norms", "biases"],
}
Case = dict[str, Any]
"""Keys: do (function), source (checkpoint), stage, bf16, changes (of the config)."""


def config_of(case: Case) -> TrainConfig:
    changes = {} if case.get("bf16") else FP32 | {"deepspeed__activation_checkpointing": None}
    if case["stage"] == 3 and not case.get("is_resident"):
        changes |= PARTITIONED
    if case["stage"] == 0:
        changes = {}
    return make_config(f"zero{case['stage']}", **changes, **case.get("changes", TUNED))


def engine_of(config: TrainConfig, processes: Any, seed: int) -> Any:
    seed_everything(seed)
    model = FusionModel(config.model, SHAPES, {"digit": 10})
    place(model, config, processes)
    return build_engine(model, config, processes)


def steps_of(engine: Any, config: TrainConfig, processes: Any, first: int, count: int) -> Any:
    """Mean loss of each step over all ranks. The data depends on the step alone."""
    losses = []
    share = GLOBAL_BATCH // processes.world_size
    mine = slice(processes.rank * share, (processes.rank + 1) * share)
    for step in range(first, first + count):
        set_learning_rate(engine, learning_rate(config, step))
        loss = _fusion_loss(engine, step, mine)
        engine.backward(loss)
        engine.step()
        total = processes.all_reduce_sum(loss.detach().float().clone())
        losses.append(total.item() / processes.world_size)
    return losses


def make(processes: Any, folder: Path, case: Case) -> Case:
    """Train, save, record the state, and train on."""
    config = config_of(case)
    engine = engine_of(config, processes, seed=0)
    norms = GroupNorms(engine)
    first = steps_of(engine, config, processes, 0, MADE_AT)
    run = RunFolder(folder / case["source"])
    assert saver_of(engine, run, processes).save({"step": MADE_AT})
    known = {"weights": full_fp32_parameters(engine)}
    record, total = norms.record(), engine.get_global_grad_norm()  # None at stage 0
    losses = steps_of(engine, config, processes, MADE_AT, MORE)
    sha256 = engine_sha256(engine, processes)
    known |= {"losses": losses, "sha256": sha256}
    if processes.is_rank_zero:
        torch.save(known, run.path / "known.pt")
    answer = {
        "losses": first + losses,
        "sha256": sha256,
        "record": record,
        "norm": None if total is None else float(total),
        "state_bytes": state_bytes(engine),
        "trained": sum(
            getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters() if p.requires_grad
        ),
        "groups": len(engine.optimizer.param_groups),
    }
    engine.destroy()
    return case | answer


def resume(processes: Any, folder: Path, case: Case) -> Case:
    """Load into an engine with other weights, and compare."""
    from furnace_hpc.engine.checkpoint import loader

    run, config = RunFolder(folder / case["source"]), config_of(case)
    known = torch.load(run.path / "known.pt", weights_only=False)
    engine = engine_of(config, processes, seed=1)
    loader.load(context_of(engine, run, processes), MADE_AT)
    found = full_fp32_parameters(engine)
    assert found.keys() == known["weights"].keys()
    difference = max(
        (value - known["weights"][name]).abs().max().item() for name, value in found.items()
    )
    losses = steps_of(engine, config, processes, MADE_AT, MORE)
    answer = {
        "difference": difference,
        "loss_difference": max(abs(a - b) for a, b in zip(losses, known["losses"], strict=True)),
        "same_bits": engine_sha256(engine, processes) == known["sha256"],
    }
    engine.destroy()
    return case | answer


def refuse(processes: Any, folder: Path, case: Case) -> str:
    """The error of a checkpoint with other frozen parameters."""
    from furnace_hpc.engine.checkpoint import loader

    engine = engine_of(config_of(case), processes, seed=1)
    try:
        loader.load(context_of(engine, RunFolder(folder / case["source"]), processes), MADE_AT)
        return "loaded"
    except RuntimeError as error:
        return str(error)
    finally:
        engine.destroy()


def state_bytes(engine: Any) -> int:
    """Bytes that this rank's optimizer keeps for parameters, without step counts."""
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.dim()
    )
