"""Read the files of a DeepSpeed checkpoint of ZeRO stage 1, 2 or 3 as parameters.

Any range of values of a parameter can be read. Written against DeepSpeed 0.19.8. Each rank's file
contains one flat tensor per group of parameters. Stages 1 and 2 (and BF16_Optimizer) divide the
values of a whole group evenly among the ranks, across the borders of parameters. They save the
address of each parameter. Stage 3 divides each parameter evenly among the ranks and saves only the
shapes.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from furnace_hpc.engine.checkpoint.frozen_values import FrozenValues, frozen_values, open_file
from furnace_hpc.runs.trust import check_trusted

AVERAGE = "ema"
Values = dict[str, Tensor]
""""fp32", the moments and the average -> values, all of one length. Before step 1 there is only
"fp32"."""
_RANK = re.compile(r"zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt$")


class Piece(NamedTuple):
    """Where a run of consecutive values of a parameter is."""

    rank: int
    """The rank whose file has it."""
    group: int
    start: int
    """First value in the flat tensor of the group."""
    numel: int


@dataclass(frozen=True)
class Index:
    """Where the values of all parameters are, and the optimizer's settings."""

    shapes: dict[str, torch.Size]
    pieces: dict[str, list[Piece]]
    """Consecutive pieces of each flattened parameter that is trained."""
    param_groups: list[dict[str, Any]]
    state: "OptimizerState | None"
    """None if no step was made, or if the optimizer has no state."""

    @property
    def has_average(self) -> bool:
        """Whether the checkpoint has a moving average of the weights."""
        return self.state is not None and AVERAGE in self.state.moments


class OptimizerState(NamedTuple):
    """What an optimizer keeps for its parameters."""

    moments: tuple[str, ...]
    """Names of what it keeps for each value, such as exp_avg."""
    numbers: dict[str, Any]
    """The rest, which is the same for all parameters: the step count."""


class Shards:
    """A checkpoint of stage 1, 2 or 3, written by any number of ranks.

    A file is opened when the first value in it is read.
    """

    def __init__(
        self,
        model: dict[str, Any],
        index: Index,
        open_flat: Callable[[int], list[Values]],
        frozen: FrozenValues | None = None,
    ) -> None:
        """Keep what was read so far.

        Args:
            model: rank 0's model file: buffers, counters and the client state.
            index: where the values are.
            open_flat: the flat tensors of all groups in the file of a rank.
            frozen: the parameters that are not trained.
        """
        self.model, self.index = model, index
        self._open_flat = cache(open_flat)
        self.frozen = frozen or FrozenValues({}, lambda name: torch.empty(0))

    def read(self, name: str, key: str, start: int, numel: int) -> Tensor:
        """Read consecutive values of a flattened parameter. `key` is one of `Values`."""
        found, end, offset = [], start + numel, 0
        for piece in self.index.pieces[name]:
            first, last = max(start - offset, 0), min(end - offset, piece.numel)
            if first < last:
                flat = self._open_flat(piece.rank)[piece.group][key]
                found.append(flat.narrow(0, piece.start + first, last - first))
            offset += piece.numel
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
        module: dict[str, Tensor] = open_file(folder / "mp_rank_00_model_states.pt")["module"]
        return {name: value.detach().clone() for name, value in module.items()}
    shards = open_shards(folder)
    whole = {
        name: shards.read(name, "fp32", 0, prod(shape)).view(shape)
        for name, shape in shards.index.shapes.items()
    }
    for name in shards.frozen.shapes:
        whole[name] = shards.frozen.read(name).clone()
    whole |= {name: value.clone() for name, value in shards.buffers().items()}
    whole = _with_second_names(whole, dict(shards.model.get("shared_params") or {}))
    return {name: value.detach() for name, value in whole.items()}


def whole_average(folder: Path) -> dict[str, Tensor]:
    """The moving average of the weights by name, of a checkpoint of any stage. Empty if none.

    Parameters that were never trained are left out.

    Raises:
        RuntimeError: files or values are missing.
    """
    if has_shards(folder):
        shards = open_shards(folder)
        if not shards.index.has_average:
            return {}
        whole = {
            name: shards.read(name, AVERAGE, 0, prod(shape)).view(shape).clone()
            for name, shape in shards.index.shapes.items()
        }
        return _with_second_names(whole, dict(shards.model.get("shared_params") or {}))
    check_trusted(folder, folder)
    content = open_file(folder / "mp_rank_00_model_states.pt")
    saved = content["optimizer"]
    found: dict[str, Tensor] = {}
    for group in saved["param_groups"]:
        for number, name in zip(group["params"], group.get("names", ()), strict=False):
            state = saved["state"].get(number, {})
            if AVERAGE in state:
                found[name] = state[AVERAGE].clone()
    return _with_second_names(found, _same_tensors(content["module"]))


def _with_second_names(whole: dict[str, Tensor], first_names: dict[str, str]) -> dict[str, Tensor]:
    """The weights with the second names of parameters, such as those of tied weights."""
    tied = {name: first for name, first in first_names.items() if first in whole}
    return whole | {name: whole[first].clone() for name, first in tied.items()}


def _same_tensors(module: dict[str, Tensor]) -> dict[str, str]:
    """Name -> earlier name of the same tensor, in a model file of stage 0."""
    first: dict[tuple[int, torch.Size], str] = {}
    found = {}
    for name, value in module.items():
        key = (value.data_ptr(), value.shape)
        if value.numel() and first.setdefault(key, name) != name:
            found[name] = first[key]
    return found


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
    return open_trusted(folder, [path.name for path in folder.iterdir()])


