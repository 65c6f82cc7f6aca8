"""Load a checkpoint of another number of processes or another ZeRO stage from 1 to 3.

DeepSpeed's own loading refuses both. Its universal checkpoints (tried with 0.19.8) need a second
copy on disk and silently lose data: buffers, and at stage 3 the settings of all parameter groups
but the first and Adam's step count. (The sub-groups of stage 3 then share one counter, and each
advances it.) At stages 1 and 2 they cannot be loaded if a rank has no values of a group
(IndexError). So nothing is converted here. Every rank reads the values that it now needs from the
checkpoint's files, and copies them to where its optimizer keeps them.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.engine.checkpoint.shards import Shards, Values, open_trusted
from furnace_hpc.engine.deepspeed_engine import Engine
from furnace_hpc.engine.ranks.distributed import Processes

# Settings of how torch computes a step. They depend on the present machine, so they are not loaded.
_IMPLEMENTATION = {"params", "fused", "foreach", "capturable", "differentiable"}


def load(engine: Engine, folder: Path, processes: Processes) -> dict[str, Any]:
    """Collective. Load a DeepSpeed folder (`<checkpoint>/zero`) and return its client state.

    The caller has checked that no other user can have written it.

    fp32 parameters, moments, the average, the step count, frozen parameters, the settings of
    parameter groups and rank 0's buffers are restored bit by bit. Random states are not part of
    DeepSpeed's files.

    Raises:
        ConfigError: only one of checkpoint and run is at stage 0.
        RuntimeError: the checkpoint is of another model, or incomplete.
    """
    stage = engine.zero_optimization_stage()
    own_names: list[str] = []
    if processes.is_rank_zero:
        own_names = [path.name for path in folder.iterdir()]
    names: list[str] = processes.broadcast(own_names)
    _check_stage(folder, names, stage)
    if stage == 0:  # one replicated file, which any number of processes can read
        loaded, client_state = engine.load_checkpoint(str(folder.parent), tag=folder.name)
        if loaded is None:
            raise RuntimeError(f"checkpoint {folder} could not be loaded")
        return dict(client_state)

    shards = open_trusted(folder, names, processes.rank, processes.world_size, processes.gather)
    _check_same_model(engine, shards, folder)
    with torch.no_grad():
        if stage == 3:
            _load_equal_parts(engine, shards, processes)
        else:
            _load_mapped_parts(engine, shards)
        _load_frozen(engine, shards, processes)
        for name, value in shards.buffers().items():
            engine.module.get_buffer(name).copy_(value)
    for group, saved in zip(engine.optimizer.param_groups, shards.index.param_groups, strict=True):
        group.update({key: value for key, value in saved.items() if key not in _IMPLEMENTATION})
    for counter in ("global_steps", "global_samples", "skipped_steps"):
        setattr(engine, counter, shards.model[counter])
    # deepcopy, so that the mapped files can be closed
    weights = ("module", "frozen_param_fragments")
    return deepcopy({key: value for key, value in shards.model.items() if key not in weights})


def _check_stage(folder: Path, names: list[str], stage: int) -> None:
    has_shards = any(name.endswith("_optim_states.pt") for name in names)
    saved_stage = "1, 2 or 3" if has_shards else "0"
    if (saved_stage == "0") != (stage == 0):
        raise ConfigError(
            f"checkpoint {folder} was made at ZeRO stage {saved_stage}, and the run is now at "
            f"stage {stage}. Stage 0 and the other stages cannot load each other's checkpoints. "
            f"Resume with a DeepSpeed file of stage {saved_stage}."
        )


def _check_same_model(engine: Engine, shards: Shards, folder: Path) -> None:
    """Compare names and shapes of parameters and buffers, and the number of groups."""
    module: nn.Module = engine.module
    persistent = module.state_dict().keys() & dict(module.named_buffers()).keys()
    expected = {
        name: getattr(value, "ds_shape", value.shape) for name, value in module.named_parameters()
    }
    expected |= {name: module.get_buffer(name).shape for name in persistent}
    found = shards.index.shapes | shards.frozen.shapes
    found |= {name: value.shape for name, value in shards.buffers().items()}
    names = expected.keys() | found.keys()
    differing = sorted(name for name in names if expected.get(name) != found.get(name))
    if differing:
        first = differing[0]
        raise RuntimeError(
            f"checkpoint {folder} is of another model: {len(differing)} parameters and buffers "
            f"differ. The shape of {first} is {found.get(first)} in the checkpoint, "
            f"{expected.get(first)} in the run."
        )
    frozen = {name for name, value in module.named_parameters() if not value.requires_grad}
    if differing := sorted(frozen ^ shards.frozen.shapes.keys()):
        raise RuntimeError(
            f"checkpoint {folder} was made with other frozen parameters: {len(differing)} differ, "
            f"such as {differing[0]}."
        )
    num_groups = len(engine.optimizer.param_groups)
    if num_groups != len(shards.index.param_groups):
        raise RuntimeError(
            f"checkpoint {folder} has {len(shards.index.param_groups)} parameter groups, expected "
            f"{num_groups}"
        )


def _load_mapped_parts(engine: Engine, shards: Shards) -> None:
    """Stages 1 and 2: a group's flat tensor contains all values in this rank's part."""
    optimizer = engine.optimizer
    targets = [
        _targets(optimizer, group["params"][0], group, shards) for group in optimizer.param_groups
    ]
    for name, parameter in engine.module.named_parameters():
        mapping = parameter._hp_mapping if parameter.requires_grad else None
        if mapping is None:  # other ranks have all values of this parameter, or it is frozen
            continue
        flat_range, own_range = mapping.hp_fragment_address, mapping.lp_fragment_address
        for key, target in targets[mapping.param_group_index].items():
            values = shards.read(name, key, own_range.start, own_range.numel)
            target.narrow(0, flat_range.start, flat_range.numel).copy_(values)
    if shards.index.state is not None:
        # Links parameters to their moments, as DeepSpeed does after a first step.
        optimizer._lazy_init_hp_params_optimizer_state()
    optimizer.update_lp_params()  # casts, and gathers from all ranks


def _load_equal_parts(engine: Engine, shards: Shards, processes: Processes) -> None:
    """Stage 3: a sub-group's flat tensor contains an equal part of each of its parameters."""
    optimizer = engine.optimizer
    optimizer.checkpoint_event_prologue()  # releases gathered parameters
    for index, parameters in enumerate(optimizer.fp16_groups):
        group = optimizer.param_groups[optimizer.sub_group_to_group_id[index]]
        flat = optimizer.fp32_partitioned_groups_flat[index]
        targets = _targets(optimizer, flat, group, shards)
        start = 0
        for parameter in parameters:
            name, part = engine.param_names[parameter], parameter.partition_numel()
            for key, target in targets.items():
                values = shards.read(name, key, processes.rank * part, part)
                # The last rank may read fewer than `part` values. The rest is padding.
                target.narrow(0, start, len(values)).copy_(values)
            start += part
        # Casts to the parameters of the forward pass.
        optimizer._reassign_or_swap_out_partitioned_parameters(index)
    optimizer.checkpoint_event_epilogue()  # gathers those parameters that are always kept whole


