"""Square roots: torch's own, or correctly rounded ones for portable runs.

torch takes square roots from MKL. MKL rounds a sixth of them wrongly, in other ways on other CPUs,
and none of its settings changes that. Other functions of the network come from torch itself.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

ROOTS = (torch.sqrt, Tensor.sqrt)
IN_PLACE = (torch.sqrt_, Tensor.sqrt_)
POWERS = (torch.pow, Tensor.pow, Tensor.__pow__)

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


def correct_roots() -> AbstractContextManager[object]:
    """Round the square roots of other libraries correctly too, in the body of a `with`.

    DeepSpeed takes one for the norm of all gradients, and optimizers without a fused kernel take
    some. In a run that is not portable it does nothing.
    """
    return _CorrectRoots() if _rounds_correctly else nullcontext()


class _CorrectRoots(TorchFunctionMode):
    """Computes square roots of fp32 tensors in fp64, and rounds them to fp32."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in IN_PLACE and args[0].dtype == torch.float32:
            return args[0].copy_(args[0].double().sqrt())
        is_root = func in ROOTS or (func in POWERS and args[1:] and _is_half(args[1]))
        if is_root and not kwargs and args[0].dtype == torch.float32:
            return func(args[0].double(), *args[1:]).float()
        return func(*args, **(kwargs or {}))


def _is_half(exponent: Any) -> bool:
    return isinstance(exponent, float) and exponent == 0.5  # it may be a tensor