def open_trusted(
    folder: Path,
    names: Sequence[str],
    rank: int = 0,
    world_size: int = 1,
    gather: Callable[[Any], list[Any]] = lambda value: [value],
) -> Shards:
    """Collective. Open the files of a folder that only this user can have written.

    Each file is opened on one rank to find out what is in it. Later each rank opens only the files
    with values that it reads.

    Args:
        folder: the folder of DeepSpeed's files.
        names: the files in it.
        rank: of this process.
        world_size: number of processes that share the work.
        gather: returns the values of all of them, in order.

    Raises:
        RuntimeError: files or values are missing.
    """
    model_name = "zero_pp_rank_0_mp_rank_00_model_states.pt"  # of stage 3
    if model_name not in names:
        model_name = "mp_rank_00_model_states.pt"
    model = open_file(folder / model_name)
    param_shapes: list[dict[str, torch.Size]] = model["param_shapes"]
    files = _optimizer_files(folder, names, model["dp_world_size"])

    def open_state(number: int) -> dict[str, Any]:
        state: dict[str, Any] = open_file(files[number])["optimizer_state_dict"]
        return state

    own = range(rank, len(files), world_size)
    states = {number: open_state(number) for number in own}
    parts = {
        number: list(_pieces(states[number], param_shapes, number, len(files))) for number in own
    }
    settings = _optimizer_settings(states[0]) if rank == 0 else None
    gathered = gather((parts, settings))
    all_parts = {number: found for parts, _ in gathered for number, found in parts.items()}
    shapes = {name: shape for group in param_shapes for name, shape in group.items()}
    pieces = _join([all_parts[number] for number in range(len(files))], shapes, folder)

    def open_flat(number: int) -> list[Values]:
        return _flat(states.get(number) or open_state(number))

    index = Index(shapes, pieces, *gathered[0][1])
    return Shards(model, index, open_flat, frozen_values(folder, model, len(files)))


def _optimizer_files(folder: Path, names: Sequence[str], world_size: int) -> list[Path]:
    """The optimizer file of each rank, in the order of ranks."""
    paths: dict[int, Path] = {}
    for name in names:
        match = _RANK.search(name)
        if match:
            paths[int(match[1])] = folder / name
    if sorted(paths) != list(range(world_size)):
        raise RuntimeError(
            f"{folder} has optimizer files of ranks {sorted(paths)}, expected those of "
            f"{world_size} ranks"
        )
    return [paths[rank] for rank in range(world_size)]


def _join(
    parts: list[list[tuple[str, Piece]]], shapes: dict[str, torch.Size], folder: Path
) -> dict[str, list[Piece]]:
    """The pieces of each parameter, from those of each file."""
    pieces: dict[str, list[Piece]] = {}
    for part in parts:
        for name, piece in part:
            pieces.setdefault(name, []).append(piece)
    for name, shape in shapes.items():
        numel = sum(piece.numel for piece in pieces.get(name, []))
        if numel != prod(shape):
            raise RuntimeError(
                f"{folder} has {numel} values of parameter {name}, expected {prod(shape)}"
            )
    return pieces


def _is_stage_3(state: dict[str, Any]) -> bool:
    return "fp32_flat_groups" in state


def _optimizer(state: dict[str, Any]) -> dict[str, Any]:
    """The optimizer's own state dict, with one flat tensor for each entry of its state."""
    key = "optimizer_state_dict" if _is_stage_3(state) else "base_optimizer_state"
    found: dict[str, Any] = state[key]
    return found


def _optimizer_settings(
    state: dict[str, Any],
) -> tuple[list[dict[str, Any]], OptimizerState | None]:
    """The parameter groups, and what the optimizer keeps."""
    settings = _optimizer(state)
    groups, kept = settings["param_groups"], list(settings["state"].values())
    if not kept or not any(value is not None for value in kept[0].values()):
        return groups, None
    numbers = {key: value for key, value in kept[0].items() if not _is_moment(value)}
    if "step" in numbers:
        numbers["step"] = torch.as_tensor(numbers["step"])
    return groups, OptimizerState(tuple(kept[0].keys() - numbers.keys()), numbers)


def _is_moment(value: Any) -> bool:
    """Whether it has one value for each of a parameter's. A step count is a single number."""
    return isinstance(value, Tensor) and value.dim() > 0


def _pieces(
    state: dict[str, Any], param_shapes: list[dict[str, torch.Size]], rank: int, world_size: int
) -> Iterator[tuple[str, Piece]]:
    """The pieces of parameters in one rank's file."""
    if not _is_stage_3(state):  # the file contains the addresses
        for group, addresses in enumerate(state["param_slice_mappings"]):
            for name, address in addresses.items():
                yield name, Piece(rank, group, address.start, address.numel)
        return
    for group, shapes in enumerate(param_shapes):  # an equal part of each parameter, padded
        start = 0
        for name, shape in shapes.items():
            part = -(-prod(shape) // world_size)
            numel = min(max(prod(shape) - rank * part, 0), part)
            yield name, Piece(rank, group, start, numel)
            start += part


def _flat(state: dict[str, Any]) -> list[Values]:
    """The flat tensors of each group in one rank's file."""
    key = "fp32_flat_groups" if _is_stage_3(state) else "single_partition_of_fp32_groups"
    return [{"fp32": flat} | _moments(state, group) for group, flat in enumerate(state[key])]


def _moments(state: dict[str, Any], group: int) -> Values:
    entry = _optimizer(state)["state"].get(group, {})
    return {key: value for key, value in entry.items() if _is_moment(value)}
