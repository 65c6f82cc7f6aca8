"""Find gradients that are not finite without waiting for the GPU in each step."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


class GradientCheck:
    """Collects, on the device, whether each step's norm of the gradient was finite.

    DeepSpeed checks nothing if bf16.check_grad_overflow is false, and applies the gradient. The
    loop reads the collected value where training pauses or a record is written: before anything is
    evaluated or saved. The norm is the same on all ranks.
    """

    def __init__(self) -> None:
        self._first_bad: Tensor | float = math.inf
        """The first step whose norm was not finite."""

    def add(self, engine: Any, step: int) -> None:
        """Add the step just made. DeepSpeed turns a norm that is not finite into -1."""
        norm = engine.get_global_grad_norm()
        if norm is None:
            return
        if isinstance(norm, Tensor):
            is_good = (norm >= 0) & (norm < math.inf)
            first = torch.full_like(norm, step, dtype=torch.float64).masked_fill(is_good, math.inf)
            self._first_bad = first.clamp(max=self._first_bad)
        elif not 0 <= norm < math.inf:
            self._first_bad = min(self._first_bad, step)

    def check(self) -> None:
        """Raise FloatingPointError if the gradient of a step was not finite. It waits for a GPU."""
        first_bad = float(self._first_bad)
        if first_bad < math.inf:
            raise FloatingPointError(
                f"the gradient is not finite at step {first_bad:.0f}. Lower optimizer.lr or check "
                "the data."
            )


def step_without_waits(optimizer: Any) -> None:
    """Let the step of DeepSpeed's ZeRO optimizer read nothing back from the device.

    It asks on the host whether the norm of the gradient is finite, and copies a number to the
    device. The numbers stay the same: DeepSpeed gives a gradient that is not finite an infinite
    norm. GradientCheck finds it.
    """
    from deepspeed.runtime.zero import stage3, stage_1_and_2

    step: Callable[..., None] = optimizer.step

    def step_on_the_device(closure: Any = None) -> None:
        with _replaced(stage_1_and_2), _replaced(stage3):
            step(closure)

    optimizer.step = step_on_the_device


@contextmanager
def _replaced(module: ModuleType) -> Iterator[None]:
    """Replace the two functions of DeepSpeed that wait for the device."""
    functions: dict[str, Callable[..., Any]] = {
        "is_invalid_grad_norm": lambda norm: False,
        "mask_nan_or_inf_with_val_inplace": _mask_not_finite,
    }
    originals = {name: getattr(module, name) for name in functions}
    vars(module).update(functions)
    try:
        yield
    finally:
        vars(module).update(originals)


def _mask_not_finite(values: Tensor, device: Any = None, val: float = -1.0) -> None:
    """DeepSpeed's function of nearly this name, without a copy to the device."""
    values.masked_fill_(values.isfinite().logical_not(), val)
