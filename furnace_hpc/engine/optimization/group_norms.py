"""The norm of the gradient of each group of parameters, before clipping.

DeepSpeed computes it for each group, and keeps only that of all. Here its results are kept. At
stage 0, and in the optimizer for accumulation in fp32, each step computes it once more.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from furnace_hpc.engine.optimization.groups import group_names


class GroupNorms:
    """Keeps the norms of the newest step. It costs nothing if there is only one group."""

    def __init__(self, engine: Any) -> None:
        self._groups = engine.optimizer.param_groups
        self._found: list[Any] = []
        """Norms in the order of the groups, or of stage 3's parts of groups."""
        self._part_to_group: dict[int, int] = {}
        if len(self._groups) == 1:
            return
        optimizer = engine.optimizer
        self._part_to_group = getattr(optimizer, "sub_group_to_group_id", {})
        if hasattr(optimizer, "get_grad_norm_direct"):  # stages 1 to 3
            self._forget_before(optimizer, "step")
            self._keep_results(optimizer, "get_grad_norm_direct")
            self._keep_results(optimizer, "complete_grad_norm_calculation_for_cpu_offload")
        elif hasattr(optimizer, "fp32_groups_gradients_flat"):  # BF16_Optimizer
            self._measure_before(
                *(optimizer, "step"), lambda: [[g] for g in optimizer.fp32_groups_gradients_flat]
            )
        else:
            self._measure_before(
                engine,
                "_take_model_step",
                lambda: [
                    [p.grad for p in group["params"] if p.grad is not None]
                    for group in self._groups
                ],
            )

    def record(self) -> dict[str, float | None]:
        """The entries of a line of the metrics file. It waits for a GPU."""
        if len(self._groups) == 1:
            return {}
        names = group_names(self._groups)
        rates = {f"lr/{name}": group["lr"] for name, group in zip(names, self._groups, strict=True)}
        squares: dict[int, float] = defaultdict(float)
        for part, norm in enumerate(self._found):
            squares[self._part_to_group.get(part, part)] += float(norm) ** 2
        norms = {f"grad_norm/{names[group]}": total**0.5 for group, total in squares.items()}
        return rates | norms

    def _forget_before(self, owner: Any, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            self._found = []
            return original(*arguments, **keywords)

        setattr(owner, name, wrapped)

    def _keep_results(self, owner: Any, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            norm = original(*arguments, **keywords)
            self._found.append(norm)
            return norm

        setattr(owner, name, wrapped)

    def _measure_before(
        self, owner: Any, name: str, gradients: Callable[[], list[list[Tensor]]]
    ) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            self._found = [_norm(part) for part in gradients()]
            return original(*arguments, **keywords)

        setattr(owner, name, wrapped)


def _norm(gradients: list[Tensor]) -> Tensor | float:
    if not gradients:
        return 0.0
    return torch.nn.utils.get_total_norm(gradients)
