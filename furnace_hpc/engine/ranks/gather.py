"""Gather the tensors of all ranks with their gradient, for losses that compare samples."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from furnace_hpc.engine.ranks.distributed import Processes
from furnace_hpc.model.losses import Gather, local_gather


def gather_of(processes: Processes) -> Gather:
    """Return a collective function that joins the tensors of all ranks on the first axis.

    The tensors have equal shapes. The function also returns the index of this rank's first row.
    """
    if processes.world_size == 1:
        return local_gather

    def gather(tensor: Tensor) -> tuple[Tensor, int]:
        whole: Tensor = _AllGather.apply(tensor.contiguous(), processes)  # type: ignore[no-untyped-call]
        return whole, processes.rank * len(tensor)

    return gather


class _AllGather(torch.autograd.Function):
    """Concatenate over ranks. Backward sums all ranks' gradients of a rank's own part.

    Data-parallel training then takes the mean of gradients over ranks. The result is the gradient
    of the mean of the ranks' losses, without a factor for the number of ranks (compare open_clip
    issue 616).
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, processes: Processes) -> Tensor:
        ctx.rank, ctx.size = processes.rank, len(tensor)
        parts = [torch.empty_like(tensor) for _ in range(processes.world_size)]
        dist.all_gather(parts, tensor)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.rank * ctx.size : (ctx.rank + 1) * ctx.size], None
