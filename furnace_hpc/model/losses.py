"""Losses: of each task, the article's two extra terms, InfoNCE, VICReg and unimodal heads. Means over samples.

B batch of this process, N samples of all processes, M modalities, D width, C classes, P width of a projection.
"""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from furnace_hpc.config.model_config import LossConfig, TaskConfig

VICREG_EPS = 1e-4  # the paper's; keeps the gradient finite where a feature does not vary

# Every process's tensors one after the other along the first axis, with gradient, and where this
# one's begin.
Gather = Callable[[Tensor], tuple[Tensor, int]]


def alone(tensor: Tensor) -> tuple[Tensor, int]:
    """What Gather is for one process."""
    return tensor, 0


def total_loss(
    output: dict[str, Any],
    labels: dict[str, Tensor],
    present_BM: Tensor,
    config: LossConfig,
    tasks: tuple[TaskConfig, ...],
    gather: Gather = alone,
) -> dict[str, Tensor]:
    """Return the parts by name, with their weighted sum under "loss"; all are fp32 scalars.

    The mean of each over equally large processes is its value on all their samples together, and so is its gradient.
    `present_BM` is what the network has seen: output["present"].
    """
    parts = {
        f"{task.name}/loss": task_loss(output["logits"][task.name], labels[task.name], task).mean()
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
    if config.info_nce:
        parts["info_nce"] = info_nce(output["projections"], present_BM, output["scale"], gather)
        parts["loss"] = parts["loss"] + config.info_nce * parts["info_nce"]
    if config.vicreg:
        parts["vicreg"] = vicreg(output["expanded"], present_BM, config, gather)
        parts["loss"] = parts["loss"] + config.vicreg * parts["vicreg"]
    if config.unimodal:
        parts["unimodal"] = unimodal_loss(output["unimodal"], labels, present_BM, tasks)
        parts["loss"] = parts["loss"] + config.unimodal * parts["unimodal"]
    return parts


def task_loss(logits_BC: Tensor, labels: Tensor, task: TaskConfig) -> Tensor:
    """Loss of each sample [B]: cross-entropy with labels [B], or binary cross-entropy with [B, C], meant over C."""
    match task.kind:
        case "single_label":
            return functional.cross_entropy(logits_BC.float(), labels, reduction="none")
        case "multi_label":
            return functional.binary_cross_entropy_with_logits(
                logits_BC.float(), labels.float(), reduction="none"
            ).mean(1)


def unimodal_loss(
    logits: dict[str, Tensor],
    labels: dict[str, Tensor],
    present_BM: Tensor,
    tasks: tuple[TaskConfig, ...],
) -> Tensor:
    """Weighted task losses of the heads [B, M, C] that see one modality; mean over the present ones, then over B."""
    present = present_BM.float()
    total = present.new_zeros(len(present))
    for task in tasks:
        each = [task_loss(part, labels[task.name], task) for part in logits[task.name].unbind(1)]
        total = total + task.weight * (torch.stack(each, dim=1) * present).sum(1) / present.sum(1)
    return total.mean()


def info_nce(
    projections_BMP: Tensor, present_BM: Tensor, scale: Tensor, gather: Gather = alone
) -> Tensor:
    """InfoNCE between each two modalities, both ways, over the samples of all processes that have both.

    This process answers for its own B rows against all N columns, and its sum is divided by the count of all and
    multiplied by the number of processes, so that their mean is the loss of one process with all N samples: also where
    they have different numbers of pairs. A pair of modalities with fewer than two samples counts as 0. Samples of the
    same class count as negatives, as they do in the original; over few classes most negatives are such.
    """
    (all_NMP, first), (there_NM, _) = gather(projections_BMP), gather(present_BM.float())
    there_NM = there_NM.bool()
    B, N = len(present_BM), len(there_NM)
    target_B = torch.arange(first, first + B, device=present_BM.device)
    losses = []
    for m, n in itertools.combinations(range(present_BM.shape[1]), 2):
        both_N = there_NM[:, m] & there_NM[:, n]
        mine_B, count = both_N[first : first + B].float(), both_N.sum()
        loss_B = projections_BMP.new_zeros(B)
        for a, b in ((m, n), (n, m)):
            cosine_BN = projections_BMP[:, a] @ all_NMP[:, b].T
            logits_BN = (scale * cosine_BN).masked_fill(~both_N, torch.finfo(torch.float32).min / 2)
            loss_B = loss_B + functional.cross_entropy(logits_BN, target_B, reduction="none") / 2
        # where, not a product: the rows of samples that lack one are huge.
        loss_B = torch.where((mine_B > 0) & (count > 1), loss_B, torch.zeros_like(loss_B))
        losses.append(loss_B.sum() * (N / B) / count.clamp(min=1))
    return torch.stack(losses).mean()


def vicreg(
    features_BMP: Tensor, present_BM: Tensor, config: LossConfig, gather: Gather = alone
) -> Tensor:
    """VICReg (Bardes, Ponce and LeCun 2022) of each two modalities, over the samples of all processes that have both.

    Of a pair Z, Z': invariance x mean squared difference + variance x [v(Z) + v(Z')] + covariance x [c(Z) + c(Z')],
    with v the mean over features of max(0, gamma - sqrt(var + eps)) and c the sum of squared covariances of different
    features, divided by P. As in the paper's algorithm 1 the squared difference is a mean over features too. Then the
    mean over pairs. Every process computes the loss of all N samples.

    Variances need two samples: of a pair with one sample, only the invariance counts, and one without counts as 0.
    """
    (all_NMP, _), (there_NM, _) = gather(features_BMP.float()), gather(present_BM.float())
    losses = []
    for m, n in itertools.combinations(range(present_BM.shape[1]), 2):
        both_N1 = (there_NM[:, m] * there_NM[:, n]).unsqueeze(1)
        distance = ((all_NMP[:, m] - all_NMP[:, n]).square().mean(1, keepdim=True) * both_N1).sum()
        loss = config.vicreg_invariance * distance / both_N1.sum().clamp(min=1)
        for side in (m, n):
            variance, covariance = _spread(all_NMP[:, side], both_N1, config.vicreg_gamma)
            loss = loss + config.vicreg_variance * variance + config.vicreg_covariance * covariance
        losses.append(loss)
    return torch.stack(losses).mean()


def _spread(x_NP: Tensor, counts_N1: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """VICReg's v and c over the samples that count (1, else 0); zeros where fewer than two do."""
    count = counts_N1.sum()
    centred_NP = (x_NP - (x_NP * counts_N1).sum(0) / count.clamp(min=1)) * counts_N1
    variance_P = centred_NP.square().sum(0) / (count - 1).clamp(min=1)
    covariance_PP = centred_NP.T @ centred_NP / (count - 1).clamp(min=1)
    enough = (count > 1).float()
    different_PP = covariance_PP - torch.diag(covariance_PP.diagonal())
    hinge = functional.relu(gamma - (variance_P + VICREG_EPS).sqrt()).mean()
    return enough * hinge, enough * different_PP.square().sum() / x_NP.shape[1]


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
