"""Read the parameters that are not trained from the model files of a DeepSpeed checkpoint.

The optimizer's files do not have them. At stages 1 and 2 rank 0's model file has them whole. At
stage 3 each rank's model file has an equal part of each of them, and the last part is padded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from furnace_hpc.config.parsing.utf8_path import utf8_path

STAGE_3_MODEL = "zero_pp_rank_{rank}_mp_rank_00_model_states.pt"


@dataclass(frozen=True)
class FrozenValues:
    """Frozen parameters, which are read when they are asked for."""

    shapes: dict[str, torch.Size]
    read_flat: Callable[[str], Tensor]

    def read(self, name: str) -> Tensor:
        """A whole parameter."""
        return self.read_flat(name).view(self.shapes[name])


def frozen_values(folder: Path, model: dict[str, Any], world_size: int) -> FrozenValues:
    """The frozen parameters of a checkpoint that only this user can have written.

    Args:
        folder: the folder of DeepSpeed's files.
        model: content of rank 0's model file.
        world_size: number of ranks that wrote it.
    """
    if not (folder / STAGE_3_MODEL.format(rank=0)).exists():
        module: dict[str, Tensor] = model["module"]
        shapes = {name: module[name].shape for name in _names(model)}
        return FrozenValues(shapes, lambda name: module[name].reshape(-1))

    @cache
    def fragments(rank: int) -> dict[str, Tensor]:
        content = open_file(folder / STAGE_3_MODEL.format(rank=rank))
        found: dict[str, Tensor] = content["frozen_param_fragments"]
        return found

    shapes = model["frozen_param_shapes"] or {}

    def read_flat(name: str) -> Tensor:
        parts = [fragments(rank)[name].reshape(-1) for rank in range(world_size)]
        return torch.cat(parts)[: prod(shapes[name])]

    return FrozenValues(dict(shapes), read_flat)


def _names(model: dict[str, Any]) -> list[str]:
    """Frozen parameters: neither trained, nor buffers, nor second names of others."""
    trained = {name for group in model["param_shapes"] for name in group}
    others = {*model["buffer_names"], *dict(model.get("shared_params") or {})}
    return [name for name in model["module"] if name not in trained | others]


def open_file(path: Path) -> dict[str, Any]:
    """The content of a file of DeepSpeed. It is mapped: values are loaded when they are read.

    weights_only=False: the files contain DeepSpeed's own classes. The caller has checked that no
    other user could have written them.
    """
    with utf8_path(path) as readable:
        content: dict[str, Any] = torch.load(
            readable, map_location="cpu", mmap=True, weights_only=False
        )
    return content
