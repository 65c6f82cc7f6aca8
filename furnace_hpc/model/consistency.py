"""Measure how well the embeddings of two modalities match.

The result is a block of numbers. A mean cosine alone is misleading, because it is highest for
embeddings that have collapsed to a point. So the block also has the values for mismatched pairs and
for chance.

N pairs, D width.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from furnace_hpc.model.scores import area_between

# Cosines are rounded to this many decimals, so that rounding errors do not rank equal embeddings.
DIGITS = 9


def consistency_block(a_ND: Tensor, b_ND: Tensor) -> dict[str, float]:
    """Compute the numbers for N matched pairs: row i of `a_ND` belongs to row i of `b_ND`.

    Embeddings are normalised here. The keys of the result:
        cosine_matched, cosine_mismatched, cosine_difference: mean cosines and their difference.
        auc: probability that a matched pair has the higher cosine. Chance is 0.5.
        recall_at_k_there, recall_at_k_back: retrieval of b from a, and of a from b.
        recall_at_k_chance: k/N.
        median_rank_there, median_rank_back: equal cosines share the mean of their ranks. Of an even
            number of samples, the mean of the two middle ranks.
        gap: distance between the two means (Liang et al. 2022).
        alignment, uniformity: E|a-b|^2, and log E exp(-2|x-y|^2) within a modality, averaged over
            the two modalities (Wang and Isola 2020).
        cka: see `debiased_cka`.
        samples: N.

    Raises:
        ValueError: there are fewer than four pairs.
    """
    N = len(a_ND)
    if N < 4:
        raise ValueError(f"got {N} pairs, wanted four or more")
    a_ND = functional.normalize(a_ND.double(), dim=1)
    b_ND = functional.normalize(b_ND.double(), dim=1)
    cosine_NN = (a_ND @ b_ND.T).round(decimals=DIGITS)
    matched_N = cosine_NN.diagonal()
    off_diagonal_NN = ~torch.eye(N, dtype=torch.bool, device=a_ND.device)
    mismatched = cosine_NN[off_diagonal_NN]
    there_N, back_N = _ranks(cosine_NN), _ranks(cosine_NN.T)
    block = {
        "cosine_matched": matched_N.mean().item(),
        "cosine_mismatched": mismatched.mean().item(),
        "cosine_difference": (matched_N.mean() - mismatched.mean()).item(),
        "auc": area_between(matched_N, mismatched),
    }
    for k in (1, 5, 10):
        block[f"recall_at_{k}_there"] = (there_N <= k).double().mean().item()
        block[f"recall_at_{k}_back"] = (back_N <= k).double().mean().item()
        block[f"recall_at_{k}_chance"] = min(1.0, k / N)
    return block | {
        "median_rank_there": there_N.quantile(0.5).item(),
        "median_rank_back": back_N.quantile(0.5).item(),
        "gap": (a_ND.mean(0) - b_ND.mean(0)).norm().item(),
        "alignment": (a_ND - b_ND).square().sum(1).mean().item(),
        "uniformity": (_uniformity(a_ND, off_diagonal_NN) + _uniformity(b_ND, off_diagonal_NN)) / 2,
        "cka": debiased_cka(a_ND, b_ND),
        "samples": float(N),
    }


def debiased_cka(a_ND: Tensor, b_ND: Tensor) -> float:
    """Linear CKA (Kornblith et al. 2019) with the unbiased HSIC of Song et al. 2012.

    It is about 0 for independent embeddings, and NaN if an embedding is constant. The usual form
    gives 0.88 for independent Gaussians at N = 64, D = 512.
    """
    a_NN, b_NN = _without_diagonal(a_ND @ a_ND.T), _without_diagonal(b_ND @ b_ND.T)
    both, first, second = _hsic(a_NN, b_NN), _hsic(a_NN, a_NN), _hsic(b_NN, b_NN)
    if min(first, second) <= 1e-12:
        return math.nan
    cka: float = both / (first * second) ** 0.5
    return cka


def _ranks(cosine_NN: Tensor) -> Tensor:
    """Rank [N] of each diagonal value in its row, from 1. Equal values share their mean rank."""
    own_N1 = cosine_NN.diagonal().unsqueeze(1)
    return 0.5 + (cosine_NN > own_N1).sum(1).double() + 0.5 * (cosine_NN == own_N1).sum(1).double()


def _uniformity(x_ND: Tensor, off_diagonal_NN: Tensor) -> float:
    # |x-y|^2 = 2 - 2xy, because the vectors are normalised
    squared_NN = (2 - 2 * x_ND @ x_ND.T).clamp(min=0)
    return (-2 * squared_NN[off_diagonal_NN]).exp().mean().log().item()


def _without_diagonal(kernel_NN: Tensor) -> Tensor:
    return kernel_NN - torch.diag(kernel_NN.diagonal())


def _hsic(a_NN: Tensor, b_NN: Tensor) -> float:
    N = len(a_NN)
    trace = (a_NN * b_NN).sum()
    means = a_NN.sum() * b_NN.sum() / ((N - 1) * (N - 2))
    mixed = 2 * (a_NN.sum(0) @ b_NN.sum(0)) / (N - 2)
    return ((trace + means - mixed) / (N * (N - 3))).item()
