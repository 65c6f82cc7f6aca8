"""Scales of regression targets, and weights of classes, both from the train split."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from furnace_hpc.config.manifest import Manifest, Statistics


@dataclass(frozen=True)
class TargetScale:
    """Mean and deviation of the T targets of a task, from the train split, in fp64."""

    mean_T: Tensor
    std_T: Tensor
    names: tuple[str, ...] = ()
    """Names of the targets. Empty if no score of a single target is needed."""

    @classmethod
    def of(
        cls, statistics: Statistics, names: tuple[str, ...], device: torch.device | None = None
    ) -> "TargetScale":
        """Return the scale with these statistics."""
        mean, std = (
            torch.tensor(values, dtype=torch.float64, device=device)
            for values in (statistics.mean, statistics.std)
        )
        return cls(mean, std, names)

    def standardised(self, targets_BT: Tensor) -> Tensor:
        """Return the stored targets as the network learns them, in fp32."""
        return ((targets_BT.double() - self.mean_T) / self.std_T).float()

    def original(self, outputs_BT: Tensor) -> Tensor:
        """Return outputs of the network in original units, in fp64."""
        return outputs_BT.float().double() * self.std_T + self.mean_T


def target_scales(
    manifest: Manifest, tasks: tuple[str, ...], device: torch.device | None = None
) -> dict[str, TargetScale]:
    """Return the scale of each of these tasks that is a regression."""
    return {
        task: TargetScale.of(
            manifest.statistics[f"label.{task}"], manifest.labels[task].classes, device
        )
        for task in tasks
        if manifest.labels[task].kind == "regression"
    }


def balanced_weights(labels_N: NDArray[Any], num_classes: int) -> Tensor:
    """Return samples / (classes x samples of the class), so that the mean over samples is 1.

    Classes that do not occur are not counted, and have the weight 0.
    """
    counts = np.bincount(labels_N, minlength=num_classes)
    share = counts * np.count_nonzero(counts)
    weights = np.divide(len(labels_N), share, out=np.zeros(num_classes), where=share > 0)
    return torch.from_numpy(weights).float()
