"""The consistency block on embeddings with known values."""

import math

import pytest
import torch

from furnace_hpc.config.metrics import CONSISTENCY
from furnace_hpc.model.consistency import consistency_block, debiased_cka

N, D = 500, 64


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def constructed(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Make two embeddings of N samples with a known relation."""
    first, second = normal(N, D, seed=1), normal(N, D, seed=2)
    match name:
        case "collapsed":  # one direction, and independent noise
            direction = normal(D, seed=3) * 4
            return direction + first, direction + second
        case "aligned":  # a shared part, and as much independent noise
            shared = normal(N, D, seed=3)
            return shared + first, shared + second
        case "class-aligned":  # ten classes; within a class, pairs do not matter
            centre = normal(10, D, seed=3)[torch.arange(N) % 10] * 2
            return centre + first, centre + second
        case "gap":  # aligned, but each modality in its own region
            shared, direction = normal(N, D, seed=3), normal(D, seed=4) * 4
            return direction + shared + 0.3 * first, -direction + shared + 0.3 * second
    raise ValueError(name)


@pytest.mark.parametrize(
    ("name", "matched", "mismatched", "auc", "recall_at_1"),
    [
        ("collapsed", (0.90, 0.97), (0.90, 0.97), (0.45, 0.55), (0.0, 0.02)),
        ("aligned", (0.45, 0.55), (-0.02, 0.02), (0.99, 1.0), (0.8, 1.0)),
        ("class-aligned", (0.7, 0.85), (-0.1, 0.12), (0.9, 0.99), (0.0, 0.1)),
        ("gap", (-1.0, -0.7), (-1.0, -0.8), (0.97, 1.0), (0.8, 1.0)),
    ],
)
def test_constructed_embeddings(name, matched, mismatched, auc, recall_at_1):
    block = consistency_block(*constructed(name))
    for key, (low, high) in {
        "cosine_matched": matched,
        "cosine_mismatched": mismatched,
        "auc": auc,
        "recall_at_1_there": recall_at_1,
        "recall_at_1_back": recall_at_1,
    }.items():
        assert low <= block[key] <= high, (key, block[key])
    assert block["cosine_difference"] == pytest.approx(
        block["cosine_matched"] - block["cosine_mismatched"]
    )
    assert block["alignment"] == pytest.approx(2 - 2 * block["cosine_matched"])
    assert (block["recall_at_10_chance"], block["samples"]) == (10 / N, N)
    assert (block["gap"] > 1.5) == (name == "gap")
    assert set(block) == set(CONSISTENCY)


def test_collapsed_embedding_by_cosine_and_auc():
    """The article's mean cosine ranks the collapsed embedding first, and the AUC ranks it last."""
    blocks = {
        name: consistency_block(*constructed(name))
        for name in ("collapsed", "aligned", "class-aligned", "gap")
    }
    assert max(blocks, key=lambda name: blocks[name]["cosine_matched"]) == "collapsed"
    assert min(blocks, key=lambda name: blocks[name]["auc"]) == "collapsed"
    # A uniformity near 0 means one point.
    assert blocks["collapsed"]["uniformity"] > -0.5 > -3.5 > blocks["aligned"]["uniformity"]


def test_one_point_and_identical_embeddings():
    """An embedding of one point is at chance. Identical embeddings are perfect."""
    point = torch.ones(40, 8)
    block = consistency_block(point, point * 3)
    assert (block["cosine_matched"], block["auc"], block["recall_at_1_there"]) == (
        pytest.approx(1),
        0.5,
        0.0,
    )
    assert block["median_rank_there"] == 20.5  # equal cosines share the mean rank
    assert math.isnan(block["cka"])
    x = normal(40, 8, seed=0)
    same = consistency_block(x, x)
    assert (same["recall_at_1_back"], same["median_rank_back"], same["auc"]) == (1.0, 1.0, 1.0)
    assert (same["gap"], same["cka"]) == (0.0, pytest.approx(1.0))


def test_debiased_cka_of_independent_embeddings():
    """The debiased CKA is about 0, while the usual one is above 0.85."""
    a, b = normal(64, 512, seed=1), normal(64, 512, seed=2)
    centred = [x - x.mean(0) for x in (a, b)]
    kernels = [x @ x.T for x in centred]
    usual = (kernels[0] * kernels[1]).sum() / (kernels[0].norm() * kernels[1].norm())
    assert usual > 0.85
    assert abs(debiased_cka(a, b)) < 0.05
    rotation = torch.linalg.qr(normal(512, 512, seed=3))[0]
    assert debiased_cka(a, a @ rotation) == pytest.approx(1.0)


def test_hsic_equals_mean_over_quadruples():
    import itertools

    from furnace_hpc.model.consistency import _hsic, _without_diagonal

    a, b = normal(6, 3, seed=1), normal(6, 3, seed=2)
    kernel_a, kernel_b = a @ a.T, b @ b.T
    terms = [
        kernel_a[i, j] * (kernel_b[i, j] + kernel_b[q, r] - 2 * kernel_b[i, q])
        for i, j, q, r in itertools.permutations(range(6), 4)
    ]
    by_hand = (sum(terms) / len(terms)).item()
    assert _hsic(_without_diagonal(kernel_a), _without_diagonal(kernel_b)) == pytest.approx(by_hand)


def test_median_rank_of_an_even_number():
    """The mean of the two middle ranks: here 1 1 2 4."""
    a = torch.eye(4)
    # cosines of row i with columns: the match is first, first, second and fourth
    b = torch.tensor([[9.0, 1, 0, 4], [0, 9, 3, 3], [1, 2, 2, 2], [2, 3, 4, 1]])
    b = b / b.norm(dim=1, keepdim=True)
    cosine = a @ b.T
    ranks = [int((cosine[i] > cosine[i, i]).sum()) + 1 for i in range(4)]
    expected = sum(sorted(ranks)[1:3]) / 2
    assert sorted(ranks)[1] != sorted(ranks)[2]
    assert consistency_block(a, b)["median_rank_there"] == expected


def test_three_pairs_are_too_few():
    with pytest.raises(ValueError, match="got 3 pairs, wanted four or more"):
        consistency_block(torch.randn(3, 4), torch.randn(3, 4))
