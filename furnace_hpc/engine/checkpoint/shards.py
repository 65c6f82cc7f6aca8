"""The files of a DeepSpeed checkpoint of ZeRO stage 1, 2 or 3, read as parameters: any stretch of values by name.

Written against DeepSpeed 0.19.8. Each rank's file holds a flat tensor for each group of parameters. Stages 1 and 2
(and BF16_Optimizer) cut the whole group's values into as many parts as there are ranks, wherever that falls, and save
which parameter lies where; stage 3 cuts every parameter into equal parts and saves the shapes alone.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from furnace_hpc.config.parsing.utf8_path import utf8_path
from furnace_hpc.runs.trust import check_trusted

MOMENTS = ("exp_avg", "exp_avg_sq")
# "fp32" and the moments -> values, all of one length; none of the moments before step 1
Values = dict[str, Tensor]


@dataclass(frozen=True)
class Shards:
    """A checkpoint of stage 1, 2 or 3, whatever the number of ranks that wrote it."""

    model: dict[str, Any]
    """Rank 0's model file: buffers, counters, what the caller gave to be kept."""
    param_groups: list[dict[str, Any]]
    step: Tensor | None
    """Adam's step count; None when no step was made."""
    shapes: dict[str, torch.Size]
    pieces: dict[str, list[Values]]
    """Parts of each flattened parameter, in order."""

    def read(self, name: str, key: str, start: int, numel: int) -> Tensor:
        """Some consecutive values of a flattened parameter; `key` is "fp32" or one of the moments."""
        found, end, at = [], start + numel, 0
        for values in self.pieces[name]:
            piece = values[key]
            first, last = max(start - at, 0), min(end - at, piece.numel())
            if first < last:
                found.append(piece[first:last])
            at += piece.numel()
        return torch.cat(found) if found else torch.empty(0)

    def buffers(self) -> dict[str, Tensor]:
        """Rank 0's buffers (BatchNorm statistics, say); the other ranks' are not kept by any stage's own loading."""
        return {name: self.model["module"][name] for name in self.model["buffer_names"]}


def whole_weights(folder: Path) -> dict[str, Tensor]:
    """Whole fp32 parameters and buffers by name, of a checkpoint of any stage, by any number of ranks.

    Raises:
        RuntimeError: files or values are missing.
    """
    if not has_shards(folder):
        check_trusted(folder, folder)
        module: dict[str, Tensor] = _open(folder / "mp_rank_00_model_states.pt")["module"]
        return {name: value.detach().clone() for name, value in module.items()}
    shards = open_shards(folder)
    whole = {
        name: shards.read(name, "fp32", 0, prod(shape)).view(shape)
        for name, shape in shards.shapes.items()
    }
    whole |= {name: value.clone() for name, value in shards.buffers().items()}
    return {name: value.detach() for name, value in whole.items()}


def has_shards(folder: Path) -> bool:
    """Whether the checkpoint is one of stages 1, 2, 3: stage 0 keeps everything in the model file."""
    return any(folder.glob("*_optim_states.pt"))


def open_shards(folder: Path) -> Shards:
    """Open all ranks' files. They are mapped: what is never read is never loaded.

    Raises:
        ConfigError: others can have written them.
        RuntimeError: files or values are missing.
    """
    check_trusted(folder, folder)
    paths = {
        int(match[1]): path
        for path in folder.glob("*_optim_states.pt")
        if (match := _RANK.search(path.name))
    }
    stage_3 = folder / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    model = _open(stage_3 if stage_3.exists() else folder / "mp_rank_00_model_states.pt")
    if sorted(paths) != list(range(model["dp_world_size"])):
        raise RuntimeError(
            f"{folder} has optimizer files of ranks {sorted(paths)}, not of all {model['dp_world_size']}"
        )
    states = [_open(paths[rank])["optimizer_state_dict"] for rank in sorted(paths)]

    pieces: dict[str, list[Values]] = {}
    for rank, state in enumerate(states):
        in_order = (
            _of_equal_parts(state, model["param_shapes"], rank, len(states))
            if "fp32_flat_groups" in state
            else _of_mapped_parts(state)
        )
        for name, values in in_order:
            pieces.setdefault(name, []).append(values)
    shapes = {name: shape for group in model["param_shapes"] for name, shape in group.items()}
    for name, shape in shapes.items():
        if (numel := sum(values["fp32"].numel() for values in pieces.get(name, []))) != prod(shape):
            raise RuntimeError(
                f"{folder} holds {numel} values of parameter {name}, not {prod(shape)}"
            )
    adam = _adam(states[0])
    steps = [entry["step"] for entry in adam["state"].values()]
    return Shards(
        model, adam["param_groups"], torch.as_tensor(steps[0]) if steps else None, shapes, pieces
    )


_RANK = re.compile(r"zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt$")


def _open(path: Path) -> dict[str, Any]:
    # weights_only=False: the files hold DeepSpeed's own classes, and nobody else can have written
    # them.
    with utf8_path(path) as named:
        content: dict[str, Any] = torch.load(
            named, map_location="cpu", mmap=True, weights_only=False
        )
    return content


def _adam(state: dict[str, Any]) -> dict[str, Any]:
    """AdamW's own state dict: one flat tensor for each entry of its state."""
    adam: dict[str, Any] = state[
        "optimizer_state_dict" if "fp32_flat_groups" in state else "base_optimizer_state"
    ]
    return adam


def _of_mapped_parts(state: dict[str, Any]) -> Iterator[tuple[str, Values]]:
    """One rank's (name, values) of stages 1 and 2: where each lies in the flat tensor is saved."""
    for group, addresses in enumerate(state["param_slice_mappings"]):
        flat = {"fp32": state["single_partition_of_fp32_groups"][group]} | _moments(state, group)
        for name, address in addresses.items():
            yield (
                name,
                {
                    key: values.narrow(0, address.start, address.numel)
                    for key, values in flat.items()
                },
            )


def _of_equal_parts(
    state: dict[str, Any], param_shapes: list[dict[str, torch.Size]], rank: int, world_size: int
) -> Iterator[tuple[str, Values]]:
    """One rank's (name, values) of stage 3: an equal part of every parameter, with padding at its end."""
    for group, shapes in enumerate(param_shapes):
        flat = {"fp32": state["fp32_flat_groups"][group]} | _moments(state, group)
        start = 0
        for name, shape in shapes.items():
            part = -(-prod(shape) // world_size)
            numel = min(max(prod(shape) - rank * part, 0), part)
            yield name, {key: values.narrow(0, start, numel) for key, values in flat.items()}
            start += part


def _moments(state: dict[str, Any], group: int) -> Values:
    entry = _adam(state)["state"].get(group, {})
    return {key: entry[key] for key in MOMENTS if key in entry}
