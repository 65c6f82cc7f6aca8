"""Scores of numbers and of ordered levels, from all predictions of a split at once.

N samples, T targets, K levels.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from furnace_hpc.config.metrics import target_key


def regression_scores(predicted_NT: Tensor, target_NT: Tensor) -> dict[str, float]:
    """Compute errors and correlations of numbers in original units. Each is a mean over targets.

    As in scipy, a correlation is NaN if predictions or targets are constant or there are fewer than
    two samples. As in scikit-learn, R2 is 1 or 0 if the targets are constant: 1 if all predictions
    are right.
    """
    predicted_NT, target_NT = predicted_NT.double(), target_NT.double()
    error_NT = predicted_NT - target_NT
    pairs = list(zip(predicted_NT.unbind(1), target_NT.unbind(1), strict=True))
    return {
        "mae": error_NT.abs().mean().item(),
        "rmse": error_NT.square().mean(0).sqrt().mean().item(),
        "r2": _mean([_r2(predicted, target) for predicted, target in pairs]),
        "pearson": _mean([pearson(predicted, target) for predicted, target in pairs]),
        "spearman": _mean([pearson(_ranks(one), _ranks(other)) for one, other in pairs]),
        "ccc": _mean([concordance(predicted, target) for predicted, target in pairs]),
    }


def scores_of_targets(
    predicted_NT: Tensor, target_NT: Tensor, names: tuple[str, ...]
) -> dict[str, float]:
    """Compute `<metric>:<target>` of each target. Empty if there is only one."""
    if len(names) < 2:
        return {}
    scores: dict[str, float] = {}
    for t, name in enumerate(names):
        found = regression_scores(predicted_NT[:, t : t + 1], target_NT[:, t : t + 1])
        scores |= {f"{metric}:{target_key(name)}": value for metric, value in found.items()}
    return scores


def ordinal_scores(logits_NK: Tensor, level_N: Tensor) -> dict[str, float]:
    """Compute the scores of the most probable level. Levels count by their position."""
    logits_NK = logits_NK.double()
    predicted_N = logits_NK.argmax(1)
    distance_N = (predicted_N - level_N).double().abs()
    return {
        "qwk": quadratic_kappa(predicted_N, level_N, logits_NK.shape[1]),
        "mae": distance_N.mean().item(),
        "accuracy": (distance_N == 0).double().mean().item(),
        "loss": functional.nll_loss(logits_NK, level_N).item(),
    }


def quadratic_kappa(predicted_N: Tensor, level_N: Tensor, num_levels: int) -> float:
    """Cohen's kappa with quadratic weights. NaN if all predictions and labels are one level."""
    counts = torch.bincount(level_N * num_levels + predicted_N, minlength=num_levels**2)
    observed_KK = counts.view(num_levels, num_levels).double()
    expected_KK = torch.outer(observed_KK.sum(1), observed_KK.sum(0)) / observed_KK.sum()
    position_K = torch.arange(num_levels, dtype=torch.float64)
    weight_KK = (position_K.unsqueeze(1) - position_K).square()
    expected = (weight_KK * expected_KK).sum().item()
    if expected == 0:
        return math.nan
    found: float = (weight_KK * observed_KK).sum().item()
    return 1 - found / float(expected)


def pearson(one_N: Tensor, other_N: Tensor) -> float:
    """Pearson's correlation. NaN if one is constant."""
    if len(one_N) < 2 or _is_constant(one_N) or _is_constant(other_N):
        return math.nan
    one_N, other_N = one_N - one_N.mean(), other_N - other_N.mean()
    correlation: float = ((one_N / one_N.norm()) @ (other_N / other_N.norm())).item()
    return max(-1.0, min(1.0, correlation))


def concordance(predicted_N: Tensor, target_N: Tensor) -> float:
    """Lin's concordance correlation coefficient, with population variances.

    NaN if both are constant and equal.
    """
    predicted_mean, target_mean = predicted_N.mean(), target_N.mean()
    covariance = ((predicted_N - predicted_mean) * (target_N - target_mean)).mean()
    spread = predicted_N.var(correction=0) + target_N.var(correction=0)
    total = (spread + (predicted_mean - target_mean).square()).item()
    if total == 0 or (_is_constant(target_N) and bool((predicted_N == target_N).all())):
        return math.nan
    return 2 * covariance.item() / total


def _r2(predicted_N: Tensor, target_N: Tensor) -> float:
    if len(target_N) < 2:
        return math.nan
    error = (target_N - predicted_N).square().sum().item()
    total = (target_N - target_N.mean()).square().sum().item()
    if total == 0 or _is_constant(target_N):
        return float(error == 0)
    return 1 - error / total


def _ranks(values_N: Tensor) -> Tensor:
    """Ranks from 1. Equal values have the mean of their ranks."""
    values, order = values_N.sort()
    is_new = torch.cat([values.new_ones(1, dtype=torch.bool), values[1:] != values[:-1]])
    group_N = is_new.long().cumsum(0) - 1
    counts = torch.bincount(group_N).double()
    mean_rank = counts.cumsum(0) - (counts - 1) / 2
    ranks_N = torch.empty_like(values_N, dtype=torch.float64)
    ranks_N[order] = mean_rank[group_N]
    return ranks_N


def _is_constant(values_N: Tensor) -> bool:
    return bool((values_N == values_N[0]).all())


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
