"""Square roots: torch's own, or correctly rounded ones for portable runs.

torch takes square roots from MKL. MKL rounds them in two ways, by the vendor of the CPU, and none
of its settings changes that. Other functions of the network come from torch itself.
"""

from typing import Any

import torch
from torch import Tensor

_rounds_correctly = False


def round_correctly(is_on: bool) -> None:
    """Choose for this process: correctly rounded square roots, or torch's own."""
    global _rounds_correctly
    _rounds_correctly = is_on


def square_root(x: Tensor) -> Tensor:
    """The square root of each element."""
    if _rounds_correctly and x.dtype == torch.float32:
        root: Tensor = _CorrectRoot.apply(x)  # type: ignore[no-untyped-call]
        return root
    return x.sqrt()


class _CorrectRoot(torch.autograd.Function):
    """A root in fp64 may be wrong by its last bit. Rounded to fp32 it is the correct one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        root = x.double().sqrt().float()
        ctx.save_for_backward(root)
        return root

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        root: Tensor = ctx.saved_tensors[0]
        return gradients[0] / (2 * root)
