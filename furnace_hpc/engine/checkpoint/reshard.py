"""Elastic resume: a checkpoint of another number of processes, or another ZeRO stage among 1, 2, 3, loaded exactly.

DeepSpeed's own loading refuses both. Its universal checkpoints (0.19.8, tried) are a second copy on disk, and lose
things without a word: buffers; at stage 3 the settings of all parameter groups but the first, and Adam's step count,
since that stage's sub-groups then share one counter and each advances it. At stages 1 and 2 they cannot be loaded
where a rank owns nothing of a group (IndexError). So nothing is converted here: every rank reads from the
checkpoint's files the values that it owns now, and puts them where its optimizer keeps them.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.engine.checkpoint.shards import MOMENTS, Shards, Values, has_shards, open_shards
from furnace_hpc.engine.deepspeed_engine import Engine
from furnace_hpc.engine.distributed import Processes

# How torch computes a step, not what: they belong to the machine that is trained on now.
_IMPLEMENTATION = {"params", "fused", "foreach", "capturable", "differentiable"}


def load(engine: Engine, folder: Path, processes: Processes) -> dict[str, Any]:
    """Collective. Load a checkpoint folder of DeepSpeed's (`<checkpoint>/zero`) and return its client state.

    fp32 parameters, both moments, the step count, the parameter groups' settings and rank 0's buffers are restored
    bit by bit. The random states are not DeepSpeed's, and not restored here.

    Raises:
        ConfigError: it was made at stage 0 and the run is now at another, or the other way round.
        RuntimeError: it is not of this model, or incomplete.
    """
    stage = engine.zero_optimization_stage()
    if has_shards(folder) != (stage > 0):
        made_at = "at stage 1, 2 or 3" if stage == 0 else "at stage 0"
        raise ConfigError(
            f"checkpoint {folder} was made {made_at}, and the run is now at ZeRO stage {stage}: stage 0 and the others "
            f"cannot read each other's checkpoints, so resume with a DeepSpeed file of the stage it was made at"
        )
    if stage == 0:  # one replicated file, which any number of processes can read
        loaded, client_state = engine.load_checkpoint(str(folder.parent), tag=folder.name)
        if loaded is None:
            raise RuntimeError(f"checkpoint {folder} could not be loaded")
        return dict(client_state)

    shards = open_shards(folder)
    _check_same_model(engine, shards, folder)
    with torch.no_grad():
        if stage == 3:
            _place_equal_parts(engine, shards, processes)
        else:
            _place_mapped_parts(engine, shards)
        for name, value in shards.buffers().items():
            engine.module.get_buffer(name).copy_(value)
    for group, saved in zip(engine.optimizer.param_groups, shards.param_groups, strict=True):
        group.update({key: value for key, value in saved.items() if key not in _IMPLEMENTATION})
    for counter in ("global_steps", "global_samples", "skipped_steps"):
        setattr(engine, counter, shards.model[counter])
    # the files are let go
    return deepcopy({key: value for key, value in shards.model.items() if key != "module"})


def _check_same_model(engine: Engine, shards: Shards, folder: Path) -> None:
    """Compare names and shapes of parameters and buffers, and the number of groups."""
    module: nn.Module = engine.module
    persistent = module.state_dict().keys() & dict(module.named_buffers()).keys()
    wanted = {
        name: getattr(value, "ds_shape", value.shape) for name, value in module.named_parameters()
    }
    wanted |= {name: module.get_buffer(name).shape for name in persistent}
    found = shards.shapes | {name: value.shape for name, value in shards.buffers().items()}
    if differing := sorted(
        name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)
    ):
        raise RuntimeError(
            f"checkpoint {folder} is of another model: {len(differing)} parameters and buffers differ, "
            f"{differing[0]} is {found.get(differing[0])} there and {wanted.get(differing[0])} here"
        )
    if len(engine.optimizer.param_groups) != len(shards.param_groups):
        raise RuntimeError(
            f"checkpoint {folder} has {len(shards.param_groups)} parameter groups, "
            f"and the run has {len(engine.optimizer.param_groups)}"
        )


def _place_mapped_parts(engine: Engine, shards: Shards) -> None:
    """Stages 1 and 2: the optimizer's flat tensor of a group holds whatever parameters fall in this rank's part."""
    optimizer = engine.optimizer
    targets = [
        _targets(optimizer, group["params"][0], group, shards) for group in optimizer.param_groups
    ]
    for name, parameter in engine.module.named_parameters():
        if (mine := parameter._hp_mapping) is None:  # all of it is on other ranks
            continue
        here, there = mine.hp_fragment_address, mine.lp_fragment_address
        for key, target in targets[mine.param_group_index].items():
            target.narrow(0, here.start, here.numel).copy_(
                shards.read(name, key, there.start, there.numel)
            )
    if shards.step is not None:
        # parameters know their moments, as after a first step
        optimizer._lazy_init_hp_params_optimizer_state()
    optimizer.update_lp_params()  # casts, and gathers from all ranks


def _place_equal_parts(engine: Engine, shards: Shards, processes: Processes) -> None:
    """Stage 3: the optimizer's flat tensor of a sub-group holds this rank's equal part of each of its parameters."""
    optimizer = engine.optimizer
    optimizer.checkpoint_event_prologue()  # nothing stays gathered
    for index, parameters in enumerate(optimizer.fp16_groups):
        group = optimizer.param_groups[optimizer.sub_group_to_group_id[index]]
        targets, start = (
            _targets(optimizer, optimizer.fp32_partitioned_groups_flat[index], group, shards),
            0,
        )
        for parameter in parameters:
            name, part = engine.param_names[parameter], parameter.partition_numel()
            for key, target in targets.items():
                values = shards.read(name, key, processes.rank * part, part)
                # what follows, up to `part`, is padding
                target.narrow(0, start, len(values)).copy_(values)
            start += part
        # casts to the parameters of the forward pass
        optimizer._reassign_or_swap_out_partitioned_parameters(index)
    optimizer.checkpoint_event_epilogue()  # gathers those again that are always kept whole


def _targets(optimizer: Any, flat: Tensor, group: dict[str, Any], shards: Shards) -> Values:
    """Where the values of a flat tensor go: itself, and AdamW's state of it, begun as AdamW's first step does."""
    if shards.step is None:
        return {"fp32": flat}
    moments = {key: torch.zeros_like(flat) for key in MOMENTS}
    # torch keeps it there
    step = shards.step.to(flat.device if group["fused"] else "cpu", copy=True)
    optimizer.optimizer.state[flat] = {"step": step, **moments}
    return {"fp32": flat, **moments}
