"""Losses: tasks, the article's two extra terms, InfoNCE, VICReg and unimodal heads.

All are means over samples. B batch of this process, N samples of all processes, M modalities,
D width, C classes, T targets, P width of a projection.
"""

import itertools
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from furnace_hpc.config.own_code.references import loss_weight
from furnace_hpc.config.sections.loss import LossConfig
from furnace_hpc.config.sections.tasks import TaskConfig
from furnace_hpc.model.own_code.contracts import LossInputs
from furnace_hpc.model.own_code.functions import own_loss
from furnace_hpc.model.square_root import square_root

NO_WEIGHTS: Mapping[str, Tensor] = MappingProxyType({})
FOCAL_EPS = 1e-8
VICREG_EPS = 1e-4  # from the paper. It keeps the gradient finite if a feature is constant.

# Concatenates the tensors of all processes along the first axis, with gradient. Also returns the
# index at which this process's rows begin.
Gather = Callable[[Tensor], tuple[Tensor, int]]


def local_gather(tensor: Tensor) -> tuple[Tensor, int]:
    """The `Gather` of a single process."""
    return tensor, 0


def total_loss(
    output: dict[str, Any],
    labels: dict[str, Tensor],
    present_BM: Tensor,
    config: LossConfig,
    tasks: tuple[TaskConfig, ...],
    gather: Gather = local_gather,
    class_weights: Mapping[str, Tensor] = NO_WEIGHTS,
    mix: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return the parts by name, with their weighted sum under "loss". All are fp32 scalars.

    If all processes have equally many samples, the mean of a part over processes is its value on
    all their samples. The same holds for the gradient.

    Args:
        output: of the network.
        labels: task -> labels.
        present_BM: modalities that the network used, which is output["present"].
        config: weights of the parts.
        tasks: each gives a part "<task>/loss".
        gather: of the processes that share InfoNCE and VICReg.
        class_weights: task -> weight of each class [C]. A task that is missing has none.
        mix: partner and own weight of each sample [B], if the network has mixed them. The task
            losses are then the same mixture of those for the labels of the two.
    """
    parts = {}
    for task in tasks:
        weights = class_weights.get(task.name)
        given = labels[task.name], task, weights
        loss_B = mixed_loss(output["logits"][task.name], *given, mix)
        parts[f"{task.name}/loss"] = loss_B.mean()
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
        parts["unimodal"] = unimodal_loss(
            output["unimodal"], labels, present_BM, tasks, class_weights, mix
        )
        parts["loss"] = parts["loss"] + config.unimodal * parts["unimodal"]
    if config.extra:
        inputs = LossInputs(output["logits"], labels, features_BMD, present_BM)
        for path, term in config.extra.items():
            name, value = own_loss(path, term, inputs)
            parts[name] = value
            parts["loss"] = parts["loss"] + loss_weight(term) * value
    return parts


def task_loss(
    logits_BC: Tensor, labels: Tensor, task: TaskConfig, weight_C: Tensor | None = None
) -> Tensor:
    """Return the loss of each sample [B].

    Cross-entropy for labels [B]. For labels [B, C], the mean over C of the binary cross-entropy.
    For levels [B], the negative log-likelihood. For numbers [B, T], the mean over T of the squared
    error. `weight_C` has a factor for the class or level of each sample.
    """
    loss_B = _plain_loss(logits_BC, labels, task)
    if weight_C is None:
        return loss_B
    return loss_B * weight_C[labels]


def mixed_loss(
    logits_BC: Tensor,
    labels: Tensor,
    task: TaskConfig,
    weight_C: Tensor | None = None,
    mix: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return the loss of each sample [B], mixed with that for its partner's label (mixup)."""
    loss_B = task_loss(logits_BC, labels, task, weight_C)
    if mix is None:
        return loss_B
    partner_B, own_B = mix
    return own_B * loss_B + (1 - own_B) * task_loss(logits_BC, labels[partner_B], task, weight_C)


def _plain_loss(logits_BC: Tensor, labels: Tensor, task: TaskConfig) -> Tensor:
    match task.kind:
        case "single_label":
            loss_B = functional.cross_entropy(logits_BC.float(), labels, reduction="none")
            return focal(loss_B, task.focal_gamma)
        case "multi_label":
            loss_BC = functional.binary_cross_entropy_with_logits(
                logits_BC.float(), labels.float(), reduction="none"
            )
            return focal(loss_BC, task.focal_gamma).mean(1)
        case "ordinal":
            return functional.nll_loss(logits_BC.float(), labels, reduction="none")
        case "regression":
            return (logits_BC.float() - labels.float()).square().mean(1)


def focal(cross_entropy: Tensor, gamma: float) -> Tensor:
    """Focal loss (Lin et al. 2017) without its class weight: (1 - p)^gamma times -log p."""
    if not gamma:
        return cross_entropy
    # The power has no finite gradient at 0 if gamma < 1.
    wrong = (-torch.expm1(-cross_entropy)).clamp(min=FOCAL_EPS)
    return wrong**gamma * cross_entropy


def unimodal_loss(
    logits: dict[str, Tensor],
    labels: dict[str, Tensor],
    present_BM: Tensor,
    tasks: tuple[TaskConfig, ...],
    class_weights: Mapping[str, Tensor] = NO_WEIGHTS,
    mix: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return the weighted task losses of the heads that see one modality (logits [B, M, C]).

    The mean is over a sample's present modalities, then over B.
    """
    present = present_BM.float()
    total = present.new_zeros(len(present))
    for task in tasks:
        heads = logits[task.name].unbind(1)
        own = labels[task.name], task, class_weights.get(task.name), mix
        loss_BM = torch.stack([mixed_loss(head, *own) for head in heads], dim=1)
        total = total + task.weight * (loss_BM * present).sum(1) / present.sum(1)
    return total.mean()


def info_nce(
    projections_BMP: Tensor, present_BM: Tensor, scale: Tensor, gather: Gather = local_gather
) -> Tensor:
    """InfoNCE between each two modalities, in both directions.

    The samples are those of all processes that have both modalities. This process computes its own
    B rows against all N columns. It divides its sum by the count of all processes and multiplies it
    by their number. So the mean over processes equals the loss of one process with all N samples,
    even if the processes have different numbers of pairs. A pair of modalities with fewer than two
    samples counts as 0. As in the original, samples of the same class are negatives too. With few
    classes, most negatives are of this kind.
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
        # torch.where instead of a product with zero: rows of samples without both are huge.
        loss_B = torch.where((mine_B > 0) & (count > 1), loss_B, torch.zeros_like(loss_B))
        losses.append(loss_B.sum() * (N / B) / count.clamp(min=1))
    return torch.stack(losses).mean()


def vicreg(
    features_BMP: Tensor, present_BM: Tensor, config: LossConfig, gather: Gather = local_gather
) -> Tensor:
    """VICReg (Bardes, Ponce and LeCun 2022) of each two modalities.

    The samples are those of all processes that have both modalities. Every process computes the
    loss of all N samples. The loss of a pair Z, Z' is

        invariance x mean squared difference
        + variance x [v(Z) + v(Z')]
        + covariance x [c(Z) + c(Z')]

    with v the mean over features of max(0, gamma - sqrt(var + eps)), and c the sum of squared
    covariances of different features, divided by P. The squared difference is a mean over features
    too, as in the paper's algorithm 1. The result is the mean over pairs.

    A variance needs two samples. A pair with one sample has only the invariance term. A pair
    without samples counts as 0.
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
    """VICReg's v and c over the samples with count 1. Both are zero for fewer than two samples."""
    count = counts_N1.sum()
    centred_NP = (x_NP - (x_NP * counts_N1).sum(0) / count.clamp(min=1)) * counts_N1
    variance_P = centred_NP.square().sum(0) / (count - 1).clamp(min=1)
    covariance_PP = centred_NP.T @ centred_NP / (count - 1).clamp(min=1)
    enough = (count > 1).float()
    different_PP = covariance_PP - torch.diag(covariance_PP.diagonal())
    hinge = functional.relu(gamma - square_root(variance_P + VICREG_EPS)).mean()
    return enough * hinge, enough * different_PP.square().sum() / x_NP.shape[1]


def consistency(features_BMD: Tensor, present_BM: Tensor) -> Tensor:
    """Mean squared difference between the features of each pair of present modalities.

    The mean is over width, then over a sample's pairs, then over the batch. A sample with one
    modality counts as 0.
    """
    if features_BMD.shape[1] < 2:
        return features_BMD.new_zeros(())
    first, second = _pairs(features_BMD.shape[1], features_BMD.device)
    distance_BP = (features_BMD[:, first] - features_BMD[:, second]).square().mean(2)
    both_BP = (present_BM[:, first] & present_BM[:, second]).float()
    return ((distance_BP * both_BP).sum(1) / both_BP.sum(1).clamp(min=1)).mean()


@cache
def _pairs(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices of the first and the second of all pairs. As lists they would wait for the GPU."""
    first, second = zip(*itertools.combinations(range(count), 2), strict=True)
    return torch.tensor(first, device=device), torch.tensor(second, device=device)


def feature_norm(features_BMD: Tensor, present_BM: Tensor) -> Tensor:
    """Mean L2 norm of the present modalities' features. The norm is per sample and modality."""
    present = present_BM.float()
    # Without the small number, the gradient at exactly 0 (an absent modality) is NaN.
    norm_BM = square_root(features_BMD.square().sum(2) + 1e-12)
    return ((norm_BM * present).sum(1) / present.sum(1).clamp(min=1)).mean()
