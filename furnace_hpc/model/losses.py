"""Losses: of each task, and the article's two extra terms on the modalities' features. Means over samples throughout.

B batch, M modalities, D width, C classes.
"""

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from furnace_hpc.spec.config import LossConfig, TaskConfig


def total_loss(
    output: dict[str, Any],
    labels: dict[str, Tensor],
    present_BM: Tensor,
    config: LossConfig,
    tasks: tuple[TaskConfig, ...],
) -> dict[str, Tensor]:
    """Return the parts by name, with their weighted sum under "loss"; all are fp32 scalars."""
    parts = {
        f"{task.name}/loss": functional.cross_entropy(output["logits"][task.name].float(), labels[task.name])
        for task in tasks
    }
    features_BMD = output["features"].float()
    parts["consistency"] = consistency(features_BMD, present_BM)
    parts["norm"] = feature_norm(features_BMD, present_BM)
    task_sum = sum(
        (task.weight * parts[f"{task.name}/loss"] for task in tasks),
        torch.zeros((), device=present_BM.device),
    )
    parts["loss"] = task_sum + config.alpha * parts["consistency"] + config.beta * parts["norm"]
    return parts


def consistency(features_BMD: Tensor, present_BM: Tensor) -> Tensor:
    """Mean squared difference between the features of each pair of present modalities.

    Mean over width, then over a sample's pairs, then over the batch. A sample with one modality counts as 0.
    """
    pairs = list(itertools.combinations(range(features_BMD.shape[1]), 2))
    if not pairs:
        return features_BMD.new_zeros(())
    first, second = (list(side) for side in zip(*pairs, strict=True))
    distance_BP = (features_BMD[:, first] - features_BMD[:, second]).square().mean(2)
    both_BP = (present_BM[:, first] & present_BM[:, second]).float()
    return ((distance_BP * both_BP).sum(1) / both_BP.sum(1).clamp(min=1)).mean()


def feature_norm(features_BMD: Tensor, present_BM: Tensor) -> Tensor:
    """Mean L2 norm of the present modalities' features: of each sample, never of the whole batch tensor."""
    present = present_BM.float()
    # The norm's gradient at exactly 0 (an absent modality) is NaN without the small number.
    norm_BM = (features_BMD.square().sum(2) + 1e-12).sqrt()
    return ((norm_BM * present).sum(1) / present.sum(1).clamp(min=1)).mean()
