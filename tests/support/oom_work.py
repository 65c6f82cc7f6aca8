"""A rank of a local run. Rank 1 is out of memory in its fifth training batch."""

import os
from typing import Any

import torch

from furnace_hpc.launch import rank_main
from furnace_hpc.model.network import FusionModel

whole_forward = FusionModel.forward
calls = 0


def forward(self: FusionModel, *inputs: Any, **named: Any) -> Any:
    global calls
    calls += self.training
    if self.training and calls == 5 and os.environ["SUBMITIT_LOCAL_GLOBALID"] == "1":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return whole_forward(self, *inputs, **named)


FusionModel.forward = forward  # type: ignore[method-assign]
rank_main.run_task()
