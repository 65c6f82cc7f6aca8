"""What the embeddings of two modalities have to do with each other: a block of numbers, never one.

A mean cosine alone is highest for embeddings that have collapsed to a point, so each number stands beside what it is
without any pairing. N pairs, D width.
"""

import torch
from torch import Tensor
from torch.nn import functional

from furnace_hpc.model.scores import area_under_roc

# cosines that agree so far are equal: a collapsed embedding must not be ranked by its rounding
DIGITS = 9


def consistency_block(a_ND: Tensor, b_ND: Tensor) -> dict[str, float]:
    """Numbers of N matched pairs, normalised here; row i of one belongs to row i of the other.

    Cosines of matched and of mismatched pairs, their difference, and the AUC (probability that a matched pair has the
    higher cosine; chance 0.5). Retrieval of b from a ("there") and of a from b ("back"): recall at k with its chance
    k/N, and median rank; among equals the rank is their mean. Gap between the two means (Liang et al. 2022), alignment
    E|a-b|^2 and uniformity log E exp(-2|x-y|^2) within a modality, mean of both (Wang and Isola 2020), debiased linear
    CKA (`debiased_cka`), and N.

    Raises:
        ValueError: fewer than four pairs.
    """
    N = len(a_ND)
    if N < 4:
        raise ValueError(f"got {N} pairs, wanted four or more")
    a_ND, b_ND = (
        functional.normalize(a_ND.double(), dim=1),
        functional.normalize(b_ND.double(), dim=1),
    )
    cosine_NN = (a_ND @ b_ND.T).round(decimals=DIGITS)
    matched_N = cosine_NN.diagonal()
    off = ~torch.eye(N, dtype=torch.bool, device=a_ND.device)
    mismatched = cosine_NN[off]
    is_match = torch.cat([torch.ones_like(matched_N), torch.zeros_like(mismatched)]).bool()
    there_N, back_N = _ranks(cosine_NN), _ranks(cosine_NN.T)
    block = {
        "cosine_matched": matched_N.mean().item(),
        "cosine_mismatched": mismatched.mean().item(),
        "cosine_difference": (matched_N.mean() - mismatched.mean()).item(),
        "auc": area_under_roc(torch.cat([matched_N, mismatched]), is_match),
    }
    for k in (1, 5, 10):
        block[f"recall_at_{k}_there"] = (there_N <= k).double().mean().item()
        block[f"recall_at_{k}_back"] = (back_N <= k).double().mean().item()
        block[f"recall_at_{k}_chance"] = min(1.0, k / N)
    return block | {
        "median_rank_there": there_N.median().item(),
        "median_rank_back": back_N.median().item(),
        "gap": (a_ND.mean(0) - b_ND.mean(0)).norm().item(),
        "alignment": (a_ND - b_ND).square().sum(1).mean().item(),
        "uniformity": (_uniformity(a_ND, off) + _uniformity(b_ND, off)) / 2,
        "cka": debiased_cka(a_ND, b_ND),
        "samples": float(N),
    }


def debiased_cka(a_ND: Tensor, b_ND: Tensor) -> float:
    """Linear CKA (Kornblith et al. 2019) with the unbiased HSIC of Song et al. 2012: 0 for independent embeddings.

    The usual form gives 0.88 for independent Gaussians at N = 64, D = 512. NaN where an embedding does not vary.
    """
    a_NN, b_NN = _without_diagonal(a_ND @ a_ND.T), _without_diagonal(b_ND @ b_ND.T)
    both, first, second = _hsic(a_NN, b_NN), _hsic(a_NN, a_NN), _hsic(b_NN, b_NN)
    return both / (first * second) ** 0.5 if min(first, second) > 1e-12 else float("nan")


def _ranks(cosine_NN: Tensor) -> Tensor:
    """Rank [N] of the diagonal in its row, from 1; among equals, the mean of their ranks."""
    own_N1 = cosine_NN.diagonal().unsqueeze(1)
    return 0.5 + (cosine_NN > own_N1).sum(1).double() + 0.5 * (cosine_NN == own_N1).sum(1).double()


def _uniformity(x_ND: Tensor, off: Tensor) -> float:
    squared_NN = (2 - 2 * x_ND @ x_ND.T).clamp(min=0)  # of normalised vectors
    return (-2 * squared_NN[off]).exp().mean().log().item()


def _without_diagonal(kernel_NN: Tensor) -> Tensor:
    return kernel_NN - torch.diag(kernel_NN.diagonal())


def _hsic(a_NN: Tensor, b_NN: Tensor) -> float:
    N = len(a_NN)
    trace = (a_NN * b_NN).sum()
    means = a_NN.sum() * b_NN.sum() / ((N - 1) * (N - 2))
    mixed = 2 * (a_NN.sum(0) @ b_NN.sum(0)) / (N - 2)
    return ((trace + means - mixed) / (N * (N - 3))).item()
