"""Find gradients that are not finite without waiting for the GPU in each step."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import Tensor

NOT_FINITE = "the gradient is not finite. Lower optimizer.lr or check the data."


class GradientCheck:
    """Collects, on the device, whether each step's norm of the gradient was finite.

    DeepSpeed checks nothing if bf16.check_grad_overflow is false, and applies the gradient. The
    loop reads the collected value where training pauses or a record is written: before anything is
    evaluated or saved. The norm is the same on all ranks.
    """

    def __init__(self) -> None:
        self._is_bad: Tensor | bool = False

    def add(self, engine: Any) -> None:
        """Add the step just made. DeepSpeed turns a norm that is not finite into -1."""
        norm = engine.get_global_grad_norm()
        if norm is None:
            return
        is_good = (norm >= 0) & (norm < math.inf)
        if isinstance(is_good, Tensor):
            self._is_bad = is_good.logical_not() | self._is_bad
        else:
            self._is_bad = self._is_bad | (not is_good)

    def check(self) -> None:
        """Raise FloatingPointError if the gradient of a step was not finite. It waits for a GPU."""
        if bool(self._is_bad):
            raise FloatingPointError(NOT_FINITE)


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