def _load_frozen(engine: Engine, shards: Shards, processes: Processes) -> None:
    """Parameters that are not trained. At stage 3 a rank has an equal part of each."""
    is_divided = engine.zero_optimization_stage() == 3
    if is_divided:
        engine.optimizer.checkpoint_event_prologue()
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            continue
        value = shards.frozen.read(name)
        if not is_divided:
            parameter.data.copy_(value)
            continue
        part = parameter.partition_numel()
        own = value.reshape(-1)[processes.rank * part : (processes.rank + 1) * part]
        parameter.ds_tensor.data.narrow(0, 0, len(own)).copy_(own)
    if is_divided:
        engine.optimizer.checkpoint_event_epilogue()


def _targets(optimizer: Any, flat: Tensor, group: dict[str, Any], shards: Shards) -> Values:
    """Tensors to load into: a flat tensor, and what the optimizer keeps for it.

    The state is created as the optimizer's first step does.
    """
    saved = shards.index.state
    if saved is None:
        return {"fp32": flat}
    moments = {key: torch.zeros_like(flat) for key in saved.moments}
    numbers = deepcopy(saved.numbers)
    for key, value in numbers.items():
        if isinstance(value, Tensor):
            # torch keeps step counts on the CPU unless the optimizer is fused.
            device = flat.device if group.get("fused") else "cpu"
            numbers[key] = value.to(device, copy=True)
    optimizer.optimizer.state[flat] = {**numbers, **moments}
    return {"fp32": flat, **moments}
