"""Read the files of a DeepSpeed checkpoint of ZeRO stage 1, 2 or 3 as parameters.

Any range of values of a parameter can be read. Written against DeepSpeed 0.19.8. Each rank's file
contains one flat tensor per group of parameters. Stages 1 and 2 (and BF16_Optimizer) divide the
values of a whole group evenly among the ranks, across the borders of parameters. They save the
address of each parameter. Stage 3 divides each parameter evenly among the ranks and saves only the
shapes.
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
Values = dict[str, Tensor]
""""fp32" and the moments -> values, all of one length. Before step 1 there are no moments."""


@dataclass(frozen=True)
class Shards:
    """A checkpoint of stage 1, 2 or 3, written by any number of ranks."""

    model: dict[str, Any]
    """Rank 0's model file: buffers, counters and the client state."""
    param_groups: list[dict[str, Any]]
    step: Tensor | None
    """Adam's step count. None if no step was made."""
    shapes: dict[str, torch.Size]
    pieces: dict[str, list[Values]]
    """Consecutive pieces of each flattened parameter."""

    def read(self, name: str, key: str, start: int, numel: int) -> Tensor:
        """Read consecutive values of a flattened parameter. `key` is "fp32" or a moment."""
        found, end, offset = [], start + numel, 0
        for values in self.pieces[name]:
            piece = values[key]
            first, last = max(start - offset, 0), min(end - offset, piece.numel())
            if first < last:
                found.append(piece[first:last])
            offset += piece.numel()
        return torch.cat(found) if found else torch.empty(0)

    def buffers(self) -> dict[str, Tensor]:
        """Rank 0's buffers, such as BatchNorm statistics. DeepSpeed, too, loads only those."""
        return {name: self.model["module"][name] for name in self.model["buffer_names"]}


def whole_weights(folder: Path) -> dict[str, Tensor]:
    """Whole fp32 parameters and buffers by name, of a checkpoint of any stage and number of ranks.

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
    """Whether the checkpoint is of stage 1, 2 or 3. At stage 0 there is only a model file."""
    return any(folder.glob("*_optim_states.pt"))


def open_shards(folder: Path) -> Shards:
    """Open the files of all ranks. They are mapped: values are loaded when they are read.

    Raises:
        ConfigError: another user could have written the files.
        RuntimeError: files or values are missing.
    """
    check_trusted(folder, folder)
    stage_3_model = folder / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    if stage_3_model.exists():
        model = _open(stage_3_model)
    else:
        model = _open(folder / "mp_rank_00_model_states.pt")
    states = _open_optimizer_states(folder, model["dp_world_size"])
    pieces = _pieces(states, model["param_shapes"])
    shapes = {name: shape for group in model["param_shapes"] for name, shape in group.items()}
    for name, shape in shapes.items():
        numel = sum(values["fp32"].numel() for values in pieces.get(name, []))
        if numel != prod(shape):
            raise RuntimeError(
                f"{folder} has {numel} values of parameter {name}, expected {prod(shape)}"
            )
    adam = _adam(states[0])
    step: Tensor | None = None
    if adam["state"]:
        step = torch.as_tensor(next(iter(adam["state"].values()))["step"])
    return Shards(model, adam["param_groups"], step, shapes, pieces)


_RANK = re.compile(r"zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt$")


def _open_optimizer_states(folder: Path, world_size: int) -> list[dict[str, Any]]:
    """Open the optimizer file of each rank, in the order of ranks."""
    paths: dict[int, Path] = {}
    for path in folder.glob("*_optim_states.pt"):
        match = _RANK.search(path.name)
        if match:
            paths[int(match[1])] = path
    if sorted(paths) != list(range(world_size)):
        raise RuntimeError(
            f"{folder} has optimizer files of ranks {sorted(paths)}, expected those of "
            f"{world_size} ranks"
        )
    return [_open(paths[rank])["optimizer_state_dict"] for rank in range(world_size)]


def _pieces(
    states: list[dict[str, Any]], param_shapes: list[dict[str, torch.Size]]
) -> dict[str, list[Values]]:
    pieces: dict[str, list[Values]] = {}
    for rank, state in enumerate(states):
        if _is_stage_3(state):
            parts = _equal_parts(state, param_shapes, rank, len(states))
        else:
            parts = _mapped_parts(state)
        for name, values in parts:
            pieces.setdefault(name, []).append(values)
    return pieces


def _open(path: Path) -> dict[str, Any]:
    # weights_only=False: the files contain DeepSpeed's own classes. The caller has checked that no
    # other user could have written them.
    with utf8_path(path) as readable:
        content: dict[str, Any] = torch.load(
            readable, map_location="cpu", mmap=True, weights_only=False
        )
    return content


def _is_stage_3(state: dict[str, Any]) -> bool:
    return "fp32_flat_groups" in state


def _adam(state: dict[str, Any]) -> dict[str, Any]:
    """AdamW's own state dict, with one flat tensor for each entry of its state."""
    key = "optimizer_state_dict" if _is_stage_3(state) else "base_optimizer_state"
    adam: dict[str, Any] = state[key]
    return adam


def _mapped_parts(state: dict[str, Any]) -> Iterator[tuple[str, Values]]:
    """One rank's (name, values) at stages 1 and 2. The file contains the addresses."""
    for group, addresses in enumerate(state["param_slice_mappings"]):
        flat = {"fp32": state["single_partition_of_fp32_groups"][group]} | _moments(state, group)
        for name, address in addresses.items():
            yield name, _narrow(flat, address.start, address.numel)


def _equal_parts(
    state: dict[str, Any], param_shapes: list[dict[str, torch.Size]], rank: int, world_size: int
) -> Iterator[tuple[str, Values]]:
    """One rank's (name, values) at stage 3: an equal part of each parameter, padded."""
    for group, shapes in enumerate(param_shapes):
        flat = {"fp32": state["fp32_flat_groups"][group]} | _moments(state, group)
        start = 0
        for name, shape in shapes.items():
            part = -(-prod(shape) // world_size)
            numel = min(max(prod(shape) - rank * part, 0), part)
            yield name, _narrow(flat, start, numel)
            start += part


def _narrow(flat: Values, start: int, numel: int) -> Values:
    return {key: values.narrow(0, start, numel) for key, values in flat.items()}


def _moments(state: dict[str, Any], group: int) -> Values:
    entry = _adam(state)["state"].get(group, {})
    return {key: entry[key] for key in MOMENTS if key in entry}
